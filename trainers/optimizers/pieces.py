"""Which parameters are updated together, and where bf16 ones are widened for it.

    bucket    parameters whose gradients wait for each other; then they are used up and dropped
    piece     what one call of an optimizer updates: small parameters, or a span of a large one
    leaf      what the optimizer sees of a parameter in a piece

A large parameter is a bucket by itself, so that its gradient goes at once. Small ones share a
bucket and a piece, so that a thousand biases and norms cost a few calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ALIGNED = 64  # numbers: where a parameter starts in a row of many, so that kernels read it fast
Span = tuple[nn.Parameter, slice | None]  # a span of a parameter as a row of numbers; None is all


class Leaf(NamedTuple):
    """A parameter, or a span of one as a row of numbers, as an optimizer sees it.

    Attributes:
        trained: the parameter itself, or its place where it is widened; its gradient is there too.
        wide, gradient: the places, in the shape of what is widened into them.
    """

    parameter: nn.Parameter
    span: slice | None
    trained: nn.Parameter
    wide: Tensor
    gradient: Tensor

    def of(self, tensor: Tensor) -> Tensor:
        """What this is of the parameter, or of its gradient."""
        return tensor if self.span is None else tensor.reshape(-1)[self.span]


class Piece(NamedTuple):
    """What is updated by one call.

    Attributes:
        number: among all pieces.
        trained: of all leaves.
        rows: of fp32 numbers, widened weights and their gradients; None if nothing is widened.
            Pieces use them one after another.
    """

    number: int
    leaves: list[Leaf]
    trained: list[nn.Parameter]
    rows: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class Bucket:
    """Parameters of one group, one dtype and one device.

    Attributes:
        group: its place among the groups.
        ready: those whose gradients are complete.
    """

    group: int
    parameters: list[nn.Parameter]
    pieces: list[Piece]
    ready: set[nn.Parameter] = field(default_factory=set)


def buckets_of(
    groups: Sequence[dict[str, Any]], most: int, elementwise: bool
) -> tuple[list[Bucket], list[Leaf]]:
    """The plan for an optimizer's groups; and all leaves in the order of the parameters.

    Args:
        most: numbers in a piece.
        elementwise: large bf16 parameters may be cut.
    """
    planned = [
        (place, parameters, _parts(parameters, most, elementwise))
        for place, group in enumerate(groups)
        for parameters in _together(reversed(group["params"]), most)
    ]
    rows: dict[torch.device, tuple[Tensor, Tensor]] = {}
    for device, length in _lengths(parts for _, _, pieces in planned for parts in pieces).items():
        rows[device] = (torch.empty(length, device=device), torch.empty(length, device=device))
    buckets: list[Bucket] = []
    number = 0
    for place, parameters, pieces in planned:
        bucket = Bucket(place, parameters, [])
        for parts in pieces:
            bucket.pieces.append(_piece(number, parts, rows.get(parameters[0].device)))
            number += 1
        buckets.append(bucket)
    leaves: dict[nn.Parameter, list[Leaf]] = {}
    for bucket in buckets:
        for piece in bucket.pieces:
            for leaf in piece.leaves:
                leaves.setdefault(leaf.parameter, []).append(leaf)
    in_order = (parameter for group in groups for parameter in group["params"])
    return buckets, [leaf for parameter in in_order for leaf in leaves[parameter]]


def _together(parameters: Iterable[nn.Parameter], most: int) -> Iterator[list[nn.Parameter]]:
    """Those of one dtype and device that follow each other, as many as have `most` numbers.

    One that is larger is alone, and does not part its neighbours.
    """
    open_ones: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    numbers: dict[tuple[torch.dtype, torch.device], int] = {}
    for parameter in parameters:
        if parameter.numel() > most:
            yield [parameter]
            continue
        kind = (parameter.dtype, parameter.device)
        if kind in open_ones and numbers[kind] + parameter.numel() > most:
            yield open_ones.pop(kind)
        open_ones.setdefault(kind, []).append(parameter)
        numbers[kind] = parameter.numel() + (numbers[kind] if len(open_ones[kind]) > 1 else 0)
    yield from open_ones.values()


def _parts(parameters: list[nn.Parameter], most: int, elementwise: bool) -> list[list[Span]]:
    """The pieces of a bucket."""
    first = parameters[0]
    cut = elementwise and _is_narrow(first) and first.is_contiguous() and first.numel() > most
    if not cut:
        # By size: bitsandbytes has states of 8 bits for large ones alone, and like ones make a row.
        return [[(parameter, None) for parameter in sorted(parameters, key=Tensor.numel)]]
    return [[(first, slice(at, at + most))] for at in range(0, first.numel(), most)]


def _is_narrow(parameter: nn.Parameter) -> bool:
    return parameter.dtype != torch.float32


def _lengths(pieces: Iterable[list[Span]]) -> dict[torch.device, int]:
    """How long a row must be for any piece that is widened, by device."""
    lengths: dict[torch.device, int] = {}
    for parts in pieces:
        device = parts[0][0].device
        if _is_narrow(parts[0][0]):
            lengths[device] = max(lengths.get(device, 0), sum(map(_room, parts)))
    return lengths


def _room(part: Span) -> int:
    """Numbers from the start of a part to that of the next one."""
    parameter, span = part
    numel = parameter.numel() if span is None else len(range(*span.indices(parameter.numel())))
    return room_for(numel)


def room_for(numel: int) -> int:
    """Numbers from the start of so many in a row to that of the next ones."""
    return -(-numel // ALIGNED) * ALIGNED


def _piece(number: int, parts: list[Span], rows: tuple[Tensor, Tensor] | None) -> Piece:
    if rows is None or not _is_narrow(parts[0][0]):
        leaves = [Leaf(p, None, p, p.detach(), p.detach()) for p, _ in parts]
        return Piece(number, leaves, [leaf.trained for leaf in leaves], None)
    wide, gradients = rows
    leaves, at = [], 0
    for part in parts:
        leaves.append(_leaf(part, wide[at:], gradients[at:]))
        at += _room(part)
    trained = [leaf.trained for leaf in leaves]
    return Piece(number, leaves, trained, (wide[:at], gradients[:at]))


def _leaf(part: Span, wide: Tensor, gradient: Tensor) -> Leaf:
    """A part widened at the start of two rows."""
    parameter, span = part
    of = parameter.detach() if span is None else parameter.detach().view(-1)[span]
    wide, gradient = wide[: of.numel()].view(of.shape), gradient[: of.numel()].view(of.shape)
    trained = nn.Parameter(_matrix(wide))
    trained.grad = _matrix(gradient)
    return Leaf(parameter, span, trained, wide, gradient)


def _matrix(tensor: Tensor) -> Tensor:
    """As a matrix where it has more dimensions.

    Adafactor factors the last two: for a 3x3 kernel its state would be two thirds of the weights.
    """
    return tensor.flatten(1) if tensor.ndim > 2 else tensor
