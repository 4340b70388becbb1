"""Layers that compute in fp32 on weights stored in fp16 or bf16, without an fp32 copy of them.

torch's autocast narrows weights layer by layer; nothing in torch widens them so. Here a layer's
weights are widened when it runs, and once more in the backward pass, for which only the stored
weight is kept. So a model trains in fp32 in the memory of its file, with the same numbers as a
widened copy would give.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .checkpointing import inside_checkpoint

NARROW = (torch.float16, torch.bfloat16)
SMALL = 4096  # numbers; a bias or a norm is not worth the scratch


class Scratch:
    """Room for one widened weight; the next one takes its place."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self._room = dtype, torch.empty(0)

    def widened(self, weight: Tensor) -> Tensor:
        """`weight` in the wide dtype; one that is neither small nor trained until the next call."""
        if weight.requires_grad or weight.numel() <= SMALL or inside_checkpoint():
            return _to(weight, self.dtype)
        if self._room.numel() < weight.numel() or self._room.device != weight.device:
            # Fresh memory each time would cost three times as much, most of it page faults.
            self._room = torch.empty(weight.numel(), dtype=self.dtype, device=weight.device)
        return self._room[: weight.numel()].view(weight.shape).copy_(weight)


def _to(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype, memory_format=torch.contiguous_format)  # as the scratch has it


class _Later(NamedTuple):
    """A view of a widened weight, to be made again."""

    name: str
    weight: Tensor
    view: tuple[torch.Size, tuple[int, ...], int]


def compute_wide(layer: nn.Module, scratch: Scratch) -> None:
    """Let `layer` compute in the scratch's dtype, in place; parameters stay as they are."""
    narrow_ones = [
        (name, p) for name, p in layer.named_parameters(recurse=False) if p.dtype in NARROW
    ]
    names = [name for name, _ in narrow_ones]
    # The scratch holds one; a layer's others, mostly its bias, stand beside it.
    largest = max(narrow_ones, key=lambda entry: entry[1].numel(), default=("", None))[0]
    forward = layer.forward

    def widened(name: str, weight: Tensor) -> Tensor:
        return scratch.widened(weight) if name == largest else _to(weight, scratch.dtype)

    def unpack(kept: Any) -> Tensor:
        if not isinstance(kept, _Later):
            return kept  # type: ignore[no-any-return]
        return widened(kept.name, kept.weight.detach()).as_strided(*kept.view)

    def wide_forward(*args: Any, **kwargs: Any) -> Any:
        own = layer._parameters
        narrow = {name: own[name] for name in names}
        wide = {name: widened(name, p) for name, p in narrow.items() if p is not None}
        # Not by where it lies in memory: fake tensors lie nowhere.
        sources = {w.untyped_storage()._cdata: name for name, w in wide.items()}

        def pack(tensor: Tensor) -> Tensor | _Later:
            name = sources.get(tensor.untyped_storage()._cdata)
            if name is None:
                return tensor
            weight = narrow[name]
            assert weight is not None
            view = (tensor.size(), tensor.stride(), int(tensor.storage_offset()))
            return _Later(name, weight, view)

        own.update(wide)  # type: ignore[arg-type]
        try:
            if inside_checkpoint():  # whose own hooks have to see what is saved
                return forward(*args, **kwargs)
            with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                return forward(*args, **kwargs)
        finally:
            own.update(narrow)

    if names:
        layer.forward = wide_forward
