"""A LoRA onto the host's MODEL and CLIP, as clones; the inputs stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.sd
from torch import Tensor


def apply_lora(
    model: Any, clip: Any, lora: Mapping[str, Tensor], strength_model: float, strength_clip: float
) -> tuple[Any, Any]:
    """(MODEL, CLIP) with `lora` patched in by the host's own loader; None stays None."""
    patched: tuple[Any, Any] = comfy.sd.load_lora_for_models(
        model, clip, dict(lora), strength_model, strength_clip
    )
    return patched
