"""LoHa and LoKr of a file as changes of low rank: against LyCORIS' formulas in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_adapters import CONV, SHAPES, Q, dense, lora
from tests.test_low_rank import distance, random
from trainers.methods.adapters.layers import read_lora
from trainers.methods.adapters.low_rank import Keep
from trainers.methods.adapters.merge import Way, merge, resize


def loha(name: str, rank: int, tucker: bool) -> tuple[dict[str, Tensor], Tensor]:
    """A LoHa of one layer, and its change as LyCORIS has it: (out, in, ...) fp64."""
    out, channels, *kernel = SHAPES[name]
    inner = channels if tucker else channels * torch.Size(kernel).numel()
    held, halves = {}, []
    for number in (1, 2):
        a, b = random(out, rank, seed=number), random(rank, inner, seed=2 + number)
        if not tucker:
            half = a.double() @ b.double()
        else:
            core = random(rank, rank, *kernel, seed=4 + number)
            held[f"t{number}"] = core
            half = torch.einsum("ijkl,jr,ip->prkl", core.double(), b.double(), a.T.double())
            a = a.T.contiguous()
        held |= {f"w{number}_a": a, f"w{number}_b": b}
        halves.append(half.reshape(out, channels, *kernel))
    tensors = {f"{name}.hada_{key}": tensor for key, tensor in held.items()}
    alpha = {f"{name}.alpha": torch.tensor(3.0)}
    return {**tensors, **alpha}, 3.0 / rank * halves[0] * halves[1]


def lokr(name: str, rank: int, tucker: bool) -> tuple[dict[str, Tensor], Tensor]:
    """The same for a LoKr of factor 2, whose second factor is whole where rank is 0."""
    out, channels, *kernel = SHAPES[name]
    large, (rows, columns) = random(2, 2), (out // 2, channels // 2)
    held, scale = {"w1": large}, 1.0
    small = held["w2"] = random(rows, columns, *kernel, seed=1)
    if rank:
        inner = columns if tucker else columns * torch.Size(kernel).numel()
        a, b = random(rows, rank, seed=2), random(rank, inner, seed=3)
        held, scale = {"w1": large, "w2_a": a, "w2_b": b}, 3.0 / rank
        if not tucker:
            small = (a.double() @ b.double()).reshape(rows, columns, *kernel)
        else:
            core = random(rank, rank, *kernel, seed=4)
            held |= {"w2_a": a.T.contiguous(), "t2": core}
            small = torch.einsum("ijkl,jr,ip->prkl", core.double(), b.double(), a.T.double())
    small = small.contiguous()
    change = torch.kron(large.double().reshape(2, 2, *[1] * len(kernel)), small.double())
    tensors = {f"{name}.lokr_{key}": tensor for key, tensor in held.items()}
    return {**tensors, f"{name}.alpha": torch.tensor(3.0)}, scale * change


OF_LYCORIS = [
    (make, name, rank, tucker)
    for make in (loha, lokr)
    for name in (Q, CONV)
    for rank in ((2, 5) if make is loha else (0, 2))
    for tucker in ((False, True) if name == CONV and rank else (False,))
]


@pytest.mark.parametrize(("make", "name", "rank", "tucker"), OF_LYCORIS)
def test_loha_and_lokr_are_read_as_their_change(
    make: Any, name: str, rank: int, tucker: bool
) -> None:
    tensors, change = make(name, rank, tucker)
    layer = read_lora(tensors, "It").layers[name]
    assert (layer.outputs, torch.Size(layer.shape).numel()) == change.flatten(1).shape
    assert distance(layer.delta(), change.flatten(1)) < 1e-6
    assert len(layer.factors()[1]) <= min(change.flatten(1).shape)
    exact = merge([tensors, lora(name)], [0.5, 2.0], Way()).tensors
    assert (
        distance(dense(exact, name), 0.5 * change.flatten(1) + 2 * dense(lora(name), name)) < 1e-6
    )
    assert exact[f"{name}.lora_down.weight"].shape[1:] == SHAPES[name][1:]
    left, sizes, right = torch.linalg.svd(change.flatten(1), full_matrices=False)
    resized = resize(tensors, Keep(rank=2)).tensors
    assert distance(dense(resized, name), left[:, :2] * sizes[:2] @ right[:2]) < 1e-6
