"""Parameters that are widened side by side, shown to an optimizer as one long parameter.

An optimizer that treats numbers apart from each other does to a row what it does to each of its
leaves, in one call instead of hundreds. Only leaves of like states become a row: at the same step,
and with states of the same kinds, which are of 8 bits in large ones alone (bitsandbytes). Until
they have states, and from the first update on in which one of them has no gradient, they are apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .pieces import Leaf, Piece, room_for

SCALES = ("absmax1", "absmax2")  # of bitsandbytes' 8-bit numbers
BLOCK = 256  # numbers that share one


class Row(NamedTuple):
    """Leaves as one parameter, which has what lies between them too; nobody reads that."""

    leaves: list[Leaf]
    trained: nn.Parameter


class Rows:
    """Which leaves of an optimizer are rows, and their states.

    Args:
        inner: the optimizer. It has the state of a row in the place of those of its leaves.
    """

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self._inner = inner
        self._rows: dict[int, list[Row]] = {}  # by the number of the piece

    def shown(self, piece: Piece, leaves: list[Leaf]) -> list[nn.Parameter]:
        """What the optimizer updates of a piece.

        Args:
            leaves: those that have a gradient.
        """
        if len(leaves) < len(piece.leaves):
            self._part(piece.number)
            self._rows[piece.number] = []
            return [leaf.trained for leaf in leaves]
        state = self._inner.state
        if piece.number not in self._rows and all(leaf.trained in state for leaf in leaves):
            self._rows[piece.number] = [self._join(run, piece) for run in self._runs(leaves)]
        rows = self._rows.get(piece.number)
        return [row.trained for row in rows] if rows else piece.trained

    def part(self) -> None:
        """Give every leaf its own state, a view of the row's; they join again when needed."""
        for number in list(self._rows):
            self._part(number)

    def _runs(self, leaves: list[Leaf]) -> Iterator[list[Leaf]]:
        """Neighbours whose states are alike."""
        state = self._inner.state
        run = leaves[:1]
        for one, other in pairwise(leaves):
            if not _alike(one, state[one.trained], other, state[other.trained]):
                yield run
                run = []
            run.append(other)
        yield run

    def _join(self, leaves: list[Leaf], piece: Piece) -> Row:
        if len(leaves) == 1:
            return Row(leaves, leaves[0].trained)
        assert piece.rows is not None
        wide, gradients = piece.rows
        span = slice(_start(leaves[0]), _start(leaves[-1]) + room_for(leaves[-1].wide.numel()))
        trained = nn.Parameter(wide[span])
        trained.grad = gradients[span]
        states = [self._inner.state.pop(leaf.trained) for leaf in leaves]
        self._inner.state[trained] = {
            key: _joined(key, [state[key] for state in states], leaves[0]) for key in states[0]
        }
        return Row(leaves, trained)

    def _part(self, number: int) -> None:
        for row in self._rows.pop(number, ()):
            if len(row.leaves) > 1:
                state = self._inner.state.pop(row.trained)
                for leaf in row.leaves:
                    self._inner.state[leaf.trained] = _of_leaf(state, leaf, row)


def _start(leaf: Leaf) -> int:
    """Where its numbers begin in the rows that it is widened in."""
    return int(leaf.wide.storage_offset())


def _alike(one: Leaf, state: Mapping[str, Any], other: Leaf, others: Mapping[str, Any]) -> bool:
    """Whether two leaves can be one parameter."""
    return state.keys() == others.keys() and all(
        _kind(key, value, one) == _kind(key, others[key], other) for key, value in state.items()
    )


def _kind(key: str, value: Any, leaf: Leaf) -> Any:
    """What must be equal of a value of two leaves' states; never so where it tells them apart."""
    whole_blocks = leaf.wide.numel() % BLOCK == 0
    if getattr(value, "is_paged", False) or (key in SCALES and not whole_blocks):
        return float("nan")
    if key in SCALES:
        return None
    if not isinstance(value, Tensor):
        return value
    if value.ndim and value.shape == leaf.trained.shape:
        return value.dtype
    return value.tolist()


def _joined(key: str, values: list[Any], leaf: Leaf) -> Any:
    """A value of a row's state from those of its leaves, of which `leaf` is the first."""
    first = values[0]
    if key in SCALES:
        return torch.cat(values)
    if not isinstance(first, Tensor):
        return first
    if not first.ndim or first.shape != leaf.trained.shape:
        return first.clone()
    parts = []
    for value in values:
        numel = value.numel()
        parts += [value.reshape(-1), value.new_zeros(room_for(numel) - numel)]
    return torch.cat(parts)


def _of_leaf(state: Mapping[str, Any], leaf: Leaf, row: Row) -> dict[str, Any]:
    """The state of one leaf of a row."""
    at, numel = _start(leaf) - _start(row.leaves[0]), leaf.wide.numel()
    found: dict[str, Any] = {}
    for key, value in state.items():
        if key in SCALES:
            found[key] = value[at // BLOCK : (at + numel) // BLOCK]
        elif not isinstance(value, Tensor):
            found[key] = value
        elif value.shape == row.trained.shape:
            found[key] = value[at : at + numel].view(leaf.trained.shape)
        else:
            found[key] = value.clone()
    return found
