"""Held-out pictures: which, their loss against the formula, the best step, and who ends the run."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.dataset_files import batch
from trainers.data.batches import planned_steps
from trainers.data.examples import Examples
from trainers.data.validation import (
    NUM_TIMESTEPS,
    check_watched,
    held_out_places,
    seen_twice,
    split,
)
from trainers.errors import DatasetError, SettingsError
from trainers.loop import Training, make_job
from trainers.objective.noise import generator_for
from trainers.settings.run import RunConfig
from trainers.step import Job, validation_loss


def job(config: RunConfig, watched: bool = True) -> Job:
    """A run on three pictures of five; the other two are watched, or not there at all."""
    base = tiny.parts()
    trained, held_out = split(tiny.examples(counts=(3, 2), masked=True), frozenset({1, 4}))
    encoded = tiny.encode_captions(base, [*tiny.CAPTIONS, ""])
    if config.own.trains_text:
        encoded = None
    return make_job(base, trained, encoded, config, held_out if watched else None)


def config(method: str = "lora", **settings: Any) -> RunConfig:
    watching = {"held_out": 0.4, "validate_every": 2, "batch_size": 2, "steps": 6}
    return tiny.run_config(method, **watching | settings)


def finished(made: Job) -> tuple[Training, list[float | None]]:
    training, seen = Training(made), []
    while not training.has_ended:
        seen.append(training.step().validation)
    return training, seen


# -- which pictures -----------------------------------------------------------


@pytest.mark.parametrize(
    ("num", "share", "count"), [(10, 0.0, 0), (10, 0.2, 2), (10, 0.01, 1), (2, 0.5, 1), (9, 0.9, 8)]
)
def test_the_share_that_was_asked_for_is_held_out(num: int, share: float, count: int) -> None:
    places = held_out_places(num, share, seed=3)
    assert len(places) == count
    assert places <= set(range(num))
    assert places == held_out_places(num, share, seed=3)


def test_another_seed_holds_out_others() -> None:
    assert len({held_out_places(20, 0.3, seed) for seed in range(5)}) > 1


@pytest.mark.parametrize("num", [0, 1, 2])
def test_something_must_be_left_to_train(num: int) -> None:
    with pytest.raises(DatasetError, match="leaves none to train"):
        held_out_places(num, 0.9, seed=0)


def test_split_parts_every_picture_once() -> None:
    examples = tiny.examples(counts=(3, 2))
    trained, held_out = split(examples, frozenset({0, 3}))
    assert held_out is not None
    assert [len(part.latents) for part in (trained, held_out)] == [3, 2]
    assert {id(x) for part in (trained, held_out) for x in part.latents} == {
        id(x) for x in examples.latents
    }
    assert split(examples, frozenset()) == (examples, None)


def test_an_epoch_is_of_the_pictures_that_train() -> None:
    whole = planned_steps(batch(10), tiny.run_config(epochs=2, batch_size=1))
    assert planned_steps(batch(10), tiny.run_config(epochs=2, batch_size=1, held_out=0.3)) == (
        whole * 7 // 10
    )


# -- the loss -----------------------------------------------------------------


def test_loss_is_that_of_the_formula() -> None:
    made = job(config())
    examples, parts = made.held_out, made.parts
    assert isinstance(examples, Examples)
    assert made.encoded is not None
    abar, losses = parts.objective.alphas_cumprod, []
    for picture, latents in enumerate(examples.latents):
        generator = generator_for(made.config.training.seed, "validation", picture)
        for k in range(1, NUM_TIMESTEPS + 1):
            t = round(999 * k / (NUM_TIMESTEPS + 1))
            noise = torch.randn(1, *latents.shape, generator=generator)
            noisy = abar[t].sqrt() * latents[None] + (1 - abar[t]).sqrt() * noise
            at = torch.tensor([t])
            text, sizes = [made.encoded[examples.captions[picture]]], [examples.sizes[picture]]
            with torch.no_grad():
                predicted = parts.predict(noisy, at, text, sizes)
            error = (predicted - noise).square()
            if (mask := examples.masks[picture]) is not None:
                whole = mask.expand_as(error[0])
                losses.append(float((error[0] * whole).sum() / whole.sum()))
            else:
                losses.append(float(error.mean()))
    assert validation_loss(made) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_two_validations_of_the_same_model_are_the_same() -> None:
    made = job(config(dropout=0.5))
    assert validation_loss(made) == validation_loss(made)
    dropouts = [m for n, m in made.parts.denoiser.named_modules() if n.endswith("lora_dropout")]
    assert dropouts
    assert all(dropout.training for dropout in dropouts)


def test_only_adapters_drop_at_random() -> None:
    base = tiny.parts()
    base.denoiser.add_module("own", nn.Dropout(0.5))  # as some of the host's modules have
    made = tiny.job(tiny.run_config("lora", dropout=0.5), base)
    on = {name for name, module in made.parts.denoiser.named_modules() if module.training}
    assert on
    assert all("lora_dropout" in name for name in on)


@pytest.mark.parametrize("method", ["lora", "dreambooth", "textual_inversion"])
def test_validation_changes_nothing_that_is_learned(method: str) -> None:
    random: dict[str, Any] = {"caption_dropout": 0.3} | (
        {"dropout": 0.3} if method == "lora" else {}
    )
    watched, without = job(config(method, **random)), job(config(method, **random), False)
    finished(watched), finished(without)
    tiny.assert_equal(watched.trainable.export(), without.trainable.export())


# -- what follows -------------------------------------------------------------


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    ahead = iter(losses)
    monkeypatch.setattr("trainers.loop.validation_loss", lambda job: next(ahead))


def test_validations_come_when_asked_for_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [4.0, 3.0, 2.0, 1.0])
    _, seen = finished(job(config(steps=7)))
    assert seen == [None, 4.0, None, 3.0, None, 2.0, 1.0]


def test_best_step_is_kept_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [3.0, 1.0, 2.0])
    made = job(config(hand_out="best step"))
    training = Training(made)
    at_best: dict[str, Tensor] = {}
    while not training.has_ended:
        if training.step().step == 4:
            at_best = {name: tensor.clone() for name, tensor in made.trainable.export().items()}
    assert training.best is not None
    assert (training.best.step, training.best.loss, training.best.since) == (4, 1.0, 1)
    assert training.best.tensors is not None
    tiny.assert_equal(training.best.tensors, at_best)


def test_best_step_is_copied_once_and_after_the_one_before_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted(monkeypatch, [3.0, 2.0, 1.0])
    made = job(config("dreambooth", hand_out="best step"))
    export, given = made.trainable.export, []

    def watched(copy: bool = False) -> dict[str, Tensor]:
        assert all(reference() is None for references in given for reference in references)
        tensors = export(copy)
        given.append([weakref.ref(tensor) for tensor in tensors.values()])
        return tensors

    monkeypatch.setattr(made.trainable, "export", watched)
    training, _ = finished(made)
    assert len(given) == 3
    assert training.best is not None
    assert training.best.tensors is not None
    kept = [*training.best.tensors.values()]
    assert all(reference() is t for reference, t in zip(given[-1], kept, strict=True))
    trained = {parameter.data_ptr() for parameter in training.parameters}
    assert not trained & {tensor.data_ptr() for tensor in kept}


def test_last_step_needs_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [3.0, 1.0, 2.0])
    training, _ = finished(job(config()))
    assert training.best is not None
    assert training.best.tensors is None


def test_patience_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [3.0, 1.0, 2.0, 1.0, 0.5])
    training, seen = finished(job(config(steps=20, patience=2)))
    assert len(seen) == training.done == 8


@pytest.mark.parametrize("settings", [{"hand_out": "best step"}, {"patience": 3}])
def test_settings_that_look_at_pictures_need_some(settings: dict[str, Any]) -> None:
    asked = config(held_out=0.0, **settings)
    with pytest.raises(SettingsError, match="held_out is 0"):
        check_watched(asked.validation, has_dataset=False)
    with pytest.raises(SettingsError, match="held_out is 0"):
        job(asked, watched=False)
    check_watched(asked.validation, has_dataset=True)
    assert finished(job(asked))[0].best is not None


def test_a_share_and_a_dataset_are_two_answers() -> None:
    with pytest.raises(SettingsError, match="held_out is 0.4, but a validation_dataset"):
        check_watched(config().validation, has_dataset=True)


def test_pictures_that_are_trained_and_watched_are_named() -> None:
    pictures = [torch.full((128, 128, 3), value / 4) for value in range(4)]
    trained = batch(images=pictures[:3])
    assert seen_twice(trained, batch(images=pictures[2:])) == ["image 1"]
    assert seen_twice(trained, batch(images=pictures[3:])) == []


def test_a_token_in_watched_captions_alone_is_not_learned() -> None:
    settings = config("textual_inversion", held_out=0.0, templates="captions only")
    trained, watched = split(tiny.examples(counts=(3, 2)), frozenset({1, 4}))
    assert watched is not None
    watched = dataclasses.replace(watched, captions=("a photo of <sks>",) * 2)
    with pytest.raises(DatasetError, match="in none of the captions"):
        make_job(tiny.parts(), trained, None, settings, watched)


def test_resumed_run_has_the_same_best_step() -> None:
    settings = config(hand_out="best step", validate_every=1, learning_rate=1e-2)
    whole, _ = finished(job(settings))
    first, resumed = Training(job(settings)), Training(job(settings))
    for _ in range(3):
        first.step()
    resumed.load_state(first.state())
    while not resumed.has_ended:
        resumed.step()
    assert whole.best is not None
    assert resumed.best is not None
    assert (resumed.best.step, resumed.best.loss) == (whole.best.step, whole.best.loss)
    assert whole.best.tensors is not None
    assert resumed.best.tensors is not None
    tiny.assert_equal(resumed.best.tensors, whole.best.tensors)
