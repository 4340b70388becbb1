"""Loss scaling, which fp16 needs: what happens when scaled gradients overflow.

No fp16 here, but gradients that become infinite where fp16 would end. A scale that is a power of
two changes no bit of what is learned.
"""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from tests import tiny
from trainers import loop
from trainers.errors import NonFiniteLossError
from trainers.loop import Training
from trainers.models.precision import lower_scale
from trainers.step import Job

TOO_LARGE = 2.0**40
FP16_MAX = torch.finfo(torch.float16).max
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"lr_schedule": "cosine", "dropout": 0.3}),
    "dreambooth": (
        "dreambooth",
        {"ema_decay": 0.9, "train_text_encoder": True, "text_encoder_stop_step": 2,
         "lr_schedule": "linear"},
    ),
}  # fmt: skip


def made(case: str, steps: int = 4) -> tuple[Training, Job]:
    method, settings = RUNS[case]
    job = tiny.job(tiny.run_config(method, steps=steps, seed=3, **settings))
    for parameter in job.trainable.parameters:
        parameter.register_hook(as_far_as_fp16)
    return Training(job), job


def as_far_as_fp16(gradient: Tensor) -> Tensor:
    return gradient.where(gradient.abs() <= FP16_MAX, torch.inf)


def finished(training: Training, job: Job) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    rows = []
    while not training.has_ended:
        rows.append(training.step().as_row())
    return rows, {name: tensor.clone() for name, tensor in job.trainable.export().items()}


@pytest.fixture
def large_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    def scaler(dtype: torch.dtype, device: torch.device) -> GradScaler:
        return GradScaler("cpu", init_scale=TOO_LARGE)

    monkeypatch.setattr(loop, "gradient_scaler", scaler)


@pytest.mark.parametrize("case", RUNS)
def test_a_step_that_overflows_is_tried_again_and_nothing_else_follows_it(
    case: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """The rates, the average, the text encoder's end, the rows: as if it had never been."""
    rows, learned = finished(*made(case))
    request.getfixturevalue("large_scale")
    training, job = made(case)
    with caplog.at_level(logging.INFO):
        scaled_rows, scaled = finished(training, job)
    scale = training.state()["scaler"]["scale"]
    assert 1 < scale < TOO_LARGE
    tiny.assert_equal(scaled, learned)
    assert scaled_rows == rows
    json.dumps(scaled_rows, allow_nan=False)
    said = [message for message in caplog.messages if "overflow" in message]
    assert len(said) == math.log2(TOO_LARGE / scale)
    assert "step 1" in said[0]
    assert f"{TOO_LARGE / 2:g}" in said[0]


@pytest.mark.usefixtures("large_scale")
def test_a_run_goes_on_with_the_scale_it_had() -> None:
    rows, learned = finished(*made("dreambooth"))
    first, _ = made("dreambooth")
    first.step()
    state = first.state()
    training, job = made("dreambooth")
    training.load_state(state)
    assert training.state()["scaler"] == state["scaler"]
    more, resumed = finished(training, job)
    assert more == rows[1:]
    tiny.assert_equal(resumed, learned)


def spoil(job: Job) -> list[int]:
    """Make a gradient infinite at whatever scale; how often it came."""
    came: list[int] = []

    def infinite(gradient: Tensor) -> Tensor:
        came.append(1)
        return gradient * torch.inf

    job.trainable.parameters[0].register_hook(infinite)
    return came


@pytest.mark.usefixtures("large_scale")
def test_a_run_that_always_overflows_ends() -> None:
    training, job = made("lora")
    before = [parameter.detach().clone() for parameter in training.parameters]
    came = spoil(job)
    with pytest.raises(NonFiniteLossError, match="at step 1, even with a loss scale") as error:
        training.step()
    assert "precision" in str(error.value)
    assert len(came) == 41  # 2^40 to 1
    assert training.done == 0
    for parameter, start in zip(training.parameters, before, strict=True):
        assert torch.equal(parameter, start)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_that_are_not_finite_end_a_run_without_scaling(fused: bool) -> None:
    job = tiny.job(tiny.run_config("dreambooth", fused_backward=fused))
    training = Training(job)
    spoil(job)
    with pytest.raises(NonFiniteLossError, match="gradients are not finite at step 1"):
        training.step()


def test_a_lowered_scale_waits_as_long_as_ever_before_it_grows() -> None:
    scaler = GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    scaler.load_state_dict({**scaler.state_dict(), "_growth_tracker": 7})
    lower_scale(scaler, 1)
    state = scaler.state_dict()
    assert (state["scale"], state["_growth_tracker"]) == (4.0, 0)
