"""The host's models of videos, which are given one frame."""

from __future__ import annotations

from tests import tiny_transformers as tiny
from tests.scanned.pictures import HUNYUAN
from tests.scanned.recipes import LLAMA, UMT5, model, refused, standing_in, t5
from tests.tiny_transformers import HEADS, TEXT, WIDTH, Recipe

WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": WIDTH, "in_dim": 16, "out_dim": 16,
    "num_heads": HEADS, "ffn_dim": 256, "num_layers": 2, "patch_size": [1, 2, 2], "freq_dim": 256,
    "window_size": [-1, -1], "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
    "text_dim": TEXT,
}  # fmt: skip


def wan(kind: str, **sizes: object) -> Recipe:
    return model(kind, {**WAN, **sizes}, UMT5, "wan")


WANS: dict[str, Recipe] = {
    "Wan 2.1, and 2.2 14B, text to video": wan("WAN21_T2V"),
    "Wan 2.2 5B": model("WAN22_T2V", {**WAN, "in_dim": 48, "out_dim": 48}, UMT5, "averages"),
    "Wan 2.1 causal, text to video": wan("WAN21_CausalAR_T2V"),
    "Wan 2.1 and 2.2, image to video": wan("WAN21_I2V", model_type="i2v", in_dim=36),
    "Wan 2.1 Fun Control": wan("WAN21_FunControl2V", model_type="i2v", in_dim=48),
    "Wan 2.1 VACE": {
        **wan("WAN21_Vace", model_type="vace", vace_layers=1, vace_in_dim=96),
        "note": "by text alone, without control videos",
    },
    "Wan 2.1 camera": wan("WAN21_Camera", model_type="camera", in_dim=32),
    "Wan 2.2 camera": wan("WAN22_Camera", model_type="camera_2.2", in_dim=36),
    "Wan 2.2, sound to video": wan("WAN22_S2V", model_type="s2v", audio_inject_layers=[0]),
    "HuMo": wan("WAN21_HuMo", model_type="humo"),
    "Wan 2.2 Animate": wan("WAN22_Animate", model_type="animate", in_dim=36),
    "FlowRVS": wan("WAN21_FlowRVS", model_type="flow_rvs"),
    "SCAIL": wan("WAN21_SCAIL", model_type="scail", in_dim=20),
    "SCAIL 2": wan("WAN21_SCAIL2", model_type="scail2", in_dim=20),
    "WanDancer": wan("WAN22_WanDancer", model_type="wandancer", in_dim=36),
}

MOCHI = {
    "image_model": "mochi_preview", "depth": 2, "patch_size": 2, "num_heads": HEADS,
    "hidden_size_x": WIDTH, "hidden_size_y": 128, "mlp_ratio_x": 48.0, "mlp_ratio_y": 4.0,
    "learn_sigma": False, "in_channels": 12, "qk_norm": True, "qkv_bias": False, "out_bias": True,
    "attn_drop": 0.0, "patch_embed_bias": True, "posenc_preserve_area": True,
    "timestep_mlp_bias": True, "attend_to_padding": False, "timestep_scale": 1000.0,
    "use_t5": True, "t5_feat_dim": TEXT, "t5_token_length": 256, "rope_theta": 10000.0,
}  # fmt: skip
COSMOS = {
    "image_model": "cosmos", "max_img_h": 240, "max_img_w": 240, "max_frames": 128,
    "in_channels": 16, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1,
    "concat_padding_mask": True, "block_config": "FA-CA-MLP", "model_channels": WIDTH,
    "num_blocks": 1, "num_heads": HEADS, "crossattn_emb_channels": TEXT, "pos_emb_cls": "rope3d",
    "pos_emb_learnable": False, "pos_emb_interpolation": "crop", "block_x_format": "THWBD",
    "affline_emb_norm": True, "use_adaln_lora": True, "adaln_lora_dim": 64,
}  # fmt: skip
COG = {
    "image_model": "cogvideox", "num_attention_heads": HEADS, "attention_head_dim": 64,
    "time_embed_dim": 64, "text_embed_dim": TEXT, "num_layers": 1,
    "use_rotary_positional_embeddings": True,
}  # fmt: skip
HUNYUAN15 = {
    **HUNYUAN, "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None,
    "byt5": True, "guidance_embed": False, "use_cond_type_embedding": True, "vision_in_dim": 1152,
    "meanflow_sum": True,
}  # fmt: skip
KANDINSKY5 = {**tiny.KANDINSKY5["unet"], "visual_embed_dim": 132}
MINIMAX = {
    "image_model": "minimax_h3", "hidden_size": 128, "num_layers": 1,
    "token_refiner_num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 128,
    "ffn_hidden_size": 128, "text_dim": TEXT, "time_embed_hidden_size": 64, "time_embed_dim": 64,
}  # fmt: skip
LTX_AV = {
    **tiny.LTX["unet"], "image_model": "ltxav", "audio_cross_attention_dim": 128,
    "audio_attention_head_dim": 64, "audio_num_attention_heads": HEADS,
}  # fmt: skip
SEEDVR = {
    "image_model": "seedvr2", "norm_eps": 1e-5, "num_layers": 2, "mm_layers": 2, "vid_dim": 128,
    "txt_in_dim": TEXT, "heads": 1, "mlp_type": "swiglu", "vid_out_norm": True,
}  # fmt: skip
VIDEOS: dict[str, Recipe] = {
    **WANS,
    "HunyuanVideo": model("HunyuanVideo", HUNYUAN, LLAMA, "wan"),
    "HunyuanVideo, image to video": refused("HunyuanVideoI2V", {**HUNYUAN, "in_channels": 33}),
    "SkyReels, image to video": refused("HunyuanVideoSkyreelsI2V", {**HUNYUAN, "in_channels": 32}),
    "HunyuanVideo 1.5": refused("HunyuanVideo15", HUNYUAN15),
    "HunyuanVideo 1.5 upscaler": refused(
        "HunyuanVideo15_SR_Distilled", {**HUNYUAN15, "in_channels": 98}
    ),
    "LTX-Video": tiny.LTX,
    "LTX-2": model("LTXAV", LTX_AV, standing_in(), "averages"),
    "MiniMax H3": model("MiniMaxH3", MINIMAX, standing_in(), "averages"),
    "Mochi": model("GenmoMochi", MOCHI, t5("genmo", "MochiT5Tokenizer", "mochi_te"), "averages"),
    "Cosmos 1, text to video": refused("CosmosT2V", COSMOS),
    "Cosmos 1, image to video": refused("CosmosI2V", {**COSMOS, "in_channels": 17}),
    "Cosmos Predict2, image to video": refused(
        "CosmosI2VPredict2", {**tiny.COSMOS["unet"], "in_channels": 17}
    ),
    "CogVideoX, text to video": refused("CogVideoX_T2V", COG),
    "CogVideoX, image to video": refused("CogVideoX_I2V", {**COG, "in_channels": 32}),
    "CogVideoX, inpainting": refused("CogVideoX_Inpaint", {**COG, "in_channels": 48}),
    "Kandinsky 5 Video": refused("Kandinsky5", KANDINSKY5),
    "SeedVR2 (restores videos)": model("SeedVR2", SEEDVR, standing_in(), "averages"),
}
