"""A model's blocks, compiled by torch (torch.compile), each kind of block once.

Not the whole model: its blocks are alike, so what is compiled for one serves all of its class and
shapes (torch's recipe "regional compilation"), and whatever a model does between them need not be
understood by the compiler. What a block gives stays the same but for rounding, since operations
are done together whose results were rounded one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException  # torch has no public name for its failures

from .checkpointing import blocks

log = logging.getLogger(__name__)

# A UNet's residual blocks alone are of a dozen shapes; torch would compile 8, and leave the others.
MOST_SHAPES = 64
EAGER_BACKWARD = "force_non_lazy_backward_lowering"  # of torch's settings, not in the oldest
# How the host's models tell a block which one it is, in a dict beside much else. No block computes
# with it, but each would be compiled by itself for it.
PLACES = frozenset({"block", "block_index", "block_type", "total_blocks", "transformer_index"})


def compile_blocks(module: nn.Module, device: torch.device, backend: str = "inductor") -> int:
    """Let every block of `module` run compiled where it has gradients, in place; how many.

    Without them, for previews and where a picture is only watched, blocks run as they are. None is
    compiled where this machine has no compiler for the device, and all run as they are from the
    first one on that cannot be compiled; the log says so. Call it before `checkpoint_blocks`, so
    that what is computed again is compiled too; adapters may come later.

    Args:
        backend: what torch compiles with.
    """
    found = [block for block in blocks(module) if not _has_own_ways(block)]
    if found and (why := _failure(device, backend)):
        log.warning("Personalize: blocks are not compiled, since torch cannot do so here: %s", why)
        return 0
    state, kinds = _State(), {type(block) for block in found}
    compiled = {kind: torch.compile(_own_code(kind), backend=backend) for kind in kinds}
    for block in found:
        block.forward = _run(block, compiled[type(block)], state)
    return len(found)


@contextmanager
def compiling(wanted: bool = True) -> Iterator[None]:
    """Inside, blocks of many shapes may be compiled; afterwards torch keeps none of it."""
    if not wanted:
        yield
        return
    config: Any = torch._dynamo.config
    many = {"recompile_limit": MOST_SHAPES, "accumulated_recompile_limit": 4 * MOST_SHAPES}
    try:
        with config.patch(**many), _both_passes():
            yield
    finally:
        torch.compiler.reset()


@contextmanager
def _both_passes() -> Iterator[None]:
    """Inside, a backward pass is compiled together with its forward pass.

    By itself torch compiles it when it is first run, in the middle of the loss's backward pass,
    where nothing can run in its place any more.
    """
    config: Any = torch._functorch.config
    if not hasattr(config, EAGER_BACKWARD):
        yield
        return
    with config.patch(EAGER_BACKWARD, True):
        yield


class _State:
    """Whether the blocks of a module can be compiled; one that cannot tells for all."""

    works = True


def _run(block: nn.Module, compiled: Callable[..., Any], state: _State) -> Callable[..., Any]:
    plain = block.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        if not (state.works and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        try:
            return compiled(block, *map(_without_place, args), **_without_places(kwargs))
        except TorchDynamoException as error:
            state.works = False
            log.warning(
                "Personalize: blocks run as they are, since one cannot be compiled: %s",
                _line(error),
            )
        return plain(*args, **kwargs)

    return run


def _on_copies(block: Any, /, *args: Any, **kwargs: Any) -> Any:
    # Blocks may change what they are given, and the compiler keeps just that for the backward pass
    # where it can. A copy inside of what it compiles costs nothing: it sees what becomes of it.
    given = [value.clone() if isinstance(value, Tensor) else value for value in args]
    named = {k: v.clone() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    return type(block).forward(block, *given, **named)


def _own_code(kind: type) -> Callable[..., Any]:
    """The same for one class of blocks: torch keeps what it compiled by the code that it was."""
    code = _on_copies.__code__
    return FunctionType(code.replace(co_name=f"{code.co_name}_{kind.__name__}"), globals())


def _without_place(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: entry for name, entry in value.items() if name not in PLACES}


def _without_places(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: _without_place(value) for name, value in kwargs.items()}


def _has_own_ways(block: nn.Module) -> bool:
    """Whether layers of a block widen their weights (recast.py), which no compiler follows."""
    return any("forward" in vars(layer) for layer in block.modules())


def _failure(device: torch.device, backend: str) -> str:
    """Why torch cannot compile for a device on this machine; nothing if it can."""
    try:
        with _both_passes():
            given = torch.ones(2, device=device, requires_grad=True)
            torch.compile(_something, backend=backend)(given)
    except TorchDynamoException as error:
        return _line(error)
    return ""


def _something(x: Tensor) -> Tensor:
    return x.sin() + 1


def _line(error: Exception) -> str:
    """What went wrong, in one line."""
    cause: BaseException = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"[:300]
