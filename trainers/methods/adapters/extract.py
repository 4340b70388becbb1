"""The difference of two models as a LoRA.

Each weight's difference is brought to a low rank (see low_rank.py). Vectors, those of norms and
biases, have no low rank: they are lost, and count as such.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import AdapterError
from .layers import write_layer
from .low_rank import Keep, Kept, decompose
from .merge import Result


class Difference(NamedTuple):
    """How one weight of two models differs.

    Attributes:
        key: of the weight, as the models call it.
        delta: (out, in) or (out, in, height, width) or, for norms and biases, (out,).
        name: of its layer in a LoRA's file; "" where no file can name it.
        endings: how the names of up and down end there.
    """

    key: str
    delta: Tensor
    name: str
    endings: tuple[str, str]


@torch.no_grad()
def extract(
    differences: Iterable[Difference], keep: Keep, device: torch.device | None = None
) -> Result:
    """A LoRA that makes one model of the other, as nearly as `keep` allows.

    Args:
        differences: taken one by one, so that they may be made one by one; weights that do not
            differ make no layer.
        device: of the decompositions; the CPU if None. It has to know fp64.

    Raises:
        AdapterError: the models do not differ, or not by finite numbers.
    """
    tensors: dict[str, Tensor] = {}
    layers = []
    for key, delta, name, endings in differences:
        size = float(delta.double().norm())
        if not size < float("inf"):
            raise AdapterError(
                f"The difference of the models has numbers that are not finite, in {key}.\n"
                "One of them is broken. Load or train it anew."
            )
        if not size:
            continue
        if delta.ndim < 2 or not name:
            layers.append(Kept(key, 0, size, size))
            continue
        factors = decompose(delta.to(device).flatten(1), keep)
        shape = tuple(delta.shape[1:])
        tensors |= write_layer(name, factors.up, factors.down, shape, endings)
        layers.append(Kept(name, len(factors.down), factors.norm, factors.lost))
    if not tensors:
        raise AdapterError(
            "The two models have no layer that differs, so there is nothing to extract.\n"
            "Wire a trained model and the model that it was trained from."
        )
    return Result(tensors, layers)
