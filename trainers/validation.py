"""Validation: which pictures are held out, and the noise they are looked at with.

    L_val = mean of the loss over held-out pictures and 8 fixed timesteps, each with its own noise

The noise is the same at every look, so two looks differ by what was learned between them alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .cache import Examples
from .errors import DatasetError
from .noise import draw_noise, generator_for

NUM_TIMESTEPS = 8


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


def looks(
    examples: Examples, lowest: int, highest: int, seed: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(picture, noise (1, C, h, w), timestep (1,)) of every sample of a look."""
    timesteps = torch.linspace(lowest, highest, NUM_TIMESTEPS + 2)[1:-1].round().long()
    for picture, latents in enumerate(examples.latents):
        generator = generator_for(seed, "validation", picture)
        for timestep in timesteps:
            yield picture, draw_noise((1, *latents.shape), generator, 0.0), timestep[None]
