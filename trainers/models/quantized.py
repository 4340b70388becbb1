"""Frozen layers whose weight is made of what is stored when they run, and once more backward.

What is stored are codes with their scales, or a weight in another dtype: plain tensors, which are
the layer's buffers. The weight that is made of them is there for as long as one product takes, in
the dtype of the layer's input. Nothing of it is kept for the backward pass, which makes it again.
So a quantized model trains in the memory of its file and of one layer, with the gradients that the
same model would have with its weights widened.

An adapter beside such a layer changes the weight that is made, W + BA: the arithmetic of QLoRA,
arXiv 2305.14314.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import grad
from torch.utils._pytree import tree_map

input_gradient: Callable[..., Tensor] = grad.conv2d_input
# (what is stored, a dtype) -> the weight
Make = Callable[[Sequence[Tensor], torch.dtype], Tensor]
# (what is stored, ids (N,), a dtype) -> these rows of the weight, (N, D)
MakeRows = Callable[[Sequence[Tensor], Tensor, torch.dtype], Tensor]

OF_LINEAR = ("in_features", "out_features")
OF_CONVOLUTION = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed",
    "output_padding", "groups", "padding_mode", "_reversed_padding_repeated_twice",
)  # fmt: skip
OF_EMBEDDING = (
    "num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type",
    "scale_grad_by_freq", "sparse",
)  # fmt: skip
PREFIX = "stored_"  # of buffers


@dataclass(frozen=True)
class Stored:
    """How a weight is stored.

    Attributes:
        tensors: what it is made of, by name.
        make: makes it.
        shape: of the weight.
        rows: makes some of its rows; None: `make` makes all.
    """

    tensors: Mapping[str, Tensor]
    make: Make
    shape: tuple[int, ...]
    rows: MakeRows | None = None

    def on(self, device: torch.device) -> Stored:
        """The same there; tensors that are there are not copied."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return Stored(moved, self.make, self.shape, self.rows)

    def weight(self, dtype: torch.dtype) -> Tensor:
        return self.make(list(self.tensors.values()), dtype)


def as_it_is(weight: Tensor) -> Stored:
    """A weight that is stored as a tensor of its shape, in any dtype."""

    def rows(tensors: Sequence[Tensor], ids: Tensor, dtype: torch.dtype) -> Tensor:
        return tensors[0][ids].to(dtype)

    return Stored({"weight": weight}, _cast, tuple(weight.shape), rows)


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return tensors[0].to(dtype)


def _hold(layer: nn.Module, stored: Stored, dtype: torch.dtype) -> None:
    layer.stored, layer.held_dtype = _How(stored), dtype  # type: ignore[assignment]
    for name, tensor in stored.tensors.items():
        layer.register_buffer(f"{PREFIX}{name}", tensor)


class _How:
    """A Stored without its tensors, which are the layer's buffers and may move."""

    def __init__(self, stored: Stored) -> None:
        self.names = [f"{PREFIX}{name}" for name in stored.tensors]
        self.make, self.shape, self.rows = stored.make, stored.shape, stored.rows


def _tensors(layer: Any) -> list[Tensor]:
    return [layer._buffers[name] for name in layer.stored.names]


def _weight(layer: Any) -> Tensor:
    """For who asks a layer for its weight: to know its shape or its dtype, mostly."""
    return _Later(layer.stored, _tensors(layer), layer.held_dtype)


class StoredLinear(nn.Linear):
    """A frozen linear layer.

    Args:
        like: what has its sizes.
        bias: (out,) or None.
        dtype: of its weight for who asks for that; the layer computes in its input's.
        input_scale: (in,) or None: what the input is multiplied by first (AWQ's smoothing).
    """

    weight = property(_weight)
    input_scale: Tensor | None

    def __init__(
        self,
        like: Any,
        stored: Stored,
        bias: nn.Parameter | None,
        dtype: torch.dtype,
        input_scale: Tensor | None = None,
    ) -> None:
        _begin(self, like, OF_LINEAR, bias)
        _hold(self, stored, dtype)
        self.register_buffer("input_scale", input_scale)

    def forward(self, input: Tensor) -> Tensor:
        if self.input_scale is not None:
            input = input * self.input_scale.to(input.dtype)
        bias = None if self.bias is None else self.bias.to(input.dtype)

        def product(x: Tensor, weight: Tensor) -> Tensor:
            return nn.functional.linear(x, weight, bias)

        return _applied(self, input, product, _linear_backward)


class StoredConv2d(nn.Conv2d):
    """A frozen convolution, padded with so many zeros; arguments as of StoredLinear."""

    weight = property(_weight)

    def __new__(cls, like: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(like, int):  # peft makes its own convolutions of the class it adapts
            return nn.Conv2d(like, *args, **kwargs)
        return super().__new__(cls)

    def __init__(
        self, like: Any, stored: Stored, bias: nn.Parameter | None, dtype: torch.dtype
    ) -> None:
        _begin(self, like, OF_CONVOLUTION, bias)
        _hold(self, stored, dtype)

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)

        def product(x: Tensor, weight: Tensor) -> Tensor:
            made: Tensor = self._conv_forward(x, weight, bias)
            return made

        def backward(gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
            sizes = self.stride, self.padding, self.dilation, self.groups
            return input_gradient(shape, weight, gradient, *sizes)

        return _applied(self, input, product, backward)


class StoredEmbedding(nn.Embedding):
    """A frozen table, of which only the rows that are looked up are made."""

    weight = property(_weight)

    def __init__(self, like: Any, stored: Stored, dtype: torch.dtype) -> None:
        _begin(self, like, OF_EMBEDDING, None)
        _hold(self, stored, dtype)

    def forward(self, input: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        dtype: Any = out_dtype or self.held_dtype
        how: Any = self.stored
        tensors = _tensors(self)
        ids = input.flatten()
        rows = how.make(tensors, dtype)[ids] if how.rows is None else how.rows(tensors, ids, dtype)
        return rows.unflatten(0, input.shape)  # type: ignore[no-any-return]


def _begin(layer: nn.Module, like: Any, sizes: Sequence[str], bias: nn.Parameter | None) -> None:
    """What torch's own __init__ does, but for the weight."""
    nn.Module.__init__(layer)
    vars(layer).update({name: getattr(like, name) for name in sizes})
    layer.register_parameter("bias", bias)


def scale_before_adapters(module: nn.Module) -> None:
    """Let adapters beside layers that scale their input see it as the layers' weights do; in place.

    Whoever reads an adapter's file adds it to the weight, behind the scale.
    """
    for layer in module.modules():
        inner = getattr(layer, "base_layer", None)
        if isinstance(inner, StoredLinear) and inner.input_scale is not None:
            layer.register_buffer("input_scale", inner.input_scale)
            inner.input_scale = None
            layer.register_forward_pre_hook(_scaled)


def _scaled(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *others = args
    scale: Any = layer.input_scale
    return (x * scale.to(x.dtype), *others)


# -- weights that are there for a moment ------------------------------------------------------

Product = Callable[[Tensor, Tensor], Tensor]
Backward = Callable[[Tensor, Tensor, torch.Size], Tensor]


def _applied(layer: Any, input: Tensor, product: Product, backward: Backward) -> Tensor:
    how = layer.stored.make, product, backward
    made: Tensor = _Frozen.apply(input, how, *_tensors(layer))  # type: ignore[no-untyped-call]
    return made


def _linear_backward(gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    return gradient @ weight


class _Frozen(torch.autograd.Function):
    """product(x, W) with a gradient for x alone; it keeps what W is made of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: tuple[Make, Product, Backward], *stored: Tensor) -> Any:
        make, product, ctx.backward_product = how
        # As saved tensors: a checkpoint lets them go, and they may have another place next time.
        ctx.save_for_backward(*stored)
        ctx.make, ctx.shape = make, x.shape
        return product(x, make(stored, x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        stored = ctx.saved_tensors
        made = ctx.backward_product(gradient, ctx.make(stored, gradient.dtype), ctx.shape)
        return made, None, *[None] * len(stored)


class _Later(Tensor):
    """A weight that is made when somebody computes with it, and only told of until then.

    Layers are asked for the shape or the dtype of their weights time and again; peft's LoKr does so
    at each step.
    """

    _how: tuple[Make, list[Tensor], torch.dtype]

    @staticmethod
    def __new__(cls, how: _How, tensors: list[Tensor], dtype: torch.dtype) -> _Later:
        made: _Later = torch.Tensor._make_wrapper_subclass(
            cls, how.shape, dtype=dtype, device=tensors[0].device
        )
        made._how = how.make, tensors, dtype
        return made

    def __init__(self, *_: Any) -> None:
        pass

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return func(*tree_map(_made, args), **tree_map(_made, kwargs or {}))


def _made(value: Any) -> Any:
    if not isinstance(value, _Later):
        return value
    make, tensors, dtype = value._how
    return make(tensors, dtype)
