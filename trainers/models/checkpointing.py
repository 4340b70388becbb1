"""Gradient checkpointing of any module, block by block.

A block is the smallest module that stands in a list of modules and has layers of its own: a
residual block, a transformer block. Blocks may change their input in place (`x += ...`), so each
gets a copy of it inside the part that is computed again; with the module's norms and what trains
guarded too (`guard_norms`, `guard_adapters`), the gradients are those without checkpointing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.checkpoint import checkpoint

from ..settings.memory import ALL, HALF, NONE

LISTS = (nn.ModuleList, nn.Sequential)
EVERY = {ALL: 1, HALF: 2}
_inside = False
# What layers read in the first pass of the block that is at work, and as which version.
_reads: list[tuple[_Guard, Tensor, int]] | None = None


def checkpoint_blocks(module: nn.Module, which: str = ALL, in_ram: bool = False) -> int:
    """Let blocks of `module` recompute their activations in the backward pass; how many.

    Args:
        which: one of CHECKPOINTED: all of them, every second one, or none.
        in_ram: whether what they are given waits for the backward pass in RAM, not on the device.
    """
    found = [] if which == NONE else list(blocks(module))[:: EVERY[which]]
    for block in found:
        _checkpoint(block, in_ram)
    return len(found)


def blocks(module: nn.Module, listed: bool = False) -> Iterator[nn.Module]:
    """The blocks of `module`; see the top of this file.

    Args:
        listed: whether `module` is a list of modules.
    """
    for child in module.children():
        if isinstance(child, LISTS):
            yield from blocks(child, listed=True)
        elif any(_lists_blocks(inner) for inner in child.modules()):
            yield from blocks(child)
        elif listed and any(True for _ in child.children()):
            yield child


def run_on_copies(block: nn.Module) -> None:
    """Let a block change what it is given though others need that as it was; in place."""
    block.forward = _on_copies(block.forward)


def inside_checkpoint() -> bool:
    """Whether a checkpointed block is at work: what it saves for the backward pass is dropped."""
    return _inside


def _lists_blocks(module: nn.Module) -> bool:
    # A list of layers has no blocks, such as an attention's output with its dropout, or a
    # feed-forward whose first of three layers has one in it.
    if not isinstance(module, nn.ModuleList):
        return False
    with_layers = [entry for entry in module if any(True for _ in entry.children())]
    return 2 * len(with_layers) > len(module)


def _checkpoint(block: nn.Module, in_ram: bool) -> None:
    forward = block.forward
    on_copies = _on_copies(forward)

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        number, names = len(args), tuple(kwargs)
        again = itertools.count()

        def marked(*given: Any) -> Any:
            with _marked(is_first=not next(again)):
                return on_copies(*given[:number], **dict(zip(names, given[number:], strict=True)))

        with _inputs_in_ram() if in_ram else nullcontext():
            # All in a row: what has a name would be kept where it is.
            return checkpoint(marked, *args, *kwargs.values(), use_reentrant=False)

    block.forward = checkpointed


def _inputs_in_ram() -> AbstractContextManager[Any]:
    # What a block saves by itself is dropped by checkpoint's own hooks, which lie inside of these.
    # Of pinned tensors torch takes care: their memory is not used again before they are copied.
    return save_on_cpu(pin_memory=torch.cuda.is_available())


@contextmanager
def _marked(is_first: bool) -> Iterator[None]:
    """A block is computed: for the first time, or again in the backward pass."""
    global _inside, _reads
    before = _inside, _reads
    _inside, _reads = True, [] if is_first else None
    try:
        yield
        for guard, read, version in _reads or ():
            guard.changes |= read._version != version
    finally:
        _inside, _reads = before


def _on_copies(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return forward(*map(_copy, args), **{k: _copy(v) for k, v in kwargs.items()})

    return run


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def guard_norms(module: nn.Module) -> None:
    """Let each norm of `module` keep its own copy of what it needs for the backward pass.

    Transformers add to their residual stream in place after a norm has saved it. The copy takes
    no more memory: the stream itself would have been kept. UNets, which alone have group norms,
    do no such thing.
    """
    for layer in module.modules():
        if "Norm" in type(layer).__name__ and not isinstance(layer, nn.GroupNorm):
            layer.register_forward_pre_hook(_own_input)


def _own_input(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    x = args[0] if args else None
    if not (isinstance(x, Tensor) and torch.is_grad_enabled()):
        return None
    saves = x.requires_grad or any(p.requires_grad for p in layer.parameters(recurse=False))
    return (x.clone(), *args[1:]) if saves else None


def guard_adapters(module: nn.Module) -> None:
    """The same for each layer that trains, where what it is given changes afterwards.

    Such a layer reads a stream without a norm, as the queries of LTX-Video's cross-attention do.
    In a checkpointed block the first pass tells whether that changes: nothing is kept in it, so it
    is early enough, and torch itself would not tell when the block is computed again. Outside, a
    stream that was changed before will be changed again; others torch refuses.
    """
    for layer in module.modules():
        own = [*layer.parameters(recurse=False)]
        for child in layer.children():  # an adapter's numbers in a dict of parameters
            own += child.parameters() if isinstance(child, nn.ParameterDict) else []
        if is_parametrized(layer):
            own += layer.parametrizations.parameters()  # type: ignore[union-attr]
        # An adapter with narrow copies gives them its input by itself.
        narrow = hasattr(layer, "narrow_adapter")
        if narrow or any(parameter.requires_grad for parameter in own):
            layer.register_forward_pre_hook(_Guard())


class _Guard:
    """Gives a layer a copy of what it reads, where that changes afterwards.

    Attributes:
        changes: whether it ever did so in a checkpointed block.
    """

    changes = False

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x = args[0] if args else None
        if not (isinstance(x, Tensor) and torch.is_grad_enabled()):
            return None
        if not torch.compiler.is_compiling():  # a compiler copies only where it must
            if _reads is not None:
                _reads.append((self, x, x._version))
                return None
            if not (self.changes if _inside else x._version):
                return None
        return (x.clone(), *args[1:])
