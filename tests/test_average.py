"""The average of weights: its formula, how often it looks at them, and what that copies."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from trainers.methods.dreambooth import prepare
from trainers.optimizers import average
from trainers.optimizers.average import Average
from trainers.settings.methods.dreambooth import INTERVAL_ON_CPU_STEPS, DreamBoothConfig

DECAY = 0.4  # reached at the fifth step
SHAPE = (5, 3)


def weights(step: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(step))


def parameter(dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(weights(0).to(dtype))


def go_on(made: Average, trained: nn.Parameter, steps: range) -> None:
    for step in steps:
        trained.data.copy_(weights(step))
        made.update()


def expected(steps: int, interval: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The formula in fp64: each look counts for the steps since the one before."""
    kept = weights(0).to(dtype).double()
    seen = 0
    for step in range(1, steps + 1):
        if step % interval == 0 or step == steps:
            share = 1.0
            for each in range(seen + 1, step + 1):
                share *= min(DECAY, (1 + each) / (10 + each))
            kept = share * kept + (1 - share) * weights(step).to(dtype).double()
            seen = step
    return kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_ram", [False, True])
@pytest.mark.parametrize("interval", [1, 3, 20])
@pytest.mark.parametrize("steps", [9, 11])
def test_average_is_that_of_the_formula(
    steps: int, interval: int, in_ram: bool, dtype: torch.dtype
) -> None:
    trained = parameter(dtype)
    made = Average([trained], DECAY, interval, in_ram)
    go_on(made, trained, range(1, steps + 1))
    (now,) = made.now()
    assert now.dtype == torch.float32
    torch.testing.assert_close(now.double(), expected(steps, interval, dtype), atol=1e-6, rtol=0)


def test_weights_that_stand_still_give_the_same_whatever_the_interval() -> None:
    found = []
    for interval in (1, 4, 50):
        trained = parameter()
        made = Average([trained], 0.999, interval)
        trained.data.copy_(weights(1))
        for _ in range(200):
            made.update()
        found += made.now()
    torch.testing.assert_close(found[1], found[0], atol=2e-6, rtol=0)
    torch.testing.assert_close(found[2], found[0], atol=2e-6, rtol=0)


@pytest.mark.parametrize("in_ram", [False, True])
@pytest.mark.parametrize("stop", [2, 3, 7])
def test_average_that_goes_on_equals_one_that_was_not_stopped(stop: int, in_ram: bool) -> None:
    trained = parameter()
    whole = Average([trained], DECAY, 3, in_ram)
    go_on(whole, trained, range(1, 9))

    trained = parameter()
    first = Average([trained], DECAY, 3, in_ram)
    go_on(first, trained, range(1, stop + 1))
    assert [*first.now()]  # a look in between changes nothing
    kept = {**first.state(), "values": [value.clone() for value in first.values]}
    again = parameter()
    resumed = Average([again], DECAY, 3, in_ram)
    again.data.copy_(trained.data)
    resumed.load_state(kept)
    go_on(resumed, again, range(stop + 1, 9))
    tiny.assert_equal({"": next(resumed.now())}, {"": next(whole.now())})


def test_state_of_an_average_that_looked_at_every_step_goes_on() -> None:
    trained = parameter()
    made = Average([trained], DECAY, 3)
    made.load_state({"num_updates": 7, "values": [weights(20)]})
    go_on(made, trained, range(8, 10))
    share = DECAY**2
    expected = share * weights(20) + (1 - share) * weights(9)
    torch.testing.assert_close(next(made.now()), expected, atol=1e-6, rtol=0)


class Moved(TorchDispatchMode):
    """Counts the numbers that are copied."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default):
            self.num += args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("interval", "looks"), [(1, 20), (8, 2), (10, 2), (21, 0)])
def test_weights_cross_to_the_cpu_once_an_interval(interval: int, looks: int) -> None:
    trained = parameter()
    made = Average([trained], DECAY, interval, in_ram=True)
    with Moved() as moved:
        for _ in range(20):
            made.update()
    assert made.values
    assert moved.num == looks * trained.numel()


def test_training_does_not_wait_for_the_average_in_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    later = average._lerp_later

    def slow(*args: Any) -> None:
        assert let_go.wait(60)
        later(*args)

    monkeypatch.setattr(average, "_lerp_later", slow)
    trained = parameter()
    made = Average([trained], DECAY, 2, in_ram=True)
    go_on(made, trained, range(1, 4))  # the third changes what the second's look has copied
    let_go.set()
    go_on(made, trained, range(4, 6))
    (now,) = made.now()
    torch.testing.assert_close(now.double(), expected(5, 2), atol=1e-6, rtol=0)


def test_error_beside_the_training_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(average, "_lerp_later", fail)
    made = Average([parameter()], DECAY, 1, in_ram=True)
    made.update()
    with pytest.raises(MemoryError, match="no room"):
        made.update()


def test_thread_ends_with_its_average() -> None:
    made = Average([parameter()], DECAY, 1, in_ram=True)
    made.update()
    assert made._copies is not None
    (thread,) = made._copies._thread._threads
    del made
    thread.join(60)
    assert not thread.is_alive()


def test_average_of_weights_that_are_only_planned_is_planned() -> None:
    with FakeTensorMode():  # needs no GPU
        trained = nn.Parameter(torch.empty(SHAPE, device="cuda"))
        made = Average([trained], DECAY, 1, in_ram=True)
        for _ in range(2):
            made.update()
        (now,) = made.now()
    assert (now.shape, now.device.type) == (SHAPE, "cpu")


@pytest.mark.parametrize(
    ("settings", "interval"),
    [
        ({}, 1),
        ({"ema_on_cpu": True}, INTERVAL_ON_CPU_STEPS),
        ({"ema_on_cpu": True, "ema_update_step_interval": 1}, 1),
        ({"ema_update_step_interval": 5}, 5),
    ],
)
def test_interval_of_the_settings(settings: dict[str, Any], interval: int) -> None:
    own = DreamBoothConfig(ema_decay=0.9, **settings)
    assert own.ema_interval_steps == interval
    base = tiny.parts()
    trainable = prepare(base, tiny.run_config("dreambooth", ema_decay=0.9, **settings))
    for _ in range(interval - 1):
        trainable.after_step()
    assert trainable.state()["average"]["taken"] == 0
    trainable.after_step()
    assert trainable.state()["average"]["taken"] == interval
