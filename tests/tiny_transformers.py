"""Recipes of small transformers, as tests.probes.tiny_models reads them."""

from __future__ import annotations

from typing import Any

Recipe = dict[str, Any]

WIDTH, HEADS = 256, 2  # heads of 128, as rotary embeddings of these models have them
TEXT = 64  # the width of what text encoders give
T5 = {"d_model": TEXT, "d_ff": 128, "num_heads": 2, "d_kv": 32, "num_layers": 2}
SHALLOW = {"num_hidden_layers": 3}  # CLIP's widths are fixed by who reads it


def llm(layers: int) -> dict[str, int]:
    """A language model of so many layers."""
    return {
        "hidden_size": TEXT, "intermediate_size": 128, "num_attention_heads": 2,
        "num_key_value_heads": 1, "num_hidden_layers": layers,
    }  # fmt: skip


FLUX_BLOCKS = {
    "hidden_size": WIDTH, "num_heads": HEADS, "depth": 2, "depth_single_blocks": 2,
}  # fmt: skip
FLUX: Recipe = {
    "model": "Flux",
    "unet": {
        **FLUX_BLOCKS, "image_model": "flux", "guidance_embed": True, "in_channels": 16,
        "out_channels": 16, "vec_in_dim": 768, "context_in_dim": TEXT, "mlp_ratio": 4.0,
        "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True,
        "txt_ids_dims": [],
    },
    "text": "flux", "tokenizer": "FluxTokenizer", "encoder": "flux_clip",
    "sizes": {"clip_l": SHALLOW, "t5xxl": T5}, "vae": "taesd",
}  # fmt: skip
KLEIN: Recipe = {
    "model": "Flux2",
    "unet": {
        **FLUX_BLOCKS, "image_model": "flux2", "guidance_embed": False, "in_channels": 128,
        "out_channels": 128, "vec_in_dim": None, "context_in_dim": 3 * TEXT, "mlp_ratio": 3.0,
        "axes_dim": [32, 32, 32, 32], "theta": 2000, "patch_size": 1, "qkv_bias": False,
        "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
        "default_ref_method": "index", "ref_index_scale": 10.0,
    },
    "text": "flux", "tokenizer": "KleinTokenizer", "encoder": "klein_te",
    "sizes": {"qwen3_4b": llm(28)}, "vae": "taesd",
}  # fmt: skip
CHROMA: Recipe = {
    "model": "Chroma",
    "unet": {
        **FLUX_BLOCKS, "image_model": "chroma", "in_channels": 64, "out_channels": 64,
        "context_in_dim": TEXT, "mlp_ratio": 4.0, "axes_dim": [16, 56, 56], "theta": 10000,
        "patch_size": 2, "qkv_bias": True, "in_dim": 64, "out_dim": WIDTH, "hidden_dim": WIDTH,
        "n_layers": 2, "txt_ids_dims": [], "vec_in_dim": None,
    },
    "text": "pixart_t5", "tokenizer": "PixArtTokenizer", "encoder": "pixart_te",
    "sizes": {"t5xxl": T5}, "vae": "taesd",
}  # fmt: skip
Z_IMAGE: Recipe = {
    "model": "ZImage",
    "unet": {
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": WIDTH,
        "cap_feat_dim": TEXT, "n_layers": 2, "qk_norm": True, "n_heads": HEADS,
        "n_kv_heads": HEADS, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
        "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
        "time_scale": 1000.0, "pad_tokens_multiple": 32,
    },
    "text": "z_image", "tokenizer": "ZImageTokenizer", "encoder": "te",
    "sizes": {"qwen3_4b": llm(3)}, "vae": "taesd",
}  # fmt: skip
QWEN_IMAGE: Recipe = {
    "model": "QwenImage",
    "unet": {
        "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 2,
        "num_attention_heads": HEADS, "attention_head_dim": 128, "joint_attention_dim": TEXT,
    },
    "text": "qwen_image", "tokenizer": "QwenImageTokenizer", "encoder": "te",
    "sizes": {"qwen25_7b": llm(2)}, "vae": "wan",
}  # fmt: skip
QWEN_IMAGE_EDIT: Recipe = {  # as the published one from 2511 on
    **QWEN_IMAGE,
    "unet": {**QWEN_IMAGE["unet"], "default_ref_method": "index_timestep_zero"},
    "eyes": {
        "hidden_size": 32, "output_hidden_size": TEXT, "intermediate_size": 64, "num_heads": 2,
        "num_layers": 2,
    },
}  # fmt: skip
KREA2: Recipe = {
    "model": "Krea2",
    "unet": {
        "image_model": "krea2", "features": WIDTH, "channels": 16, "patch": 2, "layers": 2,
        "heads": HEADS, "kvheads": 1, "txtlayers": 12, "txtdim": TEXT, "txtheads": 2,
        "txtkvheads": 2, "tdim": 64,
    },
    "text": "krea2", "tokenizer": "Krea2Tokenizer", "encoder": "te",
    "sizes": {"qwen3vl_4b": llm(36)}, "vae": "wan",
}  # fmt: skip
ANIMA: Recipe = {
    "model": "Anima",
    "unet": {
        "image_model": "anima", "max_img_h": 240, "max_img_w": 240, "max_frames": 128,
        "in_channels": 16, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1,
        "concat_padding_mask": True, "model_channels": WIDTH, "num_blocks": 2, "num_heads": HEADS,
        "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d", "pos_emb_learnable": True,
        "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30, "use_adaln_lora": True,
        "adaln_lora_dim": 64, "extra_per_block_abs_pos_emb": False,
        "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0,
        "rope_t_extrapolation_ratio": 1.0, "extra_h_extrapolation_ratio": 1.0,
        "extra_w_extrapolation_ratio": 1.0, "extra_t_extrapolation_ratio": 1.0,
        "rope_enable_fps_modulation": False,
    },
    "text": "anima", "tokenizer": "AnimaTokenizer", "encoder": "te",
    "sizes": {"qwen3_06b": {**llm(2), "hidden_size": 1024}}, "vae": "wan",
}  # fmt: skip
SD3: Recipe = {
    "model": "SD3",
    "unet": {
        "in_channels": 16, "pos_embed_scaling_factor": None, "depth": 4, "input_size": None,
        "adm_in_channels": 2048, "patch_size": 2, "num_patches": 64 * 64, "pos_embed_max_size": 64,
        "qk_norm": "rms",
        "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": WIDTH},
        },
    },
    "text": "sd3_clip", "tokenizer": "SD3Tokenizer", "encoder": "sd3_clip",
    "arguments": {"clip_l": True, "clip_g": True, "t5": False},
    "sizes": {"clip_l": SHALLOW, "clip_g": SHALLOW}, "vae": "taesd",
}  # fmt: skip


# -- models that no record knows ----------------------------------------------------------

LONGCAT: Recipe = {
    "model": "LongCatImage",
    "unet": {**FLUX["unet"], "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]},
    "text": "longcat_image", "tokenizer": "LongCatImageTokenizer", "encoder": "te",
    "sizes": {"qwen25_7b": llm(2)}, "vae": "taesd",
}  # fmt: skip
AURA_FLOW: Recipe = {
    "model": "AuraFlow",
    "unet": {
        "in_channels": 4, "out_channels": 4, "patch_size": 2, "dim": WIDTH, "n_layers": 3,
        "n_double_layers": 1, "n_heads": HEADS, "global_conddim": WIDTH, "cond_seq_dim": TEXT,
        "max_seq": 256,
    },
    "text": "aura_t5", "tokenizer": "AuraT5Tokenizer", "encoder": "AuraT5Model",
    "sizes": {"pile_t5xl": T5}, "vae": "taesd",
}  # fmt: skip
COSMOS: Recipe = {
    "model": "CosmosT2IPredict2",
    "unet": {
        **ANIMA["unet"], "image_model": "cosmos_predict2", "crossattn_emb_channels": TEXT,
    },
    "text": "cosmos", "tokenizer": "CosmosT5Tokenizer", "encoder": "te",
    "sizes": {"t5xxl": T5}, "vae": "wan",
}  # fmt: skip
OMNIGEN2: Recipe = {
    "model": "Omnigen2",
    "unet": {
        "image_model": "omnigen2", "patch_size": 2, "in_channels": 16, "out_channels": None,
        "hidden_size": WIDTH, "num_layers": 2, "num_refiner_layers": 1,
        "num_attention_heads": HEADS, "num_kv_heads": 1, "multiple_of": 64,
        "ffn_dim_multiplier": None, "norm_eps": 1e-5, "axes_dim_rope": [32, 48, 48],
        "axes_lens": [1024, 256, 256], "text_feat_dim": TEXT, "timestep_scale": 1000.0,
    },
    "text": "omnigen2", "tokenizer": "Omnigen2Tokenizer", "encoder": "te",
    "sizes": {"qwen25_3b": llm(2)}, "vae": "taesd",
}  # fmt: skip
KANDINSKY5: Recipe = {
    "model": "Kandinsky5Image",
    "unet": {
        "image_model": "kandinsky5", "model_dim": WIDTH, "axes_dims": [32, 48, 48],
        "rope_scale_factor": [1.0, 1.0, 1.0], "time_dim": 64, "ff_dim": 512,
        "visual_embed_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 2, "in_text_dim": TEXT,
    },
    "text": "kandinsky5", "tokenizer": "Kandinsky5TokenizerImage", "encoder": "te",
    "sizes": {"qwen25_7b": llm(2), "clip_l": SHALLOW}, "vae": "taesd",
}  # fmt: skip
JOY_IMAGE: Recipe = {
    "model": "JoyImage",
    "unet": {
        "image_model": "joyimage", "in_channels": 16, "hidden_size": WIDTH,
        "patch_size": [1, 2, 2], "num_layers": 2, "num_attention_heads": HEADS, "text_dim": TEXT,
    },
    "text": "joyimage", "tokenizer": "JoyImageTokenizer", "encoder": "te",
    "sizes": {"qwen3vl_8b": llm(2)}, "vae": "wan",
}  # fmt: skip
HIDREAM_O1: Recipe = {  # a language model that draws pixels; its text encoder only gives ids
    "model": "HiDreamO1",
    "unet": {
        "image_model": "hidream_o1",
        "text_config_overrides": {
            "hidden_size": TEXT, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1,
        },
        "vision_config_overrides": {
            "hidden_size": 64, "num_heads": 2, "intermediate_size": 64, "depth": 1,
            "deepstack_visual_indexes": [0],
        },
    },
    "text": "hidream_o1", "tokenizer": "HiDreamO1Tokenizer", "encoder": "HiDreamO1TE", "sizes": {},
    "vae": "pixels",
}  # fmt: skip
LTX: Recipe = {
    "model": "LTXV",
    "unet": {
        "image_model": "ltxv", "num_layers": 2, "attention_head_dim": 64,
        "num_attention_heads": HEADS, "cross_attention_dim": 128, "caption_channels": TEXT,
    },
    "text": "lt", "tokenizer": "LTXVT5Tokenizer", "encoder": "ltxv_te", "sizes": {"t5xxl": T5},
    "vae": "averages",
}  # fmt: skip
