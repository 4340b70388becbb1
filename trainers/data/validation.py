"""Validation: which pictures are watched, and the noise they are looked at with.

    L_val = mean of the loss over watched pictures and 8 fixed timesteps, each with its own noise

They are a share of the dataset that is held out, or a dataset of their own. The noise is the same
in every validation, so two differ by what was learned between them alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import DatasetError
from ..objective.noise import draw_noise, generator_for
from ..settings.field import raise_problems
from ..settings.validation import BEST, ValidationConfig
from .dataset import Dataset
from .examples import Examples

NUM_TIMESTEPS = 8


def check_watched(settings: ValidationConfig, has_dataset: bool) -> None:
    """See that there is one answer to which pictures are watched.

    Args:
        has_dataset: whether they are a dataset of their own.

    Raises:
        SettingsError: two answers, or none where hand_out or patience ask for one.
    """
    if settings.held_out and has_dataset:
        raise_problems(
            [f"held_out is {settings.held_out:g}, but a validation_dataset is given too; allowed: "
             "held_out 0, or no validation_dataset"]
        )  # fmt: skip
    asked = settings.hand_out == BEST or settings.patience
    if asked and not (settings.held_out or has_dataset):
        raise_problems(
            ["held_out is 0, but hand_out 'best step' and patience look at held-out pictures; "
             "allowed: held_out above 0, a validation_dataset, or hand_out 'last step' and "
             "patience 0"]
        )  # fmt: skip


def seen_twice(trained: Dataset, watched: Dataset) -> list[str]:
    """Names of watched pictures that are trained too: their loss says nothing of others."""
    known = set(trained.digests())
    pairs = zip(watched.pictures, watched.digests(), strict=True)
    return [picture.name for picture, digest in pairs if digest in known]


def held_out_places(num_pictures: int, share: float, seed: int) -> frozenset[int]:
    """Which of so many pictures are held out: the nearest number to `share`, one at least.

    Raises:
        DatasetError: no picture would be left to train.
    """
    if not share:
        return frozenset()
    count = max(1, round(share * num_pictures))
    if count >= num_pictures:
        raise DatasetError(
            f"held_out {share:g} of {num_pictures} pictures leaves none to train.\n"
            "Add pictures, or lower held_out (0 turns validation off)."
        )
    generator = generator_for(seed, "held out")
    return frozenset(torch.randperm(num_pictures, generator=generator)[:count].tolist())


def split(examples: Examples, places: frozenset[int]) -> tuple[Examples, Examples | None]:
    """The pictures that train, and those that are held out, if there are any."""
    if not places:
        return examples, None
    rest = [place for place in range(len(examples.latents)) if place not in places]
    return examples.chosen(rest), examples.chosen(sorted(places))


def held_out_samples(
    examples: Examples, timesteps: Tensor, seed: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(picture, noise (1, C, ...), timestep (1,)) of every sample of a validation."""
    for picture, latents in enumerate(examples.latents):
        generator = generator_for(seed, "validation", picture)
        for timestep in timesteps:
            yield picture, draw_noise((1, *latents.shape), generator, 0.0), timestep[None]
