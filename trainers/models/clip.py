"""CLIP text encoders: transformers' class, and which of its hidden states a prompt is read from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = r".*\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"
FEED_FORWARD = r".*\.mlp\.(fc1|fc2)"
LORA_TARGETS = {
    "attention": ATTENTION,
    "attention and feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
    "all with convolutions": f"{ATTENTION}|{FEED_FORWARD}",
}


def build_clip(facts: Mapping[str, Any]) -> nn.Module:
    """An empty CLIPTextModel on the meta device, but for its position ids.

    Args:
        facts: fields of transformers' CLIPTextConfig.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        module: nn.Module = CLIPTextModel(CLIPTextConfig(**facts))
    for owner in module.modules():
        # The one buffer that no checkpoint holds.
        if (ids := getattr(owner, "position_ids", None)) is not None and ids.is_meta:
            owner.position_ids = torch.arange(ids.shape[-1]).expand(ids.shape)
    return module


def hidden_state(encoder: nn.Module, tokens: Tensor, clip_skip: int | None) -> Tensor:
    """The normed hidden state of one layer, (B, L, D), for token ids (B, L).

    Args:
        clip_skip: the layer, counted from the end (-1 the last, -2 the one before ...); None is
            the last.
    """
    if clip_skip in (None, -1):
        last: Tensor = encoder(input_ids=tokens).last_hidden_state
        return last
    states = encoder(input_ids=tokens, output_hidden_states=True).hidden_states
    # transformers 4 keeps the layers one level deeper than transformers 5.
    inner = getattr(encoder, "text_model", encoder)
    normed: Tensor = inner.final_layer_norm(states[clip_skip])  # type: ignore[operator]
    return normed
