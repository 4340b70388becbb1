"""The base as teacher: what it predicts before training is what class samples are held to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from trainers.data.examples import Examples
from trainers.loop import train, with_teacher
from trainers.methods import METHODS
from trainers.step import Job

TEACHER = {"prior": "teacher", "class_prompt": "a photo of a dog", "prior_samples": 6}


def teacher_job(method: str = "dreambooth", **settings: Any) -> Job:
    config = tiny.run_config(method, **TEACHER, **settings)
    return with_teacher(tiny.job(config, pictures=tiny.examples()))


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    if request.param not in ("lora", "dreambooth"):
        pytest.skip("has no class images")
    return str(request.param)


def base_prediction(examples: Examples, index: int) -> Tensor:
    base = tiny.parts()
    text = base.text.encode(TEACHER["class_prompt"])
    timestep = torch.tensor([examples.teacher[index].timestep])
    return base.predict(examples.latents[index][None], timestep, [text], [examples.sizes[index]])[0]


@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_targets_are_the_base_s_predictions(method: str, train_text_encoder: bool) -> None:
    examples = teacher_job(method, train_text_encoder=train_text_encoder).examples
    assert examples.num_instances == 3
    assert list(examples.teacher) == [3, 4, 5, 6, 7, 8]
    for index, given in examples.teacher.items():
        torch.testing.assert_close(given.target, base_prediction(examples, index))
    timesteps = {given.timestep for given in examples.teacher.values()}
    assert len(timesteps) > 3


def test_noisy_latents_are_those_of_the_instances() -> None:
    examples = teacher_job(timestep_min=0, timestep_max=0).examples
    for index in examples.teacher:
        instance = examples.latents[(index - 3) % 3]
        torch.testing.assert_close(examples.latents[index], instance, atol=0.2, rtol=0)


def test_untrained_model_has_no_prior_loss(method: str) -> None:
    """Class samples weigh nothing in the first step, since the model is its own teacher."""
    losses = [
        train(teacher_job(method, steps=1, prior_weight=weight, seed=4))[0]
        for weight in (1e-6, 100.0)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_trained_model_is_held_to_the_base() -> None:
    """After the same steps, a heavy prior keeps the class prediction nearer to the base's."""
    drift = []
    for weight in (1e-6, 10.0):
        job = teacher_job(steps=20, learning_rate=1e-3, prior_weight=weight)
        train(job)
        assert job.encoded is not None
        text, far = job.encoded[TEACHER["class_prompt"]], 0.0
        for index, given in job.examples.teacher.items():
            noisy, timestep = job.examples.latents[index][None], torch.tensor([given.timestep])
            with torch.no_grad():
                predicted = job.parts.predict(noisy, timestep, [text], [job.examples.sizes[index]])
            far += (predicted[0] - given.target).square().mean().item()
        drift.append(far)
    assert drift[1] < 0.5 * drift[0]


def test_caption_dropout_spares_the_teachers_samples() -> None:
    job = teacher_job(steps=1, caption_dropout=1.0, prior_weight=100.0, batch_size=2)
    silent = teacher_job(steps=1, caption_dropout=1.0, prior_weight=1e-6, batch_size=2)
    assert train(job)[0] == pytest.approx(train(silent)[0], rel=1e-3)


def test_same_seed_same_teacher() -> None:
    first, second = teacher_job(seed=2).examples, teacher_job(seed=2).examples
    other = teacher_job(seed=3).examples
    for index in first.teacher:
        assert torch.equal(first.latents[index], second.latents[index])
        assert not torch.equal(first.latents[index], other.latents[index])
