"""What else the host loads as a model: sound, shapes, and what finds things in pictures."""

from __future__ import annotations

from tests.scanned.recipes import model, refused, standing_in
from tests.tiny_transformers import TEXT, Recipe

AUDIO = {
    "audio_model": "dit1.0", "io_channels": 64, "embed_dim": 64, "num_heads": 2, "depth": 1,
    "cond_token_dim": TEXT, "global_cond_dim": 1536, "timestep_features_type": "learned",
}  # fmt: skip
SECONDS = "conditioner.conditioners.{}.embedder.embedding.{}"
SECONDS_SHAPES = {"0.weights": [128], "1.weight": [768, 257], "1.bias": [768]}


def seconds(*names: str) -> dict[str, list[int]]:
    """What Stable Audio reads of its conditioners, zeros."""
    return {
        SECONDS.format(name, ending): shape
        for name in names
        for ending, shape in SECONDS_SHAPES.items()
    }


ACE = {
    "audio_model": "ace", "attention_head_dim": 64, "in_channels": 8, "inner_dim": 128,
    "max_height": 16, "max_position": 1024, "max_width": 1024, "mlp_ratio": 2.5,
    "num_attention_heads": 2, "num_layers": 1, "out_channels": 8, "patch_size": [16, 1],
    "speaker_embedding_dim": 512, "text_embedding_dim": TEXT, "lyric_hidden_size": 64,
}  # fmt: skip
ACE15 = {
    "audio_model": "ace1.5", "hidden_size": 128, "intermediate_size": 128, "num_heads": 2,
    "num_kv_heads": 1, "encoder_hidden_size": 128, "encoder_intermediate_size": 128,
    "encoder_num_heads": 2, "num_dit_layers": 1, "text_hidden_dim": TEXT, "num_lyric_layers": 1,
    "num_timbre_layers": 1, "num_tokenizer_layers": 1, "fsq_dim": 128,
}  # fmt: skip
SHAPES = {
    "image_model": "hunyuan3d2", "in_channels": 64, "context_in_dim": TEXT, "hidden_size": 128,
    "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
}  # fmt: skip
SHAPES21 = {
    "image_model": "hunyuan3d2_1", "in_channels": 64, "context_dim": TEXT, "hidden_size": 128,
    "num_heads": 2, "depth": 1, "num_moe_layers": 0, "guidance_cond_proj_dim": None,
}  # fmt: skip
SPLAT = {
    "image_model": "triposplat", "q_token_length": 64, "model_channels": 128,
    "cond_channels": TEXT, "num_blocks": 1, "num_refiner_blocks": 1,
}  # fmt: skip
OTHERS: dict[str, Recipe] = {
    "Stable Audio": refused(
        "StableAudio", AUDIO, state=seconds("seconds_start", "seconds_total")
    ),
    "Stable Audio 3": refused(
        "StableAudio3",
        {**AUDIO, "io_channels": 256, "global_cond_dim": 768},
        state=seconds("seconds_total"),
    ),
    "ACE-Step": model("ACEStep", ACE, standing_in(), "averages"),
    "ACE-Step 1.5": refused("ACEStep15", ACE15),
    "Hunyuan3D 2": refused("Hunyuan3Dv2", SHAPES),
    "Hunyuan3D 2 mini": refused("Hunyuan3Dv2mini", SHAPES),
    "Hunyuan3D 2.1": refused("Hunyuan3Dv2_1", SHAPES21),
    "TripoSplat": model("TripoSplat", SPLAT, standing_in(), "averages"),
    "RT-DETR (finds things)": refused("RT_DETR_v4", {"image_model": "RT_DETR_v4"}),
    "SAM 3 (finds things)": refused("SAM3", {"image_model": "SAM3"}, meta=True),
    "SAM 3.1 (finds things)": refused("SAM31", {"image_model": "SAM31"}, meta=True),
    "Depth Anything 3": refused(
        "DepthAnything3",
        {
            "image_model": "DepthAnything3", "backbone_name": "vits", "head_dim_in": 384,
            "out_layers": [5, 7, 9, 11], "head_features": 64,
            "head_out_channels": [48, 96, 192, 384],
        },
        meta=True,
    ),
}  # fmt: skip
