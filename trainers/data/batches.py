"""Which pictures form which micro-batch: a pure function of seed and position, nothing to save.

Every epoch shuffles each bucket, cuts it into batches (the last of a bucket may be smaller) and
shuffles the batches. Every picture is seen `repeats` times an epoch, never more, never less.
With class images (prior preservation) each micro-batch gets as many of them as it has instance
images, from an endless shuffled row of their own.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..errors import DatasetError
from ..objective.noise import generator_for
from ..optimizers.processes import Processes
from ..settings.run import RunConfig
from ..settings.training import TrainingConfig
from .dataset import Dataset
from .examples import Examples
from .validation import held_out_places

log = logging.getLogger(__name__)


class Share(NamedTuple):
    """A part of a micro-batch that goes through the model at once: places in it.

    Its number, among those of the micro-batch, is a part of the seed of its dropout.
    """

    number: int
    places: list[int]


@dataclass(frozen=True)
class BatchPlan:
    """The order of micro-batches over all epochs.

    Attributes:
        shapes: each instance image's latent shape; one batch holds one shape.
        repeats: each instance image's visits an epoch.
        batch_size: most pictures in one micro-batch, over all processes.
        seed: the run's seed.
        class_repeats: each class image's visits in a round through them; none for no class images.
    """

    shapes: tuple[Hashable, ...]
    repeats: tuple[int, ...]
    batch_size: int
    seed: int
    class_repeats: tuple[int, ...] = ()

    @functools.cached_property
    def batches_per_epoch(self) -> int:
        return len(self._epoch(0))

    def batch(self, index: int) -> list[int]:
        """Picture indices of the micro-batch at `index`, counted from the run's start.

        Class images come last; their indices follow those of the instance images.
        """
        epoch, place = divmod(index, self.batches_per_epoch)
        instances = self._epoch(epoch)[place]
        if not self.class_repeats:
            return instances
        first = index * self.batch_size
        return instances + [self._class_image(first + i) for i in range(len(instances))]

    def num_instances(self, pictures: Sequence[int]) -> int:
        """How many of a micro-batch's pictures are instance images."""
        return sum(picture < len(self.shapes) for picture in pictures)

    @property
    def largest_batch(self) -> int:
        """Most instance images that there are in a micro-batch."""
        return max(map(len, self._epoch(0)))

    def heaviest_batch(self, weights: Sequence[float]) -> list[int]:
        """The instance images of the micro-batch that weighs most, by the weight of each."""
        return max(self._epoch(0), key=lambda pictures: sum(weights[one] for one in pictures))

    def step(self, step: int, num_micro_batches: int) -> list[list[int]]:
        """The micro-batches of one optimizer step, counted from 0."""
        first = step * num_micro_batches
        return [self.batch(index) for index in range(first, first + num_micro_batches)]

    def shares(self, pictures: Sequence[int], size: int, rank: int, count: int) -> list[Share]:
        """What one of `count` processes takes of a micro-batch: places, a share a forward pass.

        Shares differ by one instance image at most, each with its class images. All processes have
        as many; some are empty where there are fewer pictures.

        Args:
            size: most instance images in a share.
        """
        num = self.num_instances(pictures)
        together = count * math.ceil(num / (size * count))
        return [
            Share(
                number,
                [place for place in range(len(pictures)) if place % num % together == number],
            )
            for number in range(rank, together, count)
        ]

    def _class_image(self, position: int) -> int:
        round_number, place = divmod(position, sum(self.class_repeats))
        return len(self.shapes) + self._class_round(round_number)[place]

    @functools.lru_cache(maxsize=2)  # noqa: B019  as below
    def _class_round(self, number: int) -> list[int]:
        visits = [image for image, n in enumerate(self.class_repeats) for _ in range(n)]
        generator = generator_for(self.seed, "class images", number)
        return [visits[i] for i in torch.randperm(len(visits), generator=generator).tolist()]

    @functools.lru_cache(maxsize=2)  # noqa: B019  two epochs of indices; the plan dies with its run
    def _epoch(self, epoch: int) -> list[list[int]]:
        generator = generator_for(self.seed, "epoch", epoch)
        batches = []
        for bucket in by_shape(range(len(self.shapes)), self.shapes):
            visits = [picture for picture in bucket for _ in range(self.repeats[picture])]
            order = torch.randperm(len(visits), generator=generator).tolist()
            shuffled = [visits[place] for place in order]
            starts = range(0, len(shuffled), self.batch_size)
            batches += [shuffled[start : start + self.batch_size] for start in starts]
        order = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[place] for place in order]


def batch_plan(examples: Examples, training: TrainingConfig, num_processes: int = 1) -> BatchPlan:
    """The order in which `examples` are visited by all processes together."""
    num = examples.num_instances
    return BatchPlan(
        examples.shapes[:num],
        examples.repeats[:num],
        training.batch_size * num_processes,
        training.seed,
        class_repeats=examples.repeats[num:],
    )


def planned_steps(dataset: Dataset, config: RunConfig, num_processes: int = 1) -> int:
    """Optimizer steps of a run on `dataset`, before any picture is encoded."""
    training = config.training
    away = held_out_places(len(dataset), config.validation.held_out, training.seed)
    trained = [picture for place, picture in enumerate(dataset.pictures) if place not in away]
    shapes = tuple(picture.bucket_px for picture in trained)
    repeats = tuple(picture.repeats for picture in trained)
    plan = BatchPlan(shapes, repeats, training.batch_size * num_processes, training.seed)
    return num_steps(plan, training)


def num_steps(plan: BatchPlan, training: TrainingConfig) -> int:
    """Optimizer steps of the run: `steps`, or enough for `epochs` where those are set."""
    if not training.epochs:
        return training.steps
    return math.ceil(training.epochs * plan.batches_per_epoch / training.gradient_accumulation)


def check_all_have_data(plan: BatchPlan, num_processes: int) -> None:
    """See that no process of a training is left without pictures.

    Raises:
        DatasetError: batches are smaller than processes are many.
    """
    if (most := plan.largest_batch) < num_processes:
        raise DatasetError(
            f"Several processes: {num_processes} of them train, but no batch has more than {most} "
            "picture(s) of one shape, so some would never have any.\nStart at most "
            f"{most}, or add pictures or repeats of one shape."
        )


def say_batch(plan: BatchPlan, training: TrainingConfig, processes: Processes) -> None:
    """Tell how many pictures an update sees, where that is not what the settings say."""
    if processes.is_first and plan.batch_size != training.batch_size:
        log.info(
            "Personalize: %d process(es) train; an update sees %d pictures (%d a batch over all of "
            "them, times gradient_accumulation %d). The learning rate stays %g as it was set.",
            processes.count, plan.batch_size * training.gradient_accumulation, plan.batch_size,
            training.gradient_accumulation, training.learning_rate,
        )  # fmt: skip


def by_shape(pictures: Iterable[int], shapes: Sequence[Hashable]) -> list[list[int]]:
    """Pictures that share a shape, in the order in which shapes and pictures come."""
    buckets: dict[Hashable, list[int]] = {}
    for picture in pictures:
        buckets.setdefault(shapes[picture], []).append(picture)
    return list(buckets.values())
