"""Layers of the host whose weights are quantized, as frozen layers that train beside adapters.

Read are the host's own QuantizedTensor (scaled fp8, mxfp8, nvfp4, int8, int4; a GGUF file too where
its loader holds it so), plain fp8 without a scale, and GGUF's tensors. What makes a weight of them
is the host's or the loader's own function. The host's product of quantized numbers is never used:
it rounds what goes in, and has no exact gradient.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from comfy.quant_ops import QuantizedTensor, get_layout_class
from torch import Tensor, nn

from .....trainers.errors import UnavailableError
from .....trainers.models.architectures import UNMODULATED
from .....trainers.models.quantized import (
    Stored,
    StoredConv2d,
    StoredEmbedding,
    StoredLinear,
    as_it_is,
)
from .....trainers.settings.training import AS_IT_IS, FP8, INT8
from . import gguf
from .storage import alias

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# By their classes' names: the host has quantized ones of its own, which are none of torch's.
LINEAR, CONVOLUTION, EMBEDDING = KINDS = ("Linear", "Conv2d", "Embedding")
# The host's layouts for quantize_base, with one scale for a tensor and one for each output.
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    FP8: ("TensorCoreFP8E4M3Layout", {"scale": "recalculate"}),
    INT8: ("TensorWiseINT8Layout", {"per_channel": True}),
}
LEAST = 1 << 16  # numbers of a weight that is worth it
# What K (musubi-tuner's fp8_optimization) and A leave in the file's dtype, in whatever block.
SENSITIVE = r".*(norm|embed|emb_layers|adaln).*"


def stored_weight(layer: nn.Module) -> Stored | None:
    """The quantized weight of a host's layer, on the host's storage; None for all other layers."""
    weight: Any = layer._parameters.get("weight")
    if weight is None or type(layer).__name__ not in KINDS:
        return None
    if isinstance(weight, QuantizedTensor):
        return _of_layout(weight)
    if gguf.is_packed(weight):
        return gguf.stored(layer, weight)
    dtype = model_dtype(layer, "weight")
    if dtype not in FLOAT8 or _is_odd_convolution(layer):
        return None
    return as_it_is(alias(weight).to(dtype))


def is_scale(layer: nn.Module, name: str) -> bool:
    """Whether a parameter only scales what goes into a quantized layer."""
    return name in ("input_scale", "pre_quant_scale") and type(layer).__name__ == LINEAR


def is_of_host_alone(layer: nn.Module) -> bool:
    """Whether a linear layer is of the host's kind that may be quantized and is none of torch's."""
    return type(layer).__name__ == LINEAR and not isinstance(layer, nn.Linear)


def is_quantized(module: nn.Module) -> bool:
    """Whether a layer of `module` has a quantized weight."""
    return any(stored_weight(layer) is not None for layer in module.modules())


def model_dtype(layer: nn.Module, name: str) -> torch.dtype:
    """What the host computes with of a layer's weight: one that streams narrows it on the way."""
    noted: torch.dtype | None = getattr(layer, f"{name}_comfy_model_dtype", None)
    held: torch.dtype = getattr(layer, name).dtype
    return noted or held


def frozen_layer(
    layer: nn.Module, stored: Stored, bias: Tensor | None, dtype: torch.dtype
) -> nn.Module:
    """What stands in a twin for a layer of the host with such a weight.

    Args:
        bias: as it is computed with; or None.
        dtype: what the twin computes in.
    """
    kept = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
    kind = type(layer).__name__
    if kind == EMBEDDING:
        return StoredEmbedding(layer, stored, dtype)
    if kind == CONVOLUTION:
        return StoredConv2d(layer, stored, kept, dtype)
    scale = getattr(layer, "pre_quant_scale", None)
    if scale is not None:
        scale = alias(scale).to(next(iter(stored.tensors.values())).device)
    return StoredLinear(layer, stored, kept, dtype, scale)


def inner_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """What a host's weight has storage of: itself, or what a quantized one is made of."""
    if isinstance(tensor, QuantizedTensor):
        yield tensor._qdata
        yield from _parameters_of(tensor).values()
    else:
        yield tensor


def alike(weight: Tensor, like: Callable[[Tensor], Tensor]) -> Tensor:
    """A weight made of what `like` gives for each of its inner tensors."""
    if not isinstance(weight, QuantizedTensor):
        return like(weight)
    inner = {name: like(tensor) for name, tensor in _parameters_of(weight).items()}
    params = dataclasses.replace(weight._params, **inner)
    made = QuantizedTensor(like(weight._qdata), weight._layout_cls, params)
    return nn.Parameter(made, requires_grad=False)


# -- what the host quantized ------------------------------------------------------------------


def _of_layout(weight: Any) -> Stored:
    named = _parameters_of(weight)
    layout, params = weight._layout_cls, weight._params
    fixed = {
        field.name: getattr(params, field.name)
        for field in dataclasses.fields(params)
        if field.name not in named
    }
    kind = type(params)

    def quantized(tensors: Sequence[Tensor], dtype: torch.dtype, shape: Any) -> Any:
        codes, *others = tensors
        told = {**fixed, "orig_dtype": dtype, "orig_shape": shape}
        return QuantizedTensor(codes, layout, kind(**dict(zip(named, others, strict=True)), **told))

    def make(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        weight: Tensor = quantized(tensors, dtype, fixed["orig_shape"]).dequantize()
        return weight

    def rows(tensors: Sequence[Tensor], ids: Tensor, dtype: torch.dtype) -> Tensor:
        # The host has tables in formats with one scale for all, or one for each row.
        codes, scale = tensors
        own = scale if scale.numel() == 1 else scale[ids]
        shape = (len(ids), fixed["orig_shape"][1])
        made: Tensor = quantized([codes[ids], own], dtype, shape).dequantize()
        return made

    tensors = {"codes": weight._qdata, **named}
    return Stored(
        {name: alias(tensor) for name, tensor in tensors.items()}, make,
        tuple(fixed["orig_shape"]), rows,
    )  # fmt: skip


def _parameters_of(weight: Any) -> dict[str, Tensor]:
    params = weight._params
    held = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    return {name: value for name, value in held.items() if isinstance(value, Tensor)}


def _is_odd_convolution(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d):
        return False
    return layer.padding_mode != "zeros" or isinstance(layer.padding, str)


# -- quantizing on the way in -----------------------------------------------------------------


def check_quantizes(quantized: str) -> None:
    """See that this host can quantize weights so.

    Args:
        quantized: one of QUANTIZED.

    Raises:
        UnavailableError: it cannot.
    """
    if quantized != AS_IT_IS and _layout(quantized) is None:
        raise UnavailableError(
            f"quantize_base is '{quantized}', but this ComfyUI has no kernels for it (package "
            f"comfy_kitchen, layout {LAYOUTS[quantized][0]}).\nUpdate ComfyUI and its "
            "requirements, or set quantize_base to none."
        )


def _layout(quantized: str) -> Any:
    try:
        return get_layout_class(LAYOUTS[quantized][0])
    except KeyError:
        return None


def to_quantize(path: str, layer: nn.Module) -> bool:
    """Whether a plain layer is one that quantize_base quantizes: a large one inside of a block."""
    weight = layer._parameters.get("weight")
    return (
        type(layer).__name__ == LINEAR
        and weight is not None
        and weight.numel() >= LEAST
        and re.fullmatch(UNMODULATED, path) is not None
        and re.fullmatch(SENSITIVE, path, re.IGNORECASE) is None
    )


def quantized_as(quantized: str, weight: Tensor) -> Stored:
    """A plain weight as `quantized`, one of QUANTIZED but none, has it; by the host's own kernels.

    Args:
        weight: (out, in), where it is to stay; it is widened to fp32 for a moment.
    """
    layout, options = LAYOUTS[quantized]
    return _of_layout(QuantizedTensor.from_float(weight.float(), layout, **options))
