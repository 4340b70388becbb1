"""While models train, the host computes only what autograd can follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.quant_ops


class DifferentiableKernels:
    """The host's kernels, but for rotary embeddings, which are those in plain torch."""

    def __init__(self, kernels: Any, plain: Any) -> None:
        self._kernels, self._plain = kernels, plain

    def __getattr__(self, name: str) -> Any:
        source = self._plain if "rope" in name and hasattr(self._plain, name) else self._kernels
        return getattr(source, name)


@contextmanager
def training_mode(training: bool = True) -> Iterator[None]:
    """Inside, modules take operations that have a backward pass; afterwards all is as it was.

    Most of them ask the host's `in_training`, as for its own trainer. A few forget to, and call
    kernels that autograd knows nothing of; those are replaced by their equals in torch.

    Args:
        training: False, within a training, while the host samples: modules take its fused ways.
    """
    management: Any = comfy.model_management
    before = getattr(management, "in_training", False)
    kernels = getattr(comfy.quant_ops, "ck", None)
    management.in_training = training
    # Each layer of the host asks whether Cancel was pressed. In the middle of a step that would
    # leave weights half updated; trainings ask between two steps.
    every_op = getattr(comfy.ops, "run_every_op", None)
    if training and every_op is not None:
        comfy.ops.run_every_op = _nothing
    if training and hasattr(kernels, "backends"):
        from comfy_kitchen.backends import eager

        comfy.quant_ops.ck = DifferentiableKernels(kernels, eager)
    try:
        yield
    finally:
        management.in_training = before
        if every_op is not None:
            comfy.ops.run_every_op = every_op
        if kernels is not None:
            comfy.quant_ops.ck = kernels


def _nothing() -> None:
    pass
