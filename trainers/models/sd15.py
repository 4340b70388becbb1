"""Stable Diffusion 1.5 and everything finetuned from 1.x: one UNet, CLIP-L, epsilon or v.

The published UNet has 860 M parameters; smaller ones with the same layout are the same family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..contracts import DENOISER, Family, Parts, Text, Tokens
from . import clip, unet
from .precision import computes_in

CLIP_L = "clip_l"

# openai/clip-vit-large-patch14, text half: what its config.json says.
CLIP_L_FACTS = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "eos_token_id": 49407,
}


def build(name: str, facts: Mapping[str, Any]) -> nn.Module:
    if name == DENOISER:
        return unet.build_unet(facts)
    return clip.build_clip({**CLIP_L_FACTS, **facts})


def checkpoint(module: nn.Module) -> None:
    """Trade time for memory: recompute activations in the backward pass."""
    if hasattr(module, "enable_gradient_checkpointing"):  # diffusers
        module.enable_gradient_checkpointing()  # type: ignore[operator]
    elif hasattr(module, "activation_checkpointing_enable"):  # transformers from 5.23 on
        module.activation_checkpointing_enable()  # type: ignore[operator]
    else:
        module.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]


def encode_text(parts: Parts, tokens: Tokens) -> Text:
    """{"hidden": (B, 77, 768)}."""
    ids = tokens[CLIP_L].to(parts.device)
    return {"hidden": clip.hidden_state(parts.modules[CLIP_L], ids, parts.clip_skip)}


def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, text: Text) -> Tensor:
    dtype = computes_in(denoiser)
    prediction: Tensor = denoiser(
        noisy.to(dtype), timesteps, encoder_hidden_states=text["hidden"].to(dtype)
    ).sample
    return prediction


SD15 = Family(
    name="sd15",
    title="Stable Diffusion 1.5",
    latent_scale=0.18215,
    latent_stride_px=8,
    build=build,
    checkpoint=checkpoint,
    encode_text=encode_text,
    predict=predict,
    lora_targets={
        choice: {DENOISER: unet.LORA_TARGETS[choice], CLIP_L: clip.LORA_TARGETS[choice]}
        for choice in unet.LORA_TARGETS
    },
    file_prefixes={DENOISER: "lora_unet", CLIP_L: "lora_te_text_model"},
    modelspec="stable-diffusion-v1",
    base_model_version="sd_v1",
)
