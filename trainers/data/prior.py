"""Prior preservation without class images: the base model as its own teacher.

Before training, the base predicts on noised instance latents with the class prompt. Noisy latents,
timesteps and predictions are kept and serve as class samples, so that

    L = L_instance + lambda * mean of (prediction - base's prediction)^2

holds the model to what it made of the class (learning without forgetting, arXiv 1606.09282).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..objective.noise import Objective, draw_noise, generator_for
from ..objective.timesteps import draw_timesteps
from ..settings.objective import ObjectiveConfig
from .examples import Examples, Shown, TeacherSample

# (noisy latents (1, C, ...), timesteps (1,), captions, what else is told) -> prediction (1, C, ...)
Predict = Callable[[Tensor, Tensor, list[str], list[Shown]], Tensor]


def teach(
    predict: Predict,
    process: Objective,
    examples: Examples,
    settings: ObjectiveConfig,
    seed: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Examples:
    """The instance images, then `settings.prior_samples` class samples that the base predicts.

    Those of pictures with control images have the same ones.

    Args:
        predict: the base model, before anything was trained.
        report: called after each sample with how many are done, of how many.
    """
    noisy: list[Tensor] = []
    shown: list[Shown] = []
    samples: dict[int, TeacherSample] = {}
    for index in range(settings.prior_samples):
        generator = generator_for(seed, "teacher", index)
        picture = index % examples.num_instances
        latents = examples.latents[picture][None]
        shown.append(examples.shown(picture))
        noise = draw_noise(latents.shape, generator, settings.noise_offset)
        timesteps = draw_timesteps(1, generator, settings, process, shown[-1].size.area_px)
        noisy.append(process.add_noise(latents, noise, timesteps)[0])
        with torch.no_grad():
            prediction = predict(noisy[-1][None], timesteps, [settings.class_prompt], shown[-1:])
        samples[index] = TeacherSample(timesteps.item(), prediction[0].float().cpu())
        report(index + 1, settings.prior_samples)
    num = len(noisy)
    captions = (settings.class_prompt,) * num
    sizes = tuple(one.size for one in shown)
    controls = {i: one.controls for i, one in enumerate(shown) if one.controls is not None}
    made = Examples(
        tuple(noisy), (None,) * num, captions, sizes, (1,) * num,
        controls=controls, teacher=samples,
    )  # fmt: skip
    return examples.with_class_images(made)


def put_teacher_samples(
    examples: Examples, pictures: list[int], noisy: Tensor, timesteps: Tensor, target: Tensor
) -> None:
    """Put what is given for the teacher's samples in the place of what was drawn for them."""
    for row, picture in enumerate(pictures):
        if (given := examples.teacher.get(picture)) is not None:
            noisy[row] = examples.latents[picture].to(noisy)
            timesteps[row] = given.timestep
            target[row] = given.target.to(target)
