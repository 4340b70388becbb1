"""Weights as ComfyUI-GGUF holds them, where its loader does not give the host's own kind.

Its layers keep a tensor of packed bytes that says of what kind it is (`tensor_type`) and what shape
it stands for (`tensor_shape`), and make the weight by their own `get_weight(tensor, dtype)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .....trainers.models.quantized import Stored
from .storage import alias


def is_packed(weight: Tensor) -> bool:
    """Whether a weight is one of GGUF's, packed or not."""
    kinds = (type(weight).__name__, type(weight.data).__name__)
    return hasattr(weight, "tensor_type") or any("GGML" in kind for kind in kinds)


def opens(layer: nn.Module, weight: Any) -> bool:
    """Whether a layer can make its weight of what it holds."""
    return hasattr(layer, "get_weight") and getattr(weight, "tensor_shape", None) is not None


def stored(layer: Any, weight: Any) -> Stored:
    """A packed weight on its own storage."""
    shape = tuple(weight.tensor_shape)

    def make(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        return unpacked(layer, weight, dtype, tensors[0])

    return Stored({"packed": packed(weight)}, make, shape)


def unpacked(layer: Any, weight: Any, dtype: torch.dtype, held: Tensor | None = None) -> Tensor:
    """The weight that a layer makes of a packed one, without patches.

    Args:
        held: the bytes, if they are elsewhere by now.
    """
    held = packed(weight) if held is None else held
    told = {"tensor_type": weight.tensor_type, "tensor_shape": weight.tensor_shape}
    made: Tensor = layer.get_weight(type(weight)(held, **told, patches=[]), dtype)
    return made.as_subclass(Tensor).to(dtype).reshape(tuple(weight.tensor_shape))


def packed(weight: Any) -> Tensor:
    """What a weight holds, as a plain tensor on its storage."""
    return alias(weight.as_subclass(Tensor))
