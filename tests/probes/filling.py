"""A file's numbers in the trainer's own layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def fill(
    parts: Any, module_name: str, lora: dict[str, torch.Tensor], named: Callable[..., str]
) -> int:
    """Put a file's numbers into the trainer's layers; into how many.

    Args:
        named: the pack's `layer_name`.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lycoris_utils import LycorisLayer

    filled = 0
    for name, layer in parts.modules[module_name].named_modules():
        if not isinstance(layer, LoraLayer | LycorisLayer) and not hasattr(layer, "oft_blocks"):
            continue
        start = f"{named(parts, module_name, name)}."
        held = {key.removeprefix(start): lora[key] for key in lora if key.startswith(start)}
        held.pop("alpha")
        if isinstance(layer, LoraLayer):
            fill_lora(layer, held)
        for ending in held:
            own = getattr(layer, ending)
            (own["default"] if isinstance(layer, LycorisLayer) else own).copy_(held[ending])
        filled += 1
    return filled


def fill_lora(layer: Any, held: dict[str, torch.Tensor]) -> None:
    """The same for one of peft's LoRA layers; takes what it knows out of `held`."""
    for factors, endings, axis in (
        (layer.lora_A, ("lora_down.weight", "lora_A.weight"), 0),
        (layer.lora_B, ("lora_up.weight", "lora_B.weight"), 1),
    ):
        both = next(held.pop(ending) for ending in endings if ending in held)
        parts = both.chunk(len(factors), dim=axis)  # a PiSSA's second half is its start
        for factor, part in zip(factors.values(), parts, strict=True):
            factor.weight.copy_(part)
    if "default" in layer.lora_magnitude_vector:
        # The file's scale is per length of W; DoRA's own is per length of W + BA.
        weight = layer.get_base_layer().weight.float()
        merged = weight + layer.get_delta_weight("default")
        ratio = merged.flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)
        magnitude = layer.lora_magnitude_vector["default"].weight
        scale = held.pop("dora_scale").flatten().to(ratio.device) * ratio
        magnitude.copy_(scale.reshape(magnitude.shape))
