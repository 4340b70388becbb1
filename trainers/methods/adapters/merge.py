"""Several LoRAs as one, and one at another rank.

    sum               change = sum of strength_i * change_i. Exact when the ranks add up:
                      up = [strength_1 up_1, strength_2 up_2 ...], down = [down_1; down_2; ...]
    ties              keep the largest numbers of each change, elect a sign for each place, average
                      those that have it (arXiv 2306.01708)
    dare_linear       drop numbers at random, scale the others by 1 / density (arXiv 2311.03099)
    dare_ties         drop as dare_linear, then elect and average as ties
    magnitude_prune   keep the largest numbers of each change, then sum

All but `sum` work number by number on whole changes, by peft's own functions, as its
add_weighted_adapter does for "ties_svd", "dare_linear_svd" and so on; the outcome has any rank and
is then brought to the one that is asked for.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import AdapterError, SettingsError
from .layers import Layer, Lora, check_together, read_lora, write_layer
from .low_rank import Factors, Keep, Kept, decompose, shrink
from .lycoris import Lycoris

SUM = "sum"
WAYS = (SUM, "ties", "dare_linear", "dare_ties", "magnitude_prune")

Each = Callable[[Sequence[str]], Iterable[str]]  # goes over names, and may show how far it is


class Result(NamedTuple):
    """A LoRA, and what of each layer it keeps.

    Attributes:
        tensors: a LORA_MODEL.
        layers: one for each layer, also for those that are not in the result.
    """

    tensors: dict[str, Tensor]
    layers: list[Kept]


@dataclass(frozen=True)
class Way:
    """How LoRAs are merged.

    Attributes:
        name: one of WAYS.
        rank: of each layer; 0 is exact, for `sum` alone.
        density: the share of numbers that ways other than `sum` keep, in (0, 1].
        seed: of what dare_linear and dare_ties drop.

    Raises:
        SettingsError: a value is outside of what is allowed.
    """

    name: str = SUM
    rank: int = 0
    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.name not in WAYS:
            problems.append(f"method is {self.name!r}; allowed: {', '.join(WAYS)}")
        elif self.name != SUM and self.rank == 0:
            problems.append(
                f"rank is 0 (exact) with method {self.name!r}, whose outcome has no low rank; "
                "allowed: 1 and more, such as the greatest rank of the LoRAs"
            )
        if self.rank < 0:
            problems.append(f"rank is {self.rank}; allowed: 0 (exact) and more")
        if not 0 < self.density <= 1:
            problems.append(f"density is {self.density:g}; allowed: more than 0, up to 1")
        if problems:
            raise SettingsError(tuple(problems))


@dataclass
class _Parts:
    """The layers of one name in all LoRAs that have it."""

    layers: list[Layer | Lycoris] = field(default_factory=list)
    strengths: list[float] = field(default_factory=list)


@torch.no_grad()
def merge(
    loras: Sequence[Mapping[str, Tensor]],
    strengths: Sequence[float],
    way: Way,
    device: torch.device | None = None,
    each: Each = iter,
) -> Result:
    """One LoRA that changes a model as several do at their strengths.

    Layers that only some of them have are merged among those. Whole differences of norms and
    biases (`.diff`, `.diff_b`) are merged alike; bundled tokens are kept.

    Args:
        strengths: one for each LoRA, of any sign; `sum` leaves out those of 0.
        device: of the decompositions; the CPU if None. It has to know fp64.

    Raises:
        AdapterError: see read_lora and check_together; two have different tokens of one name; or
            nothing is left.
    """
    read = [read_lora(lora, f"LoRA {number}") for number, lora in enumerate(loras, 1)]
    check_together(read)
    tokens = _joined([lora.tokens for lora in read])
    counted = [
        (lora, strength)
        for lora, strength in zip(read, strengths, strict=True)
        if strength or way.name != SUM
    ]
    parts: dict[str, _Parts] = {}
    for lora, strength in counted:
        for name, layer in lora.layers.items():
            parts.setdefault(name, _Parts()).layers.append(layer)
            parts[name].strengths.append(strength)
    tensors: dict[str, Tensor] = {}
    layers = []
    for name in each(list(parts)):
        factors = _merged(name, parts[name], way, device)
        found = parts[name].layers
        shape = max((layer.shape for layer in found), key=len)
        if rank := len(factors.down):
            tensors |= write_layer(name, factors.up, factors.down, shape, found[0].endings)
        layers.append(Kept(name, rank, factors.norm, factors.lost))
    tensors |= _added(counted, way)
    if not tensors:
        raise AdapterError(
            "Nothing is left of the merged LoRAs: their strengths are 0, or they cancel out.\n"
            "Give at least one a strength."
        )
    return Result({**tensors, **tokens}, layers)


@torch.no_grad()
def resize(
    lora: Mapping[str, Tensor],
    keep: Keep,
    device: torch.device | None = None,
    each: Each = iter,
) -> Result:
    """A LoRA at another rank, or at as much of it as holds a share of each layer's energy.

    No layer's rank grows. Whole differences of norms and biases, and tokens, stay as they are.

    Raises:
        AdapterError: see read_lora.
    """
    read = read_lora(lora, "The LoRA")
    tensors: dict[str, Tensor] = {}
    layers = []
    for name in each(list(read.layers)):
        layer = read.layers[name]
        up, down = (factor.to(device) for factor in layer.factors())
        factors = shrink(up, down, keep)
        if rank := len(factors.down):
            tensors |= write_layer(name, factors.up, factors.down, layer.shape, layer.endings)
        layers.append(Kept(name, rank, factors.norm, factors.lost))
    return Result({**tensors, **read.added, **read.tokens}, layers)


def _merged(name: str, parts: _Parts, way: Way, device: torch.device | None) -> Factors:
    if way.name == SUM:
        factors = [layer.factors() for layer in parts.layers]
        weighed = zip(factors, parts.strengths, strict=True)
        up = torch.cat([strength * up for (up, _), strength in weighed], dim=1).to(device)
        down = torch.cat([down for _, down in factors]).to(device)
        if way.rank:
            return shrink(up, down, Keep(rank=way.rank))
        return Factors(up, down, float((up.T @ up * (down @ down.T)).sum().clamp(min=0).sqrt()), 0)
    deltas = [layer.delta().float() for layer in parts.layers]
    merged = combine(deltas, parts.strengths, way, name)
    return decompose(merged.to(device), Keep(rank=way.rank))


def combine(deltas: list[Tensor], strengths: Sequence[float], way: Way, name: str) -> Tensor:
    """Changes of one layer as one, number by number.

    Args:
        deltas: of equal shape, on the CPU, where random numbers are the same everywhere.
        name: the layer's; with the seed it decides which numbers are dropped.
    """
    from peft.utils import merge_utils

    weights = torch.tensor(strengths)
    if way.name == SUM:
        return merge_utils.task_arithmetic(deltas, weights)
    function = getattr(merge_utils, way.name)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density")  # 1 drops nothing, as asked
        torch.default_generator.manual_seed(way.seed + zlib.crc32(name.encode()))
        merged: Tensor = function(deltas, weights, way.density)
    return merged


def _added(counted: Sequence[tuple[Lora, float]], way: Way) -> dict[str, Tensor]:
    """The whole differences of norms and biases, merged."""
    keys = dict.fromkeys(key for lora, _ in counted for key in lora.added)
    merged = {}
    for key in keys:
        having = [(lora.added[key], strength) for lora, strength in counted if key in lora.added]
        deltas = [delta.to("cpu", torch.float32) for delta, _ in having]
        merged[key] = combine(deltas, [strength for _, strength in having], way, key)
    return merged


def _joined(tokens: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    joined: dict[str, Tensor] = {}
    for key, rows in (item for one in tokens for item in one.items()):
        if not torch.equal(joined.setdefault(key, rows), rows):
            raise AdapterError(
                f"Two of the LoRAs carry different learned tokens of one name ({key}).\n"
                "Merge LoRAs without them, and use the tokens as files."
            )
    return joined
