"""Which pictures form which micro-batch: a pure function of seed and position, nothing to save.

Every epoch shuffles each bucket, cuts it into batches (the last of a bucket may be smaller) and
shuffles the batches. Every picture is seen `repeats` times an epoch, never more, never less.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from .noise import generator_for


@dataclass(frozen=True)
class BatchPlan:
    """The order of micro-batches over all epochs.

    Attributes:
        shapes: each picture's latent shape; one batch holds one shape.
        repeats: each picture's visits an epoch.
        batch_size: most pictures in one micro-batch.
        seed: the run's seed.
    """

    shapes: tuple[Hashable, ...]
    repeats: tuple[int, ...]
    batch_size: int
    seed: int

    @functools.cached_property
    def batches_per_epoch(self) -> int:
        return len(self._epoch(0))

    def batch(self, index: int) -> list[int]:
        """Picture indices of the micro-batch at `index`, counted from the run's start."""
        epoch, place = divmod(index, self.batches_per_epoch)
        return self._epoch(epoch)[place]

    def step(self, step: int, num_micro_batches: int) -> list[list[int]]:
        """The micro-batches of one optimizer step, counted from 0."""
        first = step * num_micro_batches
        return [self.batch(index) for index in range(first, first + num_micro_batches)]

    @functools.lru_cache(maxsize=2)  # noqa: B019  two epochs of indices; the plan dies with its run
    def _epoch(self, epoch: int) -> list[list[int]]:
        generator = generator_for(self.seed, "epoch", epoch)
        batches = []
        for bucket in _by_shape(self.shapes):
            visits = [picture for picture in bucket for _ in range(self.repeats[picture])]
            order = torch.randperm(len(visits), generator=generator).tolist()
            shuffled = [visits[place] for place in order]
            starts = range(0, len(shuffled), self.batch_size)
            batches += [shuffled[start : start + self.batch_size] for start in starts]
        order = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[place] for place in order]


def _by_shape(shapes: Sequence[Hashable]) -> list[list[int]]:
    buckets: dict[Hashable, list[int]] = {}
    for picture, shape in enumerate(shapes):
        buckets.setdefault(shape, []).append(picture)
    return list(buckets.values())
