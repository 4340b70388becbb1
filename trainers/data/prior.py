"""Prior preservation without class images: the base model as its own teacher.

Before training, the base predicts on noised instance latents with the class prompt. Noisy latents,
timesteps and predictions are kept and serve as class samples, so that

    L = L_instance + lambda * mean of (prediction - base's prediction)^2

holds the model to what it made of the class (learning without forgetting, arXiv 1606.09282).
Several processes that train together ask it for a share each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..objective.noise import Objective, draw_noise, generator_for
from ..objective.timesteps import draw_timesteps
from ..optimizers.processes import ALONE, Processes
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
    processes: Processes = ALONE,
) -> Examples:
    """The instance images, then `settings.prior_samples` class samples that the base predicts.

    Those of pictures with control images have the same ones.

    Args:
        predict: the base model, before anything was trained.
        report: called after each sample with how many are done, of how many.

    Raises:
        ProcessesError: another process ended.
    """
    asked = [_question(process, examples, settings, seed, i) for i in range(settings.prior_samples)]
    own = processes.own(len(asked))
    targets = []
    for index, (noisy, timesteps, shown) in enumerate(asked):
        targets.append(torch.empty(noisy.shape[1:], dtype=torch.float32))
        if index in own:
            with torch.no_grad():
                targets[-1].copy_(predict(noisy, timesteps, [settings.class_prompt], [shown])[0])
        report(index + 1, settings.prior_samples)
    num = len(asked)
    captions = (settings.class_prompt,) * num
    controls = {i: one.controls for i, (*_, one) in enumerate(asked) if one.controls is not None}
    samples = {
        i: TeacherSample(timesteps.item(), processes.given(targets[i], by=i % processes.count))
        for i, (_, timesteps, _) in enumerate(asked)
    }
    made = Examples(
        tuple(noisy[0] for noisy, *_ in asked), (None,) * num, captions,
        tuple(shown.size for *_, shown in asked), (1,) * num, controls=controls, teacher=samples,
    )  # fmt: skip
    return examples.with_class_images(made)


def _question(
    process: Objective, examples: Examples, settings: ObjectiveConfig, seed: int, index: int
) -> tuple[Tensor, Tensor, Shown]:
    """What one sample shows the base: noisy latents (1, C, ...), timesteps (1,), the rest."""
    generator = generator_for(seed, "teacher", index)
    picture = index % examples.num_instances
    latents, shown = examples.latents[picture][None], examples.shown(picture)
    noise = draw_noise(latents.shape, generator, settings.noise_offset)
    timesteps = draw_timesteps(1, generator, settings, process, shown.size.area_px)
    return process.add_noise(latents, noise, timesteps), timesteps, shown


def put_teacher_samples(
    examples: Examples, pictures: list[int], noisy: Tensor, timesteps: Tensor, target: Tensor
) -> None:
    """Put what is given for the teacher's samples in the place of what was drawn for them."""
    for row, picture in enumerate(pictures):
        if (given := examples.teacher.get(picture)) is not None:
            noisy[row] = examples.latents[picture].to(noisy)
            timesteps[row] = given.timestep
            target[row] = given.target.to(target)
