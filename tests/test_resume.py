"""A training that goes on from a state is, bit for bit, one that was never stopped."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from trainers.loop import Training, with_teacher
from trainers.settings.run import RunConfig
from trainers.step import Job

STEPS = 6
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"dropout": 0.3, "caption_dropout": 0.3, "train_text_encoder": True}),
    "pissa": ("lora", {"initialization": "pissa", "train_text_encoder": True}),
    **{variant: ("lora", {"variant": variant}) for variant in ("lokr", "loha", "oft")},
    "cosine with restarts": ("lora", {"lr_schedule": "cosine_with_restarts", "warmup_steps": 2}),
    "accumulation": ("lora", {"gradient_accumulation": 3, "noise_offset": 0.1}),
    "adafactor": ("lora", {"optimizer": "adafactor"}),
    "dreambooth": ("dreambooth", {"ema_decay": 0.9, "train_text_encoder": True}),
    "average in RAM": (
        "dreambooth",
        {"ema_decay": 0.9, "ema_on_cpu": True, "ema_update_step_interval": 4},
    ),
    "text encoder stops before": (
        "dreambooth",
        {"train_text_encoder": True, "text_encoder_stop_step": 2},
    ),
    "text encoder stops after": (
        "dreambooth",
        {"train_text_encoder": True, "text_encoder_stop_step": 4},
    ),
    "fused": ("dreambooth", {"fused_backward": True}),
    "bf16 weights": ("dreambooth", {"weights": "bf16", "precision": "auto"}),
    "teacher": ("dreambooth", {"prior": "teacher", "class_prompt": "a dog", "prior_samples": 3}),
    "textual inversion": ("textual_inversion", {"norm_control": True, "templates": "object"}),
}


def ready(config: RunConfig) -> Job:
    dtype = torch.bfloat16 if getattr(config.own, "weights", "") == "bf16" else torch.float32
    made = tiny.job(config, tiny.parts(dtype=dtype))
    return with_teacher(made) if config.objective.uses_teacher else made


def finish(training: Training) -> list[float]:
    return [training.step().loss for _ in range(training.done, training.total)]


def result(job: Job) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in job.trainable.export().items()}


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """The state after a way through a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def goes_on(config: RunConfig, *stops: int) -> tuple[Training, Training]:
    """A run that was stopped goes on, to the bit as one that was not stopped.

    Args:
        stops: after so many steps each; the states of all of them come from one run.

    Returns:
        What trained until it was stopped, and what went on to the end, at the last of `stops`.
    """
    whole = ready(config)
    losses, expected = finish(Training(whole)), result(whole)
    first, before = Training(ready(config)), []
    for stop in stops:
        before += [first.step().loss for _ in range(first.done, stop)]
        resumed = ready(config)
        training = Training(resumed)
        training.load_state(stored(first.state()))
        assert training.done == stop
        assert before + finish(training) == losses
        tiny.assert_equal(result(resumed), expected)
    return first, training


@pytest.mark.parametrize(("method", "settings"), RUNS.values(), ids=RUNS)
def test_resumed_run_equals_one_that_was_not_stopped(method: str, settings: dict[str, Any]) -> None:
    goes_on(tiny.run_config(method, steps=STEPS, batch_size=2, **settings), 1, 3, 5)


def test_a_longer_run_goes_on_from_a_shorter_one() -> None:
    short, long = (tiny.run_config(steps=steps) for steps in (2, 5))
    first = Training(ready(short))
    finish(first)
    resumed, whole = ready(long), ready(long)
    training = Training(resumed)
    training.load_state(stored(first.state()))
    finish(training), finish(Training(whole))
    tiny.assert_equal(result(resumed), result(whole))
