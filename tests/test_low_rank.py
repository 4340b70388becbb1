"""The nearest matrices of low rank, against torch's SVD."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from trainers.errors import SettingsError
from trainers.methods.adapters.low_rank import Keep, decompose, shrink


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (9, 9)])
@pytest.mark.parametrize("rank", [1, 5, 9])
def test_low_rank_is_that_of_the_svd(shape: tuple[int, int], rank: int) -> None:
    matrix = random(*shape).double()
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    nearest = left[:, :rank] * sizes[:rank] @ right[:rank]
    up, down, norm, lost = decompose(matrix, Keep(rank=rank))
    assert distance(up @ down, nearest) < 1e-10
    assert math.isclose(norm, float(matrix.norm()), rel_tol=1e-12)
    assert math.isclose(lost, float(sizes[rank:].norm()), rel_tol=1e-6, abs_tol=1e-6)
    torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1))


@pytest.mark.parametrize("rank", [1, 6, 20])
def test_factors_shrink_as_their_product_does(rank: int) -> None:
    up, down = random(30, 20).double(), random(20, 25, seed=1).double()
    ours, whole = shrink(up, down, Keep(rank=rank)), decompose(up @ down, Keep(rank=rank))
    assert distance(ours.up @ ours.down, whole.up @ whole.down) < 1e-10
    assert math.isclose(ours.lost, whole.lost, rel_tol=1e-6, abs_tol=1e-5)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 0.9999])
def test_energy_is_held_by_the_fewest_singular_values(energy: float) -> None:
    matrix = random(30, 30).double() * torch.logspace(0, -3, 30).double()
    up, down, norm, lost = decompose(matrix, Keep(energy=energy))
    squares = torch.linalg.svdvals(matrix).square()
    assert lost / norm <= math.sqrt(1 - energy)
    assert squares[: len(down) - 1].sum() < energy * squares.sum() <= squares[: len(down)].sum()
    assert math.isclose(float((matrix - up @ down).norm()), lost, rel_tol=1e-6)


def test_rank_is_no_larger_than_what_there_is() -> None:
    matrix = random(20, 3) @ random(3, 20, seed=1)
    factors = decompose(matrix.double(), Keep(rank=16))
    assert len(factors.down) in (3, 4)  # a product in fp32 has a little more than its rank
    assert distance(factors.up @ factors.down, matrix) < 1e-6


def test_zeros_have_rank_0() -> None:
    assert decompose(torch.zeros(4, 5), Keep(rank=2)).up.shape == (4, 0)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"energy": 0.0}, {"energy": 1.1}])
def test_keep_outside_of_its_bounds_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"{next(iter(wrong))} is .*; allowed: "):
        Keep(**wrong)
