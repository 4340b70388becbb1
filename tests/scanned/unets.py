"""The host's UNets."""

from __future__ import annotations

from tests.scanned.recipes import CLIP_H, CLIP_L, CLIP_LG, model, refused
from tests.tiny_transformers import Recipe

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "legacy": False,
    "num_res_blocks": [1, 1], "channel_mult": [1, 2], "use_spatial_transformer": True,
    "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1, "use_temporal_attention": False, "adm_in_channels": None,
    "num_classes": None, "num_head_channels": 64, "context_dim": 768,
    "use_linear_in_transformer": False,
}  # fmt: skip
UNET2 = {**UNET, "context_dim": 1024, "use_linear_in_transformer": True}
UNETXL = {
    **UNET2, "context_dim": 2048, "num_classes": "sequential", "adm_in_channels": 2816,
}  # fmt: skip
VIDEO = {
    **UNET2, "in_channels": 8, "num_classes": "sequential", "adm_in_channels": 768,
    "use_temporal_attention": True, "use_temporal_resblock": True, "extra_ff_mix_layer": True,
    "use_spatial_context": True, "merge_strategy": "learned_with_images",
    "video_kernel_size": [3, 1, 1],
}  # fmt: skip
UNCLIP = "by text alone, without the picture that it may be given"
ADM = {"num_classes": "sequential", "adm_in_channels": 64}
UNETS: dict[str, Recipe] = {
    "Stable Diffusion 1.5": model("SD15", UNET, CLIP_L),
    "Stable Diffusion 1.5 inpainting": refused("SD15", {**UNET, "in_channels": 9}),
    "InstructPix2Pix": refused("SD15_instructpix2pix", {**UNET, "in_channels": 8}),
    "Stable Zero123": refused(
        "Stable_Zero123", {**UNET, "in_channels": 8},
        state={"cc_projection.weight": [768, 772], "cc_projection.bias": [768]},
    ),
    "Stable Diffusion 2": model("SD20", UNET2, CLIP_H),
    "Stable unCLIP 2.1 (ViT-L)": model(
        "SD21UnclipL", {**UNET2, **ADM, "adm_in_channels": 1536}, CLIP_H, note=UNCLIP
    ),
    "Stable unCLIP 2.1 (ViT-H)": model(
        "SD21UnclipH", {**UNET2, **ADM, "adm_in_channels": 2048}, CLIP_H, note=UNCLIP
    ),
    "Stable Diffusion x4 upscaler": refused(
        "SD_X4Upscaler",
        {**UNET2, "in_channels": 7, "disable_self_attentions": [True, False]},
    ),
    "Lotus (depth and normals)": refused("LotusD", {**UNET2, **ADM, "adm_in_channels": 4}),
    "SDXL": model("SDXL", UNETXL, CLIP_LG),
    "SSD-1B": model("SSD1B", UNETXL, CLIP_LG),
    "Segmind Vega": model("Segmind_Vega", UNETXL, CLIP_LG),
    "KOALA 700M": model("KOALA_700M", UNETXL, CLIP_LG),
    "KOALA 1B": model("KOALA_1B", UNETXL, CLIP_LG),
    "SDXL refiner": refused(
        "SDXLRefiner", {**UNETXL, "context_dim": 1280, "adm_in_channels": 2560}
    ),
    "SDXL InstructPix2Pix": refused("SDXL_instructpix2pix", {**UNETXL, "in_channels": 8}),
    "Stable Video Diffusion": refused("SVD_img2vid", VIDEO),
    "SV3D, orbit": refused("SV3D_u", {**VIDEO, "adm_in_channels": 256}),
    "SV3D, camera path": refused("SV3D_p", {**VIDEO, "adm_in_channels": 1280}),
    "Stable Cascade, stage C": refused(
        "Stable_Cascade_C",
        {
            "stable_cascade_stage": "c", "c_cond": 64, "c_hidden": [64, 64], "nhead": [2, 2],
            "blocks": [[1, 1], [1, 1]],
        },
    ),
    "Stable Cascade, stage B": refused(
        "Stable_Cascade_B",
        {
            "stable_cascade_stage": "b", "c_cond": 64, "c_hidden": [64, 64, 64, 64],
            "nhead": [-1, -1, 2, 2], "blocks": [[1, 1, 1, 1], [1, 1, 1, 1]],
            "block_repeat": [[1, 1, 1, 1], [1, 1, 1, 1]],
        },
    ),
}  # fmt: skip
