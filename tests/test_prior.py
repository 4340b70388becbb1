"""The base as teacher: what it predicts before training is what class samples are held to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from trainers.data.examples import Examples
from trainers.errors import SettingsError
from trainers.loop import train, with_teacher
from trainers.methods import METHODS
from trainers.objective.noise import generator_for
from trainers.settings.methods.lora import LORA_VARIANTS
from trainers.step import Job, losses_and_weights

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


# -- output preservation ------------------------------------------------------------------

KEPT = {"prior": "output preservation", "class_prompt": "a dog"}


@pytest.mark.parametrize("train_text_encoder", [False, True])
@pytest.mark.parametrize("variant", LORA_VARIANTS)
def test_preserved_output_is_the_base_s(variant: str, train_text_encoder: bool) -> None:
    settings = {"variant": variant, "train_text_encoder": train_text_encoder, "batch_size": 2}
    made = tiny.job(tiny.run_config("lora", **settings, **KEPT, prior_weight=0.5))
    plain = tiny.job(tiny.run_config("lora", **settings))
    for one in (made, plain):  # as after some steps
        random = torch.Generator().manual_seed(0)
        for parameter in one.trainable.parameters:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)
    losses, weights = losses_and_weights(made, [0, 1], 0, 0)
    of_instances, _ = losses_and_weights(plain, [0, 1], 0, 0)
    assert torch.equal(losses[:2], of_instances)
    assert weights.tolist() == [1.0, 1.0, 0.5, 0.5]
    # By the formula, with a base that never had a LoRA.
    base = tiny.parts()
    noisy, timesteps = noisy_of(made, [0, 1])
    sizes = [made.examples.sizes[0]] * 2
    with torch.no_grad():
        target = base.predict(noisy, timesteps, [base.text.encode("a dog")] * 2, sizes)
        parts = made.parts
        ours = parts.predict(noisy, timesteps, [parts.text.encode("a dog")] * 2, sizes)
    expected = (ours - target).square().flatten(1).mean(1)
    torch.testing.assert_close(losses[2:].detach(), expected, rtol=1e-4, atol=1e-7)
    assert expected.min() > 0


def noisy_of(job: Job, pictures: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the first step trains on."""
    generator = generator_for(job.config.training.seed, 0, 0)
    latents = torch.stack([job.examples.latents[picture] for picture in pictures])
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.randint(0, 1000, (len(pictures),), generator=generator)
    return job.parts.objective.add_noise(latents, noise, timesteps), timesteps


def test_untrained_lora_preserves_all() -> None:
    made = tiny.job(tiny.run_config("lora", **KEPT))
    losses, _ = losses_and_weights(made, [0], 0, 0)
    assert losses[1] == 0
    losses.sum().backward()
    assert any(p.grad.abs().max() > 0 for p in made.trainable.parameters if p.grad is not None)


def test_preservation_needs_a_lora_and_a_prompt() -> None:
    with pytest.raises(SettingsError, match="changes the base's weights themselves"):
        tiny.run_config("dreambooth", **KEPT)
    with pytest.raises(SettingsError, match="class_prompt is empty, but prior 'output"):
        tiny.run_config("lora", prior="output preservation")
    assert tiny.run_config("dreambooth", **KEPT, prior_weight=0.0)
