"""Matrices of low rank that lie nearest to a given one.

The nearest of rank r keeps the r largest singular values s (Eckart and Young 1936); what is lost
has the Frobenius norm sqrt(sum of the other s**2). All of it in fp64, where the eigenvalues of the
smaller of M M^T and M^T M are s**2 well enough, and come several times sooner than an SVD.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import SettingsError

NEGLIGIBLE = 1e-13  # of the largest s**2: below it is the rounding of fp64


@dataclass(frozen=True)
class Keep:
    """How much to keep of each layer: a rank, or a share of its energy (the sum of s**2).

    Attributes:
        rank: at most so many singular values.
        energy: as few as hold this share, in (0, 1]; then no more than sqrt(1 - energy) of the
            layer's norm is lost.

    Raises:
        SettingsError: rank or energy is outside of what is allowed, or not one of them is given.
    """

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        assert (self.rank is None) != (self.energy is None), "one of them"
        if self.rank is not None and self.rank < 1:
            raise SettingsError((f"rank is {self.rank}; allowed: 1 and more",))
        if self.energy is not None and not 0 < self.energy <= 1:
            raise SettingsError((f"energy is {self.energy:g}; allowed: more than 0, up to 1",))

    def count(self, squares: Tensor) -> int:
        """How many of the squares of singular values, the largest first, are kept."""
        solid = int((squares > NEGLIGIBLE * squares[0]).sum())
        if self.rank is not None:
            return min(self.rank, solid)
        share = squares.cumsum(0) / squares.sum()
        assert self.energy is not None
        return min(int((share < self.energy).sum()) + 1, solid)


class Kept(NamedTuple):
    """What became of one layer.

    Attributes:
        rank: of the result; 0 where nothing of it is in the result.
        norm: Frobenius norm of the whole change.
        lost: Frobenius norm of the part that is not in the result.
    """

    name: str
    rank: int
    norm: float
    lost: float

    @property
    def residual(self) -> float:
        """lost / norm, 0 to 1."""
        return self.lost / self.norm if self.norm else 0.0


def total_residual(layers: Sequence[Kept]) -> float:
    """The relative Frobenius norm of all that is lost, 0 to 1."""
    norm = math.hypot(*(layer.norm for layer in layers))
    return math.hypot(*(layer.lost for layer in layers)) / norm if norm else 0.0


class Factors(NamedTuple):
    """The nearest matrix, up @ down, and what it keeps.

    Attributes:
        up: (out, r) fp64.
        down: (r, in) fp64; its rows are as long as the columns of up.
        norm: of the matrix.
        lost: of the difference.
    """

    up: Tensor
    down: Tensor
    norm: float
    lost: float


def decompose(matrix: Tensor, keep: Keep) -> Factors:
    """The nearest matrix of low rank; rank 0 for zeros.

    Args:
        matrix: (out, in), finite.
    """
    matrix = matrix.double()
    tall = len(matrix) > matrix.shape[1]
    if tall:
        matrix = matrix.T
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
    squares = squares.flip(0).clamp(min=0)
    rank = keep.count(squares) if squares[0] > 0 else 0
    left = vectors.flip(1)[:, :rank]
    right = left.T @ matrix
    sizes = right.norm(dim=1).sqrt()  # both factors take an equal part: neither is small in fp16
    left, right = left * sizes, right / sizes[:, None]
    norm, lost = float(squares.sum().sqrt()), float(squares[rank:].sum().sqrt())
    return Factors(right.T, left.T, norm, lost) if tall else Factors(left, right, norm, lost)


def shrink(up: Tensor, down: Tensor, keep: Keep) -> Factors:
    """The nearest matrix to up @ down, which itself is never made: only (rank, rank).

    Args:
        up: (out, rank).
        down: (rank, in).
    """
    left, inner_left = torch.linalg.qr(up.double())
    right, inner_right = torch.linalg.qr(down.double().T)
    inner = decompose(inner_left @ inner_right.T, keep)
    return inner._replace(up=left @ inner.up, down=inner.down @ right.T)
