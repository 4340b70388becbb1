"""Optimizers on a small bowl and against AdamW's own lines; schedules against their formulas."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from trainers.errors import UnavailableError
from trainers.optimizers.factory import make_optimizer, make_schedule
from trainers.settings.training import LR_SCHEDULES, OPTIMIZERS, TrainingConfig


class Row(NamedTuple):
    """What is expected of an optimizer.

    Attributes:
        rate: one that suits it.
        package: what is installed for it, and what that is imported as.
        steps: until it has learned something.
    """

    rate: float
    package: str = ""
    module: str = ""
    steps: int = 40


BITSANDBYTES = ("bitsandbytes", "bitsandbytes")
ROWS = {
    "adamw": Row(0.05),
    "adamw_8bit": Row(0.05, *BITSANDBYTES),
    "adafactor": Row(0.05),
    "prodigy": Row(1.0, "prodigyopt", "prodigyopt", steps=200),  # it finds its rate first
    "lion": Row(0.02, *BITSANDBYTES),
    "lion_8bit": Row(0.02, *BITSANDBYTES),
    "paged_adamw": Row(0.05, *BITSANDBYTES),
    "paged_adamw_8bit": Row(0.05, *BITSANDBYTES),
    "adamw_schedule_free": Row(0.05, "schedulefree", "schedulefree"),
    "prodigy_schedule_free": Row(1.0, "prodigy-plus-schedule-free", "prodigyplus", steps=200),
    "came": Row(0.05, "came-pytorch", "came_pytorch"),
    "muon": Row(0.05),
}
PACKAGES = {name: row for name, row in ROWS.items() if row.package}
RATES = {name: row.rate for name, row in ROWS.items()}
SIZE = 4096  # fewer numbers than this stay in fp32 with the 8-bit optimizer


def groups(*parameters: Tensor, lr: float) -> list[dict[str, Any]]:
    return [{"name": "denoiser", "params": list(parameters), "lr": lr}]


def optimizer_of(name: str, parameter: Tensor, **settings: Any) -> torch.optim.Optimizer:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name].module)
    return make_optimizer(
        groups(parameter, lr=RATES[name]), TrainingConfig(optimizer=name, **settings)
    )


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_every_optimizer_is_tested() -> None:
    assert RATES.keys() == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_lowers_a_quadratic(name: str) -> None:
    weight, goal = nn.Parameter(drawn(64, SIZE // 64)), drawn(64, SIZE // 64, seed=1)
    optimizer = optimizer_of(name, weight, weight_decay=0.0)
    start = (weight - goal).square().mean().item()
    for _ in range(ROWS[name].steps):
        optimizer.zero_grad()
        (weight - goal).square().mean().backward()
        optimizer.step()
    assert (weight - goal).square().mean().item() < 0.7 * start


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_keeps_each_groups_rate(name: str) -> None:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name].module)
    both = groups(nn.Parameter(drawn(4)), lr=0.1) + groups(nn.Parameter(drawn(4)), lr=0.02)
    made = make_optimizer(both, TrainingConfig(optimizer=name, weight_decay=0.03))
    assert [group["lr"] for group in made.param_groups] == [0.1, 0.02]
    assert [group["weight_decay"] for group in made.param_groups] == [0.03, 0.03]


def test_adamw_equals_formula() -> None:
    lr, decay, beta1, beta2, eps = RATES["adamw"], 0.1, 0.9, 0.999, 1e-8
    parameter = nn.Parameter(drawn(5, 3))
    optimizer = optimizer_of("adamw", parameter, weight_decay=decay)
    expected = parameter.detach().double()
    first, second = torch.zeros(5, 3).double(), torch.zeros(5, 3).double()
    for step in range(1, 4):
        gradient = drawn(5, 3, seed=step)
        parameter.grad = gradient.clone()
        optimizer.step()
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient.double().square()
        direction = first / (1 - beta1**step) / ((second / (1 - beta2**step)).sqrt() + eps)
        expected = expected - lr * decay * expected - lr * direction
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=0, atol=1e-6)


def test_lion_equals_formula() -> None:
    lr, decay, beta1, beta2 = RATES["lion"], 0.1, 0.9, 0.99
    parameter = nn.Parameter(drawn(5, 3))
    optimizer = optimizer_of("lion", parameter, weight_decay=decay)
    expected, momentum = parameter.detach().clone(), torch.zeros(5, 3)
    for step in range(1, 4):
        gradient = drawn(5, 3, seed=step)
        parameter.grad = gradient.clone()
        optimizer.step()
        direction = (beta1 * momentum + (1 - beta1) * gradient).sign()
        expected = expected - lr * decay * expected - lr * direction
        momentum = beta2 * momentum + (1 - beta2) * gradient
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6)


def test_adamw_8bit_is_near_adamw() -> None:
    plain, eight = (nn.Parameter(drawn(64, SIZE // 64)) for _ in range(2))
    optimizers = optimizer_of("adamw", plain), optimizer_of("adamw_8bit", eight)
    for step in range(5):
        for parameter in (plain, eight):
            parameter.grad = drawn(64, SIZE // 64, seed=step)
        for optimizer in optimizers:
            optimizer.step()
    moved = (plain - drawn(64, SIZE // 64)).norm()
    assert (plain - eight).norm() < 0.05 * moved


def test_adafactor_follows_the_rate_it_is_given() -> None:
    # Without its own schedule and scaling, the update's root mean square is the rate.
    parameter = nn.Parameter(torch.zeros(8, 8))
    optimizer = optimizer_of("adafactor", parameter, weight_decay=0.0)
    parameter.grad = drawn(8, 1) * drawn(1, 8, seed=1)
    optimizer.step()
    root_mean_square = parameter.detach().square().mean().sqrt().item()
    assert root_mean_square == pytest.approx(RATES["adafactor"], rel=0.01)


@pytest.mark.parametrize("name", PACKAGES)
def test_optimizer_package_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = PACKAGES[name].package
    monkeypatch.setitem(sys.modules, PACKAGES[name].module, None)
    with pytest.raises(UnavailableError, match=f"python -m pip install {package}") as error:
        make_optimizer(groups(nn.Parameter(drawn(4)), lr=0.1), TrainingConfig(optimizer=name))
    assert f"'{name}'" in str(error.value)


WARMUP, STEPS, LR = 4, 20, 0.2


def left(step: int) -> float:
    """Share of the steps after warm-up that are still to come."""
    return (STEPS - step) / (STEPS - WARMUP)


# what each schedule multiplies the rate by, once warm
FORMULAS: dict[str, Callable[[int], float]] = {
    "constant_with_warmup": lambda step: 1.0,
    "linear": left,
    "cosine": lambda step: 0.5 * (1 + math.cos(math.pi * (1 - left(step)))),
    "cosine_with_restarts": lambda step: 0.5 * (1 + math.cos(math.pi * (1 - left(step)))),
    "polynomial": left,  # to the power of 1
}


def rates(schedule: str, warmup: int) -> list[float]:
    """The rate of every step, as the loop asks for it."""
    config = TrainingConfig(lr_schedule=schedule, warmup_steps=warmup, steps=STEPS)
    optimizer = make_optimizer(groups(nn.Parameter(drawn(2)), lr=LR), config)
    made = make_schedule(optimizer, config, STEPS)
    found = []
    for _ in range(STEPS):
        found.append(made.get_last_lr()[0])
        optimizer.step()
        made.step()
    return found


def test_every_schedule_is_tested() -> None:
    assert FORMULAS.keys() | {"constant"} == set(LR_SCHEDULES)


def test_schedule_constant() -> None:
    assert rates("constant", 0) == [LR] * STEPS


@pytest.mark.parametrize("schedule", FORMULAS)
def test_schedule_equals_formula(schedule: str) -> None:
    for step, rate in enumerate(rates(schedule, WARMUP)):
        factor = step / WARMUP if step < WARMUP else FORMULAS[schedule](step)
        # The polynomial one ends a ten-thousandth above zero.
        assert rate == pytest.approx(LR * factor, rel=1e-6, abs=1e-4 * LR)


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_schedule_any_optimizer(name: str, schedule: str) -> None:
    parameter = nn.Parameter(drawn(4))
    optimizer = optimizer_of(name, parameter)
    made = make_schedule(optimizer, TrainingConfig(lr_schedule=schedule), STEPS)
    for _ in range(2):
        parameter.grad = drawn(4, seed=1)
        optimizer.step()
        made.step()
    assert 0 < made.get_last_lr()[0] <= RATES[name]


def test_schedule_scales_each_groups_own_rate() -> None:
    config = TrainingConfig(lr_schedule="linear")
    both = groups(nn.Parameter(drawn(2)), lr=0.4) + groups(nn.Parameter(drawn(2)), lr=0.1)
    optimizer = make_optimizer(both, config)
    made = make_schedule(optimizer, config, 10)
    optimizer.step()
    made.step()
    assert made.get_last_lr() == pytest.approx([0.36, 0.09])
