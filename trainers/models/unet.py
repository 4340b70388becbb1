"""The UNet of Stable Diffusion 1, 2 and XL: diffusers' class from a checkpoint's own facts."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .convolution import use_small_map_convolutions

# What every layer that attends, and every feed-forward and projection around it, is called.
ATTENTION = r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
FEED_FORWARD = r".*\.(ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out)"
CONVOLUTIONS = (
    r".*\.(conv1|conv2|conv_shortcut|time_emb_proj)|.*\.(downsamplers|upsamplers)\.0\.conv"
    r"|conv_in|conv_out|time_embedding\.linear_[12]"
)
LORA_TARGETS = {
    "attention": ATTENTION,
    "attention and feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
    "all with convolutions": f"{ATTENTION}|{FEED_FORWARD}|{CONVOLUTIONS}",
}


def build_unet(facts: Mapping[str, Any]) -> nn.Module:
    """An empty UNet2DConditionModel on the meta device.

    Args:
        facts: the LDM-style config of a checkpoint: model_channels, channel_mult, num_res_blocks,
            transformer_depth and transformer_depth_output (one entry a residual block),
            context_dim, in_channels, out_channels, num_heads or num_head_channels,
            use_linear_in_transformer.
    """
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**diffusers_config(facts))  # type: ignore[no-untyped-call]
    use_small_map_convolutions(unet)
    return typing.cast(nn.Module, unet)


def diffusers_config(facts: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers' config for a UNet with these LDM facts; see `build_unet`."""
    channels = tuple(facts["model_channels"] * multiplier for multiplier in facts["channel_mult"])
    blocks_per_level = facts["num_res_blocks"]
    assert len(set(blocks_per_level)) == 1, "diffusers wants the same number of blocks everywhere"
    num_blocks = blocks_per_level[0]
    depths = [
        facts["transformer_depth"][level * num_blocks] for level in range(len(blocks_per_level))
    ]
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    up = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)]
    return {
        "in_channels": facts["in_channels"],
        "out_channels": facts["out_channels"],
        "block_out_channels": channels,
        "layers_per_block": num_blocks,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "transformer_layers_per_block": tuple(depth or 1 for depth in depths),
        "cross_attention_dim": facts["context_dim"],
        # diffusers' name for the number of heads, kept by it for old configs.
        "attention_head_dim": _num_heads(facts, channels),
        "use_linear_projection": facts["use_linear_in_transformer"],
    }


def _num_heads(facts: Mapping[str, Any], channels: tuple[int, ...]) -> int | tuple[int, ...]:
    if facts.get("num_heads", -1) > 0:
        return int(facts["num_heads"])
    return tuple(width // facts["num_head_channels"] for width in channels)
