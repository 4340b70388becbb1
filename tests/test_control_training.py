"""What training does with control images: encoded once, told with every sample of their picture."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tests import tiny
from tests.dataset_files import batch
from tests.test_controls import images
from trainers.contracts import REFERENCES, Parts
from trainers.data.dataset import batch_dataset
from trainers.data.examples import Examples, encode_pictures
from trainers.data.validation import split
from trainers.errors import DatasetError
from trainers.loop import make_job, with_teacher
from trainers.models.architectures import FLUX
from trainers.settings.dataset import DatasetConfig
from trainers.step import Job, all_prompts, losses_and_weights, validation_loss


def shrink(pixels: torch.Tensor) -> torch.Tensor:
    """Stands for a VAE: the mean of each 8 by 8 block, in four channels."""
    planes = pixels.permute(0, 3, 1, 2)
    return torch.nn.functional.avg_pool2d(planes, 8)[:, [0, 1, 2, 0]]


def edit_examples() -> Examples:
    """Three pictures of two shapes, the middle one with a control image of a shape of its own."""
    shown = [images(1, (64, 64), seed)[0] for seed in (1, 2, 3)]
    shown[1] = images(1, (64, 128), 2)[0]
    pictures = [*images(2, (64, 64)), *images(1, (64, 96))]
    config = DatasetConfig(resolution=96, upscale=True)
    dataset = batch_dataset(pictures, list(tiny.CAPTIONS), None, config, [shown])
    return encode_pictures(dataset, shrink, scale=lambda latents: 2 * latents)


def test_control_images_are_kept_as_the_vae_gives_them() -> None:
    dataset = batch(controls=[images(), images(2, (64, 64))])
    examples = encode_pictures(dataset, shrink, scale=lambda latents: 2 * latents)
    assert torch.equal(examples.latents[1], 2 * shrink(dataset.pixels(1)[None])[0])
    one = examples.controls[1]
    assert [latent.shape for latent in one.latents] == [(1, 4, 16, 24), (1, 4, 20, 20)]
    for latent, pixels, again in zip(one.latents, dataset.controls(1), one.pixels(), strict=True):
        assert torch.equal(latent, shrink(pixels[None]))
        assert torch.equal(again, pixels[None])
    assert encode_pictures(batch(), shrink).controls == {}


def test_vae_overflows_on_a_control_image() -> None:
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return shrink(pixels) / (0 if pixels.shape[1] == 160 else 1)

    with pytest.raises(DatasetError, match="turns 'control image 1' into NaN"):
        encode_pictures(batch(controls=[images(2, (64, 64))]), encode)


def test_control_images_follow_their_pictures() -> None:
    examples = edit_examples()
    rest, watched = split(examples, frozenset([1]))
    assert watched is not None
    assert watched.controls == {0: examples.controls[1]}
    assert rest.controls == {0: examples.controls[0], 1: examples.controls[2]}
    joined = tiny.examples().with_class_images(examples)
    assert joined.controls == {3 + index: one for index, one in examples.controls.items()}
    assert joined.shown(2).controls is None


class Told(list[list[tuple[Any, ...]]]):
    """What the denoiser is told of each sample: its size and references."""

    def __init__(self, parts: Parts) -> None:
        self._predict, parts.predict = parts.predict, self.predict

    def predict(self, noisy: Any, timesteps: Any, texts: Any, sizes: Any) -> torch.Tensor:
        self.append([(text, text.get(REFERENCES)) for text in texts])
        plain = [{k: v for k, v in text.items() if k != REFERENCES} for text in texts]
        return self._predict(noisy, timesteps, plain, sizes)


def edit_job(looks: bool = False, **settings: Any) -> tuple[Job, Told]:
    base = tiny.parts()
    config, pictures = tiny.run_config(**settings), edit_examples()
    texts = [*tiny.CAPTIONS, config.objective.class_prompt, ""]
    encoded: dict[Any, Any] = {}
    if looks:
        base.architecture = dataclasses.replace(base.architecture, control_encoder="Node")
        for controls in pictures.controls.values():
            encoded |= {(text, controls): base.text.encode(text) for text in texts}
    else:
        encoded |= tiny.encode_captions(base, texts)
    told = Told(base)
    return make_job(base, pictures, encoded, config, pictures), told


@pytest.mark.parametrize("looks", [False, True])
def test_every_sample_is_told_of_its_own_control_images(looks: bool) -> None:
    job, told = edit_job(looks, caption_dropout=0.5)
    for step in range(6):
        for picture in range(3):
            losses_and_weights(job, [picture], step, 0)
            ((text, references),) = told.pop()
            controls = job.examples.controls[picture]
            assert references is controls.latents
            captions = (tiny.CAPTIONS[picture], "")
            keys = [(caption, controls) if looks else caption for caption in captions]
            assert any(text["hidden"] is job.encoded[key]["hidden"] for key in keys)


def test_validation_and_preservation_see_the_same_control_images() -> None:
    job, told = edit_job(prior="output preservation", class_prompt="a dog")
    losses_and_weights(job, [0, 1], 0, 0)
    assert len(told) == 3  # the samples, then the base and the adapter on the class prompt
    latents = [job.examples.controls[index].latents for index in (0, 1)]
    assert all([r for _, r in batch] == latents for batch in told)
    told.clear()
    validation_loss(job)
    assert {id(references) for ((_, references),) in told} == {
        id(one.latents) for one in job.examples.controls.values()
    }


def test_teacher_s_samples_have_their_pictures_control_images() -> None:
    job, told = edit_job(
        method="dreambooth", prior="teacher", class_prompt="a dog", prior_samples=4
    )
    taught = with_teacher(job).examples
    assert [taught.controls[3 + i] for i in range(4)] == [
        taught.controls[index] for index in (0, 1, 2, 0)
    ]
    assert [r for ((_, r),) in told] == [taught.controls[3 + i].latents for i in range(4)]


@pytest.mark.parametrize("encoder", ["", "Node"])
def test_all_that_is_read_is_encoded_before(encoder: str) -> None:
    architecture = dataclasses.replace(FLUX, control_encoder=encoder)
    settings = tiny.run_config(caption_prefix="sks:", class_prompt="a dog").objective
    trained = edit_examples()
    joined = trained.with_class_images(tiny.examples(counts=(1,)))
    found = all_prompts([joined, trained], settings, architecture, 0)
    plain = [tiny.CAPTIONS[0], "", "a dog"]  # of the class image, taken as it is
    told = [*(f"sks: {caption}" for caption in dict.fromkeys(tiny.CAPTIONS)), "", "a dog"]
    if not encoder:
        assert set(found) == {*plain, *told}
        return
    expected: set[Any] = set(plain)
    for place, caption in enumerate(trained.captions):
        expected |= {(t, trained.controls[place]) for t in (f"sks: {caption}", "", "a dog")}
    assert set(found) == expected
    assert len(found) == len(expected)
