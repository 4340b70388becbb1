"""LoHa and LoKr as changes of low rank, exactly.

    loha   scale (A1 B1) * (A2 B2), number by number: a rank of r1 r2, since it is up @ down with
           up[o, (i, j)] = A1[o, i] A2[o, j] and down[(i, j), x] = B1[i, x] B2[j, x]
    lokr   scale (U1 V1) kron (U2 V2) = scale (U1 kron U2) (V1 kron V2); where a file has a factor
           as a whole, one of its U and V is I

with scale = alpha / rank, and 1 for a lokr of whole factors (LyCORIS, arXiv 2309.14859; ComfyUI,
comfy/weight_adapter/loha.py and lokr.py). What has a Tucker core (t1, t2) is unfolded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Pair(NamedTuple):
    """A matrix, left @ right."""

    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class Lycoris:
    """What a LoHa or LoKr holds of one layer.

    Attributes:
        kind: "loha" or "lokr".
        first, second: as the formulas have them.
        scale: see above.
        kernel: of a convolution, where the file tells; (height, width) or ().
        endings: how the names of up and down are to end.
    """

    kind: str
    first: Pair
    second: Pair
    scale: float
    kernel: tuple[int, ...]
    endings: tuple[str, str]

    @property
    def outputs(self) -> int:
        of_first, of_second = len(self.first.left), len(self.second.left)
        return of_first if self.kind == "loha" else of_first * of_second

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one output's weights: (in,) or (in, height, width); (in * kernel,) if untold."""
        columns = self.second.right.shape[1]
        if self.kind == "lokr":
            columns *= self.first.right.shape[1]
        return (columns // torch.Size(self.kernel).numel(), *self.kernel)

    def factors(self) -> tuple[Tensor, Tensor]:
        """up (out, rank), which has the scale in it, and down (rank, in * kernel); both fp64."""
        (left, right), (more_left, more_right) = (
            (pair.left.double(), pair.right.double()) for pair in (self.first, self.second)
        )
        if self.kind == "lokr":
            up, down = torch.kron(left, more_left), torch.kron(right, more_right)
        elif left.shape[1] * more_left.shape[1] > min(len(left), right.shape[1]):
            up, down = _whole((left @ right) * (more_left @ more_right))
        else:
            up = (left[:, :, None] * more_left[:, None]).flatten(1)
            down = (right[:, None] * more_right[None]).flatten(0, 1)
        return up * self.scale, down

    def delta(self) -> Tensor:
        """The change of the weight, (out, in * kernel) fp64."""
        up, down = self.factors()
        return up @ down


def _whole(matrix: Tensor) -> Pair:
    """A matrix as a pair of the lesser rank: one of the two is I."""
    rows, columns = matrix.shape
    if rows < columns:
        return Pair(torch.eye(rows, dtype=matrix.dtype, device=matrix.device), matrix)
    return Pair(matrix, torch.eye(columns, dtype=matrix.dtype, device=matrix.device))


def _pair(held: Mapping[str, Tensor], name: str, core: str) -> Pair | None:
    """A factor of a file; None if it has not all of it.

    Args:
        name: such as "lokr_w2", which may be there as a whole.
        core: the name of its Tucker core (a, b, height, width), if it has one.
    """
    if name in held:
        return _whole(held[name].flatten(1))
    if f"{name}_a" not in held or f"{name}_b" not in held:
        return None
    left, right = held[f"{name}_a"], held[f"{name}_b"]
    if core in held:  # left (a, out), right (b, in)
        left, right = left.T, torch.einsum("abhw,bi->aihw", held[core], right)
    return Pair(left.contiguous(), right.flatten(1).contiguous())  # as torch.kron wants them


def _layer(held: Mapping[str, Tensor], endings: tuple[str, str]) -> Lycoris | None:
    """What a file has of one layer; None if that is neither a LoHa nor a LoKr."""
    is_lokr = any(name.startswith("lokr_") for name in held)
    names = ("lokr_w1", "lokr_w2") if is_lokr else ("hada_w1", "hada_w2")
    cores = ("", "lokr_t2") if is_lokr else ("hada_t1", "hada_t2")
    first, second = (_pair(held, *both) for both in zip(names, cores, strict=True))
    if first is None or second is None:
        return None
    # Of a lokr's two ranks the second counts, of a loha's the first.
    order = reversed(names) if is_lokr else names
    ranks = [len(held[f"{name}_b"]) for name in order if f"{name}_b" in held]
    scale = float(held["alpha"]) / ranks[0] if "alpha" in held and ranks else 1.0
    shaped = held.get(cores[1], held.get(names[1], first.left))
    kernel = tuple(shaped.shape[2:])
    return Lycoris("lokr" if is_lokr else "loha", first, second, scale, kernel, endings)


def read_lycoris(
    tensors: Mapping[str, Tensor], kohya: tuple[str, str], dotted: tuple[str, str]
) -> tuple[dict[str, Lycoris], set[str]]:
    """The layers of a file that are LoHa or LoKr, and the keys of the file that make them.

    Args:
        kohya, dotted: how names of a LoRA's factors end, where a layer's name is spelled so.
    """
    by_layer: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, ending = key.rpartition(".")
        if ending == "alpha" or ending.startswith(("hada_", "lokr_")):
            by_layer.setdefault(name, {})[ending] = tensor
    layers: dict[str, Lycoris] = {}
    known: set[str] = set()
    for name, held in by_layer.items():
        if layer := _layer(held, dotted if "." in name else kohya):
            layers[name] = layer
            known |= {f"{name}.{ending}" for ending in held}
    return layers, known
