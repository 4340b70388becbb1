"""The host's transformers that make pictures."""

from __future__ import annotations

from tests import tiny_transformers as tiny
from tests.scanned.recipes import (
    GEMMA2,
    HUNYUAN_IMAGE,
    HYDIT_BERT,
    LETTERS,
    TextSide,
    model,
    qwen,
    refused,
    standing_in,
    t5,
)
from tests.tiny_transformers import HEADS, SHALLOW, T5, TEXT, WIDTH, Recipe, llm

PIXART = {
    "image_model": "pixart_alpha", "num_heads": HEADS, "patch_size": 2, "hidden_size": 144,
    "in_channels": 4, "depth": 2, "model_max_length": 120, "input_size": 128, "pe_interpolation": 2,
    "micro_condition": True, "caption_channels": TEXT,
}  # fmt: skip
PIXART_TEXT = t5("pixart_t5", "PixArtTokenizer", "pixart_te")
HYDIT = {
    "image_model": "hydit", "depth": 4, "hidden_size": 128, "num_heads": HEADS,
    "text_states_dim": TEXT, "text_states_dim_t5": TEXT,
}  # fmt: skip
HYDIT_TEXT: TextSide = {
    "text": "hydit", "tokenizer": "HyditTokenizer", "encoder": "HyditModel",
    "sizes": {"hydit_clip": HYDIT_BERT, "mt5xl": T5}, "vocabulary": "mt5xl.spiece_model",
}  # fmt: skip
LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 192,
    "cap_feat_dim": TEXT, "n_layers": 2, "qk_norm": True, "n_heads": HEADS, "n_kv_heads": 1,
    "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512], "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}  # fmt: skip
HIDREAM = {
    "image_model": "hidream", "attention_head_dim": 128, "num_attention_heads": HEADS,
    "axes_dims_rope": [64, 32, 32], "caption_channels": [TEXT, TEXT], "max_resolution": [128, 128],
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "llama_layers": [0, 1],
    "num_routed_experts": 4, "num_activated_experts": 2, "num_layers": 1, "num_single_layers": 1,
    "text_emb_dim": 2048,
}  # fmt: skip
HIDREAM_TEXT: TextSide = {
    "text": "hidream", "tokenizer": "HiDreamTokenizer", "encoder": "hidream_clip",
    "sizes": {"clip_l": SHALLOW, "clip_g": SHALLOW, "t5xxl": T5, "llama": llm(2)},
}  # fmt: skip
HUNYUAN = {
    "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16,
    "patch_size": [1, 2, 2], "vec_in_dim": 768, "axes_dim": [16, 56, 56], "meanflow": False,
    "context_in_dim": TEXT, "hidden_size": WIDTH, "mlp_ratio": 4.0, "num_heads": HEADS, "depth": 2,
    "depth_single_blocks": 2, "theta": 256, "qkv_bias": True, "byt5": False,
    "guidance_embed": True, "use_cond_type_embedding": False, "vision_in_dim": None,
    "meanflow_sum": False,
}  # fmt: skip
HUNYUAN_IMAGES = {
    **HUNYUAN, "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "axes_dim": [64, 64],
    "vec_in_dim": None, "byt5": True, "guidance_embed": False,
}  # fmt: skip
RADIANCE = {
    **tiny.CHROMA["unet"], "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3,
    "patch_size": 16, "nerf_hidden_size": 64, "nerf_mlp_ratio": 4, "nerf_depth": 2,
    "nerf_max_freqs": 8, "nerf_tile_size": 512, "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": None, "use_x0": False, "use_sequential_txt_ids": False,
}  # fmt: skip
Z_PIXELS = {
    **tiny.Z_IMAGE["unet"], "image_model": "zimage_pixel", "patch_size": 16, "in_channels": 3,
    "decoder_in_channels": 768, "decoder_hidden_size": 128, "decoder_num_res_blocks": 1,
}  # fmt: skip
PIXELDIT = {
    "image_model": "pixeldit_t2i", "hidden_size": 128, "num_groups": HEADS,
    "pixel_attn_hidden_size": 128, "pixel_num_groups": HEADS, "patch_depth": 2, "pixel_depth": 1,
    "txt_embed_dim": TEXT,
}  # fmt: skip
PIXELDIT_TEXT: TextSide = {
    "text": "pixeldit", "tokenizer": "PixelDiTGemma2Tokenizer", "encoder": "pixeldit_te",
    "sizes": {"gemma2_2b": llm(3)}, **LETTERS,
}  # fmt: skip
PICTURES: dict[str, Recipe] = {
    "Stable Diffusion 3.5": tiny.SD3,
    "AuraFlow": tiny.AURA_FLOW,
    "PixArt Alpha": model("PixArtAlpha", PIXART, PIXART_TEXT, resolution=512),
    "PixArt Sigma": model(
        "PixArtSigma",
        {
            **PIXART, "image_model": "pixart_sigma", "micro_condition": False,
            "model_max_length": 300,
        },
        PIXART_TEXT,
        resolution=512,
    ),
    "HunyuanDiT 1.2": model("HunyuanDiT", HYDIT, HYDIT_TEXT),
    "HunyuanDiT 1.1": model(
        "HunyuanDiT1",
        {**HYDIT, "image_model": "hydit1", "size_cond": True, "use_style_cond": True},
        HYDIT_TEXT,
    ),
    "FLUX.1 dev": tiny.FLUX,
    "FLUX.1 schnell": {
        **tiny.FLUX, "model": "FluxSchnell",
        "unet": {**tiny.FLUX["unet"], "guidance_embed": False},
    },
    "FLUX.1 Fill, and control": refused("FluxInpaint", {**tiny.FLUX["unet"], "in_channels": 96}),
    "FLUX.2 klein": tiny.KLEIN,
    "FLUX.2 dev": model(
        "Flux2", {**tiny.KLEIN["unet"], "guidance_embed": True, "context_in_dim": TEXT},
        standing_in(),
    ),
    "LongCat-Image": tiny.LONGCAT,
    "Chroma": tiny.CHROMA,
    "Chroma Radiance": model("ChromaRadiance", RADIANCE, PIXART_TEXT, "pixels"),
    "Lens": model(
        "Lens",
        {
            "image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 2,
            "num_attention_heads": HEADS, "enc_hidden_dim": TEXT, "selected_layer_index": [0, 1],
        },
        standing_in(2 * TEXT),
    ),
    "Cosmos Predict2": tiny.COSMOS,
    "Anima": tiny.ANIMA,
    "Lumina Image 2": model("Lumina2", LUMINA, GEMMA2),
    "Z-Image": tiny.Z_IMAGE,
    "Z-Image in pixels": model(
        "ZImagePixelSpace", Z_PIXELS, qwen("z_image", "ZImageTokenizer", "qwen3_4b", 3), "pixels"
    ),
    "PixelDiT": model("PixelDiTT2I", PIXELDIT, PIXELDIT_TEXT, "pixels"),
    "PiD (decoder of pixels)": model(
        "PiD", {**PIXELDIT, "image_model": "pid", "lq_hidden_dim": 64}, PIXELDIT_TEXT, "pixels"
    ),
    "HiDream I1": model("HiDream", HIDREAM, HIDREAM_TEXT),
    "HiDream O1": {**tiny.HIDREAM_O1, "note": "see below"},
    "OmniGen2": tiny.OMNIGEN2,
    "Boogu": model(
        "Boogu",
        {
            "image_model": "boogu", "hidden_size": WIDTH, "num_layers": 1,
            "num_double_stream_layers": 1, "num_refiner_layers": 1, "num_attention_heads": HEADS,
            "num_kv_heads": 1, "multiple_of": 64, "axes_dim_rope": [32, 48, 48],
            "instruction_feat_dim": TEXT,
        },
        qwen("boogu", "BooguTokenizer", "qwen3vl_8b"),
    ),
    "Mage-Flow": model(
        "MageFlow",
        {
            "image_model": "mage_flow", "in_channels": 128, "num_layers": 2,
            "num_attention_heads": HEADS, "joint_attention_dim": TEXT,
        },
        qwen("mage_flow", "MageFlowTokenizer", "qwen3vl_4b"),
    ),
    "Qwen-Image": tiny.QWEN_IMAGE,
    "JoyImage": tiny.JOY_IMAGE,
    "Ideogram 4": model(
        "Ideogram4",
        {
            "image_model": "ideogram4", "in_channels": 128, "num_layers": 2,
            "num_attention_heads": HEADS, "attention_head_dim": 128, "intermediate_size": 256,
            "adaln_dim": 64, "llm_features_dim": 13 * TEXT,
        },
        qwen("ideogram4", "Ideogram4Tokenizer", "qwen3vl_8b", 36),
    ),
    "Krea 2": tiny.KREA2,
    "ERNIE-Image": model(
        "ErnieImage",
        {
            "image_model": "ernie", "hidden_size": WIDTH, "num_attention_heads": HEADS,
            "num_layers": 2, "ffn_hidden_size": 256, "text_in_dim": TEXT,
        },
        standing_in(),
    ),
    "HunyuanImage 2.1": model("HunyuanImage21", HUNYUAN_IMAGES, HUNYUAN_IMAGE, "averages"),
    "HunyuanImage 2.1 refiner": refused(
        "HunyuanImage21Refiner",
        {**HUNYUAN, "in_channels": 128, "out_channels": 64, "patch_size": [1, 1, 1],
         "vec_in_dim": None},
    ),
    "Kandinsky 5 Image": tiny.KANDINSKY5,
}  # fmt: skip
