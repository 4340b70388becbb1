"""While models train, the host computes only what autograd can follow."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ldm.common_dit
import comfy.model_management
import comfy.ops
import comfy.quant_ops
import torch
from torch import Tensor

SHIFTS = ("comfy.ldm.pixeldit.model", "comfy.ldm.pixeldit.modules")  # they scale a tensor by itself


@contextmanager
def training_mode(training: bool = True) -> Iterator[None]:
    """Inside, modules take operations that have a backward pass; afterwards all is as it was.

    Most of them ask the host's `in_training`, as for its own trainer. A few forget to, and call
    kernels that autograd knows nothing of, or change in place what it has kept; those are replaced
    by their equals in torch.

    Args:
        training: False, within a training, while the host samples: modules take its fused ways.
    """
    with ExitStack() as stack:
        replace = stack.enter_context
        replace(replaced(comfy.model_management, in_training=training))
        if training:
            # Each layer of the host asks whether Cancel was pressed. In the middle of a step that
            # would leave weights half updated; trainings ask between two steps.
            replace(replaced(comfy.ops, run_every_op=_nothing))
            replace(_plain_kernels())
            norm = comfy.ldm.common_dit.rms_norm
            replace(replaced(comfy.ldm.common_dit, rms_norm=_of_a_copy(norm)))
            for name in SHIFTS:
                replace(replaced(_module(name), apply_adaln_=_shifted))
        yield


@contextmanager
def uninterrupted(really: bool = True) -> Iterator[None]:
    """Inside, Cancel is remembered but ends nothing."""
    ends = {"throw_exception_if_processing_interrupted": _nothing} if really else {}
    with replaced(comfy.model_management, **ends):
        yield


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """What `owner` has of these names is another inside; None has nothing."""
    before = {name: getattr(owner, name) for name in values if hasattr(owner, name)}
    try:
        for name in before:
            setattr(owner, name, values[name])
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """The host's kernels of rotary embeddings are those in plain torch."""
    kernels = getattr(comfy.quant_ops, "ck", None)
    if not hasattr(kernels, "backends"):
        yield
        return
    from comfy_kitchen.backends import eager

    # In the package itself, since a module may have it from there.
    names = [name for name in vars(kernels) if "rope" in name and hasattr(eager, name)]
    with replaced(kernels, **{name: getattr(eager, name) for name in names}):
        yield


def _module(name: str) -> Any:
    """A module of the host; None where it has none of that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def _of_a_copy(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same of an input that nobody changes afterwards; see guard_norms."""

    def guarded(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        own = x.clone() if x.requires_grad and torch.is_grad_enabled() else x
        return norm(own, *args, **kwargs)

    return guarded


def _shifted(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """What the host's function of that kind gives, in a tensor of its own."""
    return torch.addcmul(x, x, scale).add_(shift)


def _nothing() -> None:
    pass
