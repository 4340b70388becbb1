"""Optimizers that need no schedule (arXiv 2405.15682): they train one point and hand out another.

    y_t = (1 - b) z_t + b x_t      what is trained, and in the parameters between steps
    x_t                            the average of z, which is watched, shown and handed out

Their own eval() and train() turn the parameters into x and back by arithmetic, which rounds: a run
that was looked at would be another one. So y is kept while x is in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..contracts import Trainable


def hand_out_average(trainable: Trainable, optimizer: Any) -> None:
    """Let what leaves the training be the optimizer's average, if it has train() and eval()."""
    if not hasattr(optimizer, "eval"):
        return
    export, tokens = trainable.export, trainable.tokens

    def averaged_export(copy: bool = False) -> dict[str, Tensor]:  # always copies
        with averaged(optimizer):
            return export(copy=True)

    def averaged_tokens() -> dict[str, dict[str, Tensor]]:
        with averaged(optimizer):
            return tokens()

    trainable.export, trainable.tokens = averaged_export, averaged_tokens
    trainable.averaged = lambda: averaged(optimizer)
    trainable.names = ()  # the parameters are not what is handed out


@contextmanager
def averaged(optimizer: Any) -> Iterator[None]:
    """Inside, the parameters are the average; after it they are to the bit what they were."""
    groups = optimizer.param_groups
    if not all(group["train_mode"] for group in groups):  # they are already
        yield
        return
    parameters = [parameter for group in groups for parameter in group["params"]]
    trained = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, kept in zip(parameters, trained, strict=True):
                parameter.copy_(kept)
        for group in groups:
            group["train_mode"] = True
