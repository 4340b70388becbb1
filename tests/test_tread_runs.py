"""Runs in which tokens skip a transformer's middle blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.test_tread import Mixed, of_mixed
from trainers.contracts import Parts, Size, Text
from trainers.data.batches import Share
from trainers.loop import Training, make_job, with_teacher
from trainers.models import tread
from trainers.models.architectures import DENOISER, GENERIC
from trainers.step import Job, losses_and_weights, validation_loss


def base() -> Parts:
    """A tiny SD1.5 with a transformer in the place of its UNet."""
    made = tiny.parts()
    torch.manual_seed(0)
    denoiser = Mixed(text_first=True, depth=4).requires_grad_(False).eval()

    def predict(
        noisy: Tensor, timesteps: Tensor, texts: Sequence[Text], sizes: Sequence[Size]
    ) -> Tensor:
        hidden: Any = [text["hidden"] for text in texts]
        return denoiser(noisy, torch.cat(hidden), timesteps)  # type: ignore[no-any-return]

    modules = {**made.modules, DENOISER: denoiser}
    return dataclasses.replace(made, modules=modules, predict=predict, architecture=GENERIC)


def job(method: str = "lora", ratio: float = 0.5, **settings: Any) -> Job:
    config = tiny.run_config(method, tread_selection_ratio=ratio, batch_size=2, **settings)
    return tiny.job(config, base())


def steps(training: Training) -> list[float]:
    return [training.step().loss for _ in range(training.done, training.total)]


@pytest.fixture(autouse=True)
def routes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(tread, "ROUTES", (*tread.ROUTES, of_mixed(True)))
        yield


def exported(made: Job) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in made.trainable.export().items()}


@pytest.mark.parametrize("method", ["lora", "dreambooth", "textual_inversion"])
def test_a_run_without_tread_is_the_same_to_the_bit(method: str) -> None:
    config = tiny.run_config(method, batch_size=2)
    plain, zero = tiny.job(config, base()), job(method, 0.0)
    assert steps(Training(plain)) == steps(Training(zero))
    tiny.assert_equal(exported(plain), exported(zero))


@pytest.mark.parametrize("method", ["lora", "dreambooth", "textual_inversion"])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
def test_a_resumed_run_is_one_that_was_not_stopped(method: str, checkpointed: bool) -> None:
    settings = {"steps": 4, "gradient_checkpointing": checkpointed}
    whole, without = job(method, **settings), job(method, 0.0, **settings)
    losses = steps(Training(whole))
    assert losses != steps(Training(without))
    first = Training(job(method, **settings))
    before = [first.step().loss for _ in range(2)]
    resumed = job(method, **settings)
    training = Training(resumed)
    training.load_state(first.state())
    assert before + steps(training) == losses
    tiny.assert_equal(exported(resumed), exported(whole))


def test_checkpointing_changes_no_bit_of_a_run() -> None:
    plain, checkpointed = job(), job(gradient_checkpointing=True)
    assert steps(Training(plain)) == steps(Training(checkpointed))
    tiny.assert_equal(exported(plain), exported(checkpointed))


def test_weights_in_ram_change_no_bit_of_a_run() -> None:
    streamed, checkpointed = job(weights_in="RAM"), job(gradient_checkpointing=True)
    assert steps(Training(streamed)) == steps(Training(checkpointed))
    tiny.assert_equal(exported(streamed), exported(checkpointed))


def test_shares_of_a_micro_batch_skip_the_same_tokens() -> None:
    made = job()
    pictures = [0, 1]
    whole, _ = losses_and_weights(made, pictures, 3, 0)
    parts = [losses_and_weights(made, pictures, 3, 0, Share(i, [i]))[0] for i in range(2)]
    torch.testing.assert_close(torch.cat(parts), whole)
    other, _ = losses_and_weights(job(ratio=0.0), pictures, 3, 0)
    assert (other - whole).abs().max() > 1e-4


def test_pictures_that_are_watched_have_all_their_tokens() -> None:
    pictures = tiny.examples(counts=(3,))
    losses = []
    for ratio in (0.0, 0.5):
        config = tiny.run_config(tread_selection_ratio=ratio)
        ready = base()
        encoded = tiny.encode_captions(ready, [*pictures.captions, ""])
        losses.append(validation_loss(make_job(ready, pictures, encoded, config, pictures)))
    assert losses[0] == losses[1]


def test_a_teacher_has_all_tokens() -> None:
    settings = {"prior": "teacher", "class_prompt": "a dog", "prior_samples": 3}
    routed, plain = (with_teacher(job(ratio=ratio, **settings)) for ratio in (0.5, 0.0))
    ours, theirs = (list(one.examples.teacher.values()) for one in (routed, plain))
    assert len(ours) == 3
    assert [one.target.tolist() for one in ours] == [one.target.tolist() for one in theirs]


def test_output_preservation_begins_at_nothing() -> None:
    """The base's prediction is made with the same tokens, so a LoRA that is new differs by none."""
    made = job(prior="output preservation", class_prompt="a dog")
    losses, _ = losses_and_weights(made, [0, 1], 0, 0)
    assert len(losses) == 4
    assert losses[2:].tolist() == [0.0, 0.0]
