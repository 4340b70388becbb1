"""Adapters that compute in their base's narrow dtype, while what is trained stays fp32.

peft computes an adapter in the dtype of its weights: it widens a layer's input, and narrows what
comes out. Where the base computes in bf16 or fp16, here copies of the adapters' weights are
narrowed instead, all of them at once when the module begins to run:

    h = W x + B' A' x        A' = A and B' = s B in the base's dtype

So no activation is cast, and none is kept a second time in fp32. Gradients come in the narrow dtype
and are widened at once at the end of the backward pass; the optimizer sees fp32 alone. This is how
autocast trains adapters elsewhere (kohya's scripts, diffusers'). A LoHa or LoKr is made in fp32 as
peft makes it, and its change of the weight is narrowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.loha import layer as loha
from peft.tuners.lokr import layer as lokr
from peft.tuners.lora import layer as lora
from torch import Tensor, nn


def compute_narrow(module: nn.Module, adapter: str, dtype: torch.dtype) -> None:
    """Let the adapters of `module` compute in `dtype`, which its activations are in; in place.

    Those that have no such form, as DoRA and OFT, stay as they are.
    """
    pairs: list[Any] = []
    layer: Any
    for layer in module.modules():
        if type(layer) in MADE_WHOLE:
            layer.__class__, layer.narrow_dtype = MADE_WHOLE[type(layer)], dtype
        elif type(layer) in PAIRS and adapter not in layer.lora_variant:
            layer.__class__, layer.narrow_adapter = PAIRS[type(layer)], adapter
            pairs.append(layer)
    if pairs:
        module.register_forward_pre_hook(_Narrowing(pairs, adapter, dtype))


class _Narrowing:
    """Before a module runs: hands each of its adapters a narrow copy of what it trains.

    They stay until it runs again, since checkpointed blocks run once more in the backward pass.
    """

    def __init__(self, layers: Sequence[Any], adapter: str, dtype: torch.dtype) -> None:
        self._layers, self._adapter, self._dtype = layers, adapter, dtype

    def __call__(self, module: nn.Module, args: Any) -> None:
        name = self._adapter
        downs = [layer.lora_A[name].weight for layer in self._layers]
        ups = [layer.lora_B[name].weight for layer in self._layers]
        scales = [layer.scaling[name] for layer in self._layers]
        copies = _Narrowed.apply(self._dtype, scales, *downs, *ups)  # type: ignore[no-untyped-call]
        for layer, down, up in zip(
            self._layers, copies[: len(downs)], copies[len(downs) :], strict=True
        ):
            layer.narrow = down, up


class _Narrowed(torch.autograd.Function):
    """Copies in another dtype, the second half of them scaled, in as few launches as it takes."""

    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, scales: list[float], *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.scales = scales if set(scales) != {1.0} else None
        ctx.dtype = weights[0].dtype
        wide = list(weights)
        if ctx.scales:
            half = len(scales)
            wide[half:] = torch._foreach_mul(wide[half:], scales)
        return _as(wide, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        places = [place for place, one in enumerate(gradients) if one is not None]
        given = _as([one for one in gradients if one is not None], ctx.dtype)
        wide: list[Tensor | None] = [None] * len(gradients)
        for place, gradient in zip(places, given, strict=True):
            wide[place] = gradient
        if ctx.scales:
            half = len(ctx.scales)
            ups = [(w, s) for w, s in zip(wide[half:], ctx.scales, strict=True) if w is not None]
            if ups:
                torch._foreach_mul_([up for up, _ in ups], [scale for _, scale in ups])
        return None, None, *wide


def _as(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    if not tensors:
        return ()
    layout = torch.contiguous_format  # as the weights are, so that no gradient is copied again
    copies = tuple(torch.empty_like(one, dtype=dtype, memory_format=layout) for one in tensors)
    torch._foreach_copy_(copies, tuple(tensors))
    return copies


class _Pair:
    """peft's layer of LoRA, with copies of its weights that compute in the dtype of its input.

    Attributes:
        narrow: A' and B'; None before the module has run.
        narrow_adapter: whose they are.
    """

    narrow: tuple[Tensor, Tensor] | None = None
    narrow_adapter: str

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.narrow is None or x.dtype != self.narrow[0].dtype or self.disable_adapters:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc, no-any-return]
        down, up = self.narrow
        name = self.narrow_adapter
        inner = self.applied(self.lora_A[name], self.lora_dropout[name](x), down)
        change = self.applied(self.lora_B[name], inner, up)
        return self.base_layer(x, *args, **kwargs) + change  # type: ignore[no-any-return]


class PairLinear(_Pair, lora.Linear):
    """LoRA of a linear layer."""

    @staticmethod
    def applied(factor: nn.Linear, x: Tensor, weight: Tensor) -> Tensor:
        """What a factor makes of x with another weight."""
        return F.linear(x, weight)


class PairConv2d(_Pair, lora.Conv2d):
    """LoRA of a convolution."""

    @staticmethod
    def applied(factor: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
        """What a factor makes of x with another weight."""
        made: Tensor = factor._conv_forward(x, weight, None)  # small maps have one of their own
        return made


class _Whole:
    """peft's layer of LoHa or LoKr, whose change of the weight is narrowed."""

    narrow_dtype: torch.dtype

    def get_delta_weight(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The change, (out, in) or (out, in, height, width)."""
        return super().get_delta_weight(*args, **kwargs).to(self.narrow_dtype)  # type: ignore


PAIRS: dict[type, type] = {lora.Linear: PairLinear, lora.Conv2d: PairConv2d}
MADE_WHOLE: dict[type, type] = {
    kind: type(f"Narrow{kind.__name__}", (_Whole, kind), {})
    for kind in (loha.Linear, loha.Conv1d, loha.Conv2d, lokr.Linear, lokr.Conv1d, lokr.Conv2d)
}
