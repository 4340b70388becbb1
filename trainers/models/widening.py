"""Layers that compute in fp32 on weights stored in fp16 or bf16, without an fp32 copy of them.

Autocast narrows weights layer by layer; torch has nothing that widens them so. Here the large
weights (of linear layers and convolutions) are widened into one scratch tensor when their layer
runs, and once more in the backward pass, for which only the stored weight is kept. So a frozen
model trains in fp32 in the memory of its file, with the same numbers as a widened copy would give.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import SmallMapConv2d

NARROW = (torch.float16, torch.bfloat16)


class Scratch:
    """Room for one widened weight; the next one takes its place."""

    def __init__(self) -> None:
        self._room = torch.empty(0)

    def widened(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """`weight` in `dtype`, until the next call."""
        if self._room.numel() < weight.numel() or self._room.device != weight.device:
            # Fresh memory each time would cost three times as much, most of it page faults.
            self._room = torch.empty(weight.numel(), dtype=dtype, device=weight.device)
        return self._room[: weight.numel()].view(weight.shape).copy_(weight)


Gradients = tuple[Tensor | None, ...]


class _Linear(torch.autograd.Function):
    """y = x W^T + b; x (..., in), W (out, in), b (out,) or None."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scratch: Scratch
    ) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.scratch = scratch
        return F.linear(x, scratch.widened(weight, x.dtype), _like(x, bias))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = dy @ ctx.scratch.widened(weight, dy.dtype)
        if ctx.needs_input_grad[1]:
            dweight = (dy.flatten(0, -2).T @ x.flatten(0, -2)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            dbias = dy.flatten(0, -2).sum(0).to(weight.dtype)
        return dx, dweight, dbias, None


class _Product(torch.autograd.Function):
    """y = W x; W (out, in), x (in, N)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor, scratch: Scratch) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[0] else None, weight)
        ctx.scratch = scratch
        return scratch.widened(weight, x.dtype) @ x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        dx = dweight = None
        if ctx.needs_input_grad[1]:
            dx = ctx.scratch.widened(weight, dy.dtype).T @ dy
        if ctx.needs_input_grad[0]:
            dweight = (dy @ x.T).to(weight.dtype)
        return dweight, dx, None


class _Convolution(torch.autograd.Function):
    """nn.functional.conv2d as the layer is set; x (B, in, H, W)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: WideConv2d
    ) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.shape, ctx.layer = x.shape, layer
        wide = layer.scratch.widened(weight, x.dtype)
        output: Tensor = layer._conv_forward(x, wide, _like(x, bias))
        return output

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        layer: WideConv2d = ctx.layer
        if x is None:  # of a frozen layer only its shape matters
            x = dy.new_empty(()).expand(ctx.shape)
        dx, dweight, dbias = torch.ops.aten.convolution_backward(
            dy, x, layer.scratch.widened(weight, dy.dtype), [len(weight)],
            layer.stride, layer.padding, layer.dilation, False, [0, 0], layer.groups,
            ctx.needs_input_grad[:3],
        )  # fmt: skip
        return dx, *(None if d is None else d.to(weight.dtype) for d in (dweight, dbias)), None


class WideLinear(nn.Linear):
    """nn.Linear that computes in the dtype of its input."""

    scratch: Scratch

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.dtype == input.dtype:
            return super().forward(input)
        return _applied(_Linear, input, self.weight, self.bias, self.scratch)


class WideConv2d(SmallMapConv2d):
    """SmallMapConv2d that computes in the dtype of its input."""

    scratch: Scratch

    def convolve(self, input: Tensor) -> Tensor:
        if self.weight.dtype == input.dtype:
            return super().convolve(input)
        return _applied(_Convolution, input, self.weight, self.bias, self)

    def product(self, columns: Tensor) -> Tensor:
        if self.weight.dtype == columns.dtype:
            return super().product(columns)
        return _applied(_Product, self.weight.flatten(1), columns, self.scratch)


class WideLayerNorm(nn.LayerNorm):
    """nn.LayerNorm that computes in the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = _like(input, self.weight), _like(input, self.bias)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class WideGroupNorm(nn.GroupNorm):
    """nn.GroupNorm that computes in the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = _like(input, self.weight), _like(input, self.bias)
        return F.group_norm(input, self.num_groups, weight, bias, self.eps)


_WIDE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: WideLinear,
    nn.Conv2d: WideConv2d,
    SmallMapConv2d: WideConv2d,
    nn.LayerNorm: WideLayerNorm,
    nn.GroupNorm: WideGroupNorm,
}


def widen(module: nn.Module, dtype: torch.dtype) -> None:
    """Make `module` compute in `dtype` whatever its weights are stored in, in place.

    The layers' classes change; parameters and their names stay as they are. What it computes in
    is then trainers.precision.computes_in(module).
    """
    scratch = Scratch()
    for layer in module.modules():
        if type(layer) in _WIDE:
            layer.__class__ = _WIDE[type(layer)]
            layer.scratch = scratch  # type: ignore[assignment]
        elif isinstance(layer, nn.Embedding):
            layer.computes_in = dtype  # type: ignore[assignment]
            layer.register_forward_hook(lambda layer, ids, rows: rows.to(dtype))
    module.computes_in = dtype  # type: ignore[assignment]


def _applied(function: type[torch.autograd.Function], *inputs: Any) -> Tensor:
    output: Tensor = function.apply(*inputs)  # type: ignore[no-untyped-call]
    return output


def _like(x: Tensor, small: Tensor | None) -> Tensor | None:
    return None if small is None else small.to(x.dtype)
