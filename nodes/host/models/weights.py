"""What was learned onto the host's MODEL and CLIP, as clones; the inputs stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.sd
import torch
from torch import Tensor

from ....trainers.contracts import DENOISER, Family
from .twin import alias, host_side


def apply_lora(
    model: Any, clip: Any, lora: Mapping[str, Tensor], strength_model: float, strength_clip: float
) -> tuple[Any, Any]:
    """(MODEL, CLIP) with `lora` patched in by the host's own loader; None stays None."""
    patched: tuple[Any, Any] = comfy.sd.load_lora_for_models(
        model, clip, dict(lora), strength_model, strength_clip
    )
    return patched


def apply_weights(model: Any, clip: Any, weights: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """(MODEL, CLIP) with `weights` in the place of their own; None stays None.

    They are patches like any other: what is patched in later works on top of them.

    Args:
        weights: by module and the module's own key, as `changed_weights` gives them.
    """
    if model is None:
        return None, None
    by_module = _by_module(weights)
    trained_model, trained_clip = model.clone(), clip.clone()
    for name, tensors in by_module.items():
        *_, host_key = host_side(model, clip, name)
        target = trained_model if name == DENOISER else trained_clip
        patches = {host_key(key): ("set", (tensor,)) for key, tensor in tensors.items()}
        applied = target.add_patches(patches)
        assert len(applied) == len(patches), "every key is one of the host's"
    return trained_model, trained_clip


def changed_weights(model: Any, clip: Any, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of `learned` that differ from what the sockets carry, in the host's own dtypes."""
    changed = {}
    for name, tensors in _by_module(learned).items():
        _, patcher, weights, host_key = host_side(model, clip, name)
        for key, tensor in tensors.items():
            place = host_key(key)
            was = alias(weights[place]).cpu()
            now = tensor.to("cpu", was.dtype)
            if place in patcher.patches or not torch.equal(now, was):
                changed[f"{name}.{key}"] = now
    return changed


def weights_bytes(model: Any, clip: Any, names: tuple[str, ...]) -> int:
    """What all weights of these modules take in the host's own dtypes."""
    total = 0
    for name in names:
        _, _, weights, host_key = host_side(model, clip, name)
        prefix = "" if name == DENOISER else f"{name}."
        total += sum(
            weight.numel() * weight.element_size()
            for key, weight in weights.items()
            if key.startswith(prefix)
        )
    return total


def trained_modules(family: Family, trains_text: bool) -> tuple[str, ...]:
    """Names of the modules that a full training changes."""
    return (DENOISER, *family.text_encoders) if trains_text else (DENOISER,)


def _by_module(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    by_module: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.items():
        name, _, own_key = key.partition(".")
        by_module.setdefault(name, {})[own_key] = tensor
    return by_module
