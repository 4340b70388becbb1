"""Adapters held in bf16: what they start as, learn and hand out beside those in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.test_resume import finish, goes_on, ready, stored
from trainers.errors import SettingsError, UnavailableError
from trainers.loop import Training
from trainers.methods.adapters.variants import switched_off
from trainers.methods.lora import prepare
from trainers.optimizers.factory import make_optimizer
from trainers.optimizers.per_parameter import NARROW_STATE, PerParameter
from trainers.settings.methods.lora import LORA_VARIANTS
from trainers.settings.run import run_config
from trainers.settings.training import ALL_AT_ONCE, TrainingConfig

KINDS: dict[str, dict[str, Any]] = {
    **{variant: {"variant": variant} for variant in LORA_VARIANTS},
    "pissa": {"initialization": "pissa"},
}
BF16 = {"adapter_weights": "bf16"}


def trained_numbers(training: Training) -> dict[torch.dtype, int]:
    found: dict[torch.dtype, int] = {}
    for parameter in training.parameters:
        found[parameter.dtype] = found.get(parameter.dtype, 0) + parameter.numel()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_base_and_in_bf16(kind: str) -> None:
    job = ready(tiny.run_config(**KINDS[kind], **BF16))
    numbers = trained_numbers(Training(job))
    assert set(numbers) == {torch.bfloat16} | ({torch.float32} if kind == "dora" else set())
    lengths = numbers.get(torch.float32, 0)  # one of each output of a DoRA
    assert numbers[torch.bfloat16] >= 2 * lengths
    denoiser = job.parts.denoiser
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([7])
    text = job.parts.text.encode("a dog")
    shown = tiny.examples().sizes[:1]
    with torch.no_grad():
        ours = job.parts.predict(*inputs, [text], shown)
        with switched_off([denoiser]):
            base = job.parts.predict(*inputs, [text], shown)
    assert (ours - base).abs().max() <= 2e-5 * base.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_from_a_state_bit_for_bit(kind: str) -> None:
    config = tiny.run_config(
        steps=4, batch_size=2, learning_rate=1e-2, train_text_encoder=True, **KINDS[kind], **BF16
    )
    goes_on(config, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_as_in_fp32(kind: str) -> None:
    """Each step's loss is within 1 % of fp32's; seen were 0.02 to 0.3 % over 60 steps."""
    losses = []
    for held in ({}, BF16):
        settings = {"steps": 20, "batch_size": 4, "learning_rate": 3e-3, **KINDS[kind], **held}
        losses.append(finish(Training(ready(tiny.run_config(**settings)))))
    wide, narrow = (torch.tensor(one) for one in losses)
    assert ((wide - narrow).abs() <= 0.01 * wide).all()
    assert not torch.equal(wide, narrow)


# -- the optimizer ------------------------------------------------------------------------


def after_steps(dtype: torch.dtype, seed: int, **settings: Any) -> tuple[Tensor, PerParameter]:
    """Weights after three updates, and the optimizer."""
    parameter = nn.Parameter(torch.linspace(-1, 1, 64 * 8).reshape(64, 8).bfloat16().to(dtype))
    group = {"name": "a", "params": [parameter], "lr": 3e-4, NARROW_STATE: True}
    optimizer: Any = make_optimizer([group], TrainingConfig(seed=seed, **settings))
    for step in range(3):
        drawn = torch.randn(64, 8, generator=torch.Generator().manual_seed(step))
        parameter.grad = drawn.bfloat16().to(dtype)
        optimizer.step()
        optimizer.zero_grad()
    return parameter.detach().double(), optimizer


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_the_mean_over_many_roundings_is_the_update_in_fp32(name: str) -> None:
    exact, _ = after_steps(torch.float32, 0, optimizer=name)
    seeds = 300
    found = torch.stack([after_steps(torch.bfloat16, n, optimizer=name)[0] for n in range(seeds)])
    error = found.std(0) / seeds**0.5
    moving = error > 0  # some are where bf16 has the very number
    assert moving.double().mean() > 0.9
    off = ((found.mean(0) - exact) / error)[moving]
    assert off.square().mean().sqrt() < 1.3  # 1 is expected
    assert off.mean().abs() * len(off) ** 0.5 < 4


def test_the_state_is_held_in_bf16_too() -> None:
    _, optimizer = after_steps(torch.bfloat16, 0)
    (kept,) = optimizer.state_dict()["inner"]
    state = kept["state"][0]
    assert {state[key].dtype for key in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}
    parameter = nn.Parameter(torch.zeros(64, 8, dtype=torch.bfloat16))
    group = {"name": "a", "params": [parameter], "lr": 3e-4, NARROW_STATE: True}
    again = make_optimizer([group], TrainingConfig())
    again.load_state_dict(stored(optimizer.state_dict()))
    (loaded,) = again.state_dict()["inner"]
    for key, value in state.items():
        assert loaded["state"][0][key].dtype == value.dtype
        assert torch.equal(loaded["state"][0][key], value)


# -- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        *(
            ({"optimizer": name}, f"optimizer '{name}' looks at all weights")
            for name in ALL_AT_ONCE
        ),
        ({"precision": "fp16"}, "precision is 'fp16', but adapter_weights 'bf16' compute in bf16"),
    ],
)
def test_what_contradicts_it_is_told(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        run_config("lora", {**BF16, **settings})
    (problem,) = error.value.problems
    assert words in problem
    assert "; allowed: " in problem


def test_a_device_that_computes_in_fp16_is_refused() -> None:
    base = tiny.parts()
    base.dtype = torch.float16
    with pytest.raises(UnavailableError, match="adapter_weights bf16 is not possible in fp16"):
        prepare(base, tiny.run_config(**BF16))
