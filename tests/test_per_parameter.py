"""An optimizer for each parameter: stochastic rounding, clipping, schedules, stored state."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.optimizers import per_parameter
from trainers.optimizers.factory import clip_gradients, make_optimizer, make_schedule
from trainers.optimizers.per_parameter import PerParameter, round_stochastically
from trainers.settings.training import TrainingConfig

BF16_BITS = 8  # of the significand, the hidden one counted


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_stochastic_rounding_is_unbiased() -> None:
    values = torch.randn(64, generator=generator(1)) * torch.logspace(-6, 3, 64)
    rounds = 20_000
    spread = round_stochastically(values.expand(rounds, -1).contiguous(), generator()).double()
    neighbours = [spread.min(0).values, spread.max(0).values]
    gap = neighbours[1] - neighbours[0]
    share = (values.double() - neighbours[0]) / gap
    error = gap * (share * (1 - share) / rounds).sqrt()
    off = (spread.mean(0) - values.double()).abs() / error
    assert (off < 3).double().mean() >= 0.95  # 99.7 % of 64 are expected
    assert off.mean() < 1.2  # 0.8 is expected
    total = ((spread.mean(0) - values.double()) / error).sum() / 64**0.5
    assert total.abs() < 3


def test_stochastic_rounding_takes_only_the_two_neighbours() -> None:
    values = torch.randn(1000, generator=generator(1))
    rounded = round_stochastically(values, generator()).float()
    step = 2.0 ** (values.abs().log2().floor() - BF16_BITS + 1)
    assert ((rounded - values).abs() < step).all()
    assert not torch.equal(rounded, values.bfloat16().float())


def test_stochastic_rounding_keeps_what_bf16_can_hold() -> None:
    special = torch.tensor([0.0, -0.0, 1.0, torch.inf, -torch.inf, 2.0**-130])
    values = torch.cat([torch.randn(1000, generator=generator(1)).bfloat16().float(), special])
    assert torch.equal(round_stochastically(values, generator()).float(), values)


def test_stochastic_rounding_leaves_its_input_alone() -> None:
    values = torch.randn(100, generator=generator(1))
    before = values.clone()
    round_stochastically(values, generator())
    assert torch.equal(values, before)


# -- the optimizer ------------------------------------------------------------------------


def weights(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [
        nn.Parameter(torch.randn(shape, generator=generator(i)).to(dtype))
        for i, shape in enumerate([(8, 4), (5,), (3, 3)])
    ]


def made(
    parameters: list[nn.Parameter], fused: bool = False, **settings: Any
) -> torch.optim.Optimizer:
    groups = [
        {"name": "a", "params": parameters[:2], "lr": 0.1},
        {"name": "b", "params": parameters[2:], "lr": 0.01},
    ]
    return make_optimizer(groups, TrainingConfig(**settings), fused)


def loss(parameters: list[nn.Parameter]) -> Tensor:
    return sum((p.float() ** 2).sum() for p in parameters)  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_is_bit_equal_to_unfused(dtype: torch.dtype) -> None:
    plain, fused = weights(dtype), weights(dtype)
    one, other = made(plain), made(fused, fused=True, max_grad_norm=0.0)
    for _ in range(5):
        for parameters, optimizer in ((plain, one), (fused, other)):
            loss(parameters).backward()
            optimizer.step()
            optimizer.zero_grad()
    for left, right in zip(plain, fused, strict=True):
        assert torch.equal(left, right)


def test_fused_drops_each_gradient() -> None:
    parameters = weights()
    before = [p.detach().clone() for p in parameters]
    optimizer = made(parameters, fused=True)
    loss(parameters).backward()
    assert all(p.grad is None for p in parameters)
    moved = [p.detach().clone() for p in parameters]
    assert not any(torch.equal(a, b) for a, b in zip(before, moved, strict=True))
    optimizer.step()
    assert all(torch.equal(a, p) for a, p in zip(moved, parameters, strict=True))


def test_fused_clips_each_tensor_and_reports_the_length_of_all() -> None:
    parameters = weights()
    seen: list[Tensor] = []
    optimizer = made(parameters, fused=True, max_grad_norm=0.5)
    assert isinstance(optimizer, PerParameter)
    optimizer._inner.register_step_pre_hook(
        lambda inner, *_: seen.extend(p.grad.clone() for p in inner.param_groups[0]["params"])
    )
    lengths = torch.stack([2 * p.detach().norm() for p in parameters])
    loss(parameters).backward()
    assert sorted(g.norm().item() for g in seen) == pytest.approx([0.5] * 3, rel=1e-4)
    reported = clip_gradients(optimizer, parameters, 0.5)
    assert reported.item() == pytest.approx(lengths.norm().item(), rel=1e-5)
    assert optimizer.take_norm() == 0


def test_schedule_sets_the_rate_of_each_update() -> None:
    config = TrainingConfig(lr_schedule="linear")
    runs = []
    for fused in (False, True):
        parameters = weights()
        optimizer = made(parameters, fused=fused, max_grad_norm=0.0)
        schedule = make_schedule(optimizer, config, 4)
        for _ in range(4):
            loss(parameters).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        runs.append(parameters)
        assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    for left, right in zip(*runs, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "adafactor", "lion"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_state_goes_on_bit_for_bit(optimizer: str, dtype: torch.dtype) -> None:
    if optimizer in ("adamw_8bit", "lion"):
        pytest.importorskip("bitsandbytes")

    def steps(parameters: list[nn.Parameter], made: torch.optim.Optimizer, num: int) -> None:
        for _ in range(num):
            loss(parameters).backward()
            made.step()

    whole = [nn.Parameter(torch.randn(64, 80, generator=generator(9)).to(dtype)) for _ in "abc"]
    first = made(whole, fused=True, optimizer=optimizer)
    steps(whole, first, 2)
    stored = copy.deepcopy(first.state_dict())
    resumed = [nn.Parameter(p.detach().clone()) for p in whole]
    second = made(resumed, fused=True, optimizer=optimizer)
    second.load_state_dict(stored)
    steps(whole, first, 2)
    steps(resumed, second, 2)
    for left, right in zip(whole, resumed, strict=True):
        assert torch.equal(left, right)


def test_bf16_update_takes_the_optimizer_s_step_in_fp32() -> None:
    """The mean over many seeds is the fp32 step, though it is smaller than bf16's own step."""
    start = torch.full((512,), 1.0)
    results = []
    for seed in range(200):
        weight = nn.Parameter(start.bfloat16())
        groups = [{"name": "a", "params": [weight], "lr": 1e-4}]
        optimizer = make_optimizer(groups, TrainingConfig(weight_decay=0.0, seed=seed))
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        results.append(weight.detach().double())
    mean = torch.stack(results).mean()
    assert set(torch.stack(results).unique().tolist()) == {1.0, 1.0 - 2**-BF16_BITS}
    # 1 - 1e-4 lies at a share of 0.0256 of the step below 1
    share = 1e-4 * 2**BF16_BITS
    error = 2**-BF16_BITS * (share * (1 - share) / (200 * 512)) ** 0.5
    assert abs(mean.item() - (1.0 - 1e-4)) < 3 * error


def test_factored_state_of_a_bf16_kernel_is_small() -> None:
    weight = nn.Parameter(torch.randn(32, 48, 3, 3, generator=generator()).bfloat16())
    optimizer = made([weight, *weights(torch.bfloat16)], optimizer="adafactor")
    assert isinstance(optimizer, PerParameter)
    weight.grad = torch.randn(weight.shape, generator=generator(1)).bfloat16()
    optimizer.step()
    (trained,) = (leaf.trained for leaf in optimizer._leaves if leaf.parameter is weight)
    state = optimizer._inner.state[trained]
    numbers = sum(value.numel() for value in state.values() if isinstance(value, Tensor))
    assert numbers <= 32 + 48 * 9 + 1
    assert weight.shape == (32, 48, 3, 3)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "lion"])
def test_pieces_of_a_bf16_parameter_learn_as_the_whole(
    optimizer: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With updates as large as bf16's steps the rounding, which differs, hardly counts."""
    if optimizer != "adamw":
        pytest.importorskip("bitsandbytes")

    def learned(piece: int) -> Tensor:
        monkeypatch.setattr(per_parameter, "PIECE", piece)
        weight = nn.Parameter(torch.ones(7, 3000).bfloat16())
        groups = [{"name": "a", "params": [weight], "lr": 0.05}]
        made_optimizer = make_optimizer(groups, TrainingConfig(optimizer=optimizer), fused)
        assert isinstance(made_optimizer, PerParameter)
        assert len(made_optimizer._buckets[0].pieces) == -(-21000 // piece)
        for step in range(3):
            (weight * torch.randn(7, 3000, generator=generator(step))).sum().backward()
            made_optimizer.step()
        return weight.detach().float()

    whole, pieces = learned(21000), learned(256 * 17)
    step = 2.0 ** (1 - BF16_BITS)  # of numbers above 1
    assert (whole - pieces).abs().max() <= 3 * step
    assert (whole - pieces).mean().abs() < 1e-4


@pytest.mark.parametrize("fused", [False, True])
def test_weights_go_with_their_training(fused: bool) -> None:
    parameters = weights(torch.float32)
    optimizer = made(parameters, fused=fused)
    loss(parameters).backward()
    optimizer.step()
    seen = [weakref.ref(parameter) for parameter in parameters]
    del parameters, optimizer
    gc.collect()
    assert [ref() for ref in seen] == [None] * len(seen)


# -- buckets and pieces -------------------------------------------------------------------


def in_a_row(parameters: list[nn.Parameter]) -> Tensor:
    """A loss whose gradients come one after another, the last parameter's first."""
    row = torch.ones(1, requires_grad=True)
    for parameter in parameters:
        row = row * parameter.float().square().mean().exp()
    return row.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_gradients_are_alive_at_once(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most a piece of small ones, and the one that comes."""
    monkeypatch.setattr(per_parameter, "PIECE", 256)
    sizes = [64, 300, 64, 100, 1000, 7, 200, 64, 300, 64] * 3
    parameters = [nn.Parameter(torch.randn(n, generator=generator(n)).to(dtype)) for n in sizes]
    optimizer = made(parameters, fused=True)
    alive: list[int] = []
    for parameter in parameters:
        parameter.register_hook(
            lambda gradient: alive.append(sum(p.numel() for p in parameters if p.grad is not None))
        )
    in_a_row(parameters).backward()
    assert len(alive) == len(parameters)
    assert 0 < max(alive) <= 256
    assert all(p.grad is None for p in parameters)
    del optimizer


def test_small_parameters_are_updated_together() -> None:
    parameters = [nn.Parameter(torch.randn(8, generator=generator(i))) for i in range(100)]
    optimizer = made(parameters, fused=True)
    assert isinstance(optimizer, PerParameter)
    calls: list[int] = []
    optimizer._inner.register_step_pre_hook(
        lambda inner, *_: calls.append(len(inner.param_groups[0]["params"]))
    )
    loss(parameters).backward()
    assert sorted(calls) == [2, 98]  # of each group


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_has_no_gradient_stays_as_if_it_were_alone(dtype: torch.dtype, fused: bool) -> None:
    """Its first step comes late, and its neighbours in the bucket do not wait for it."""

    def learned(steps: list[list[int]], chosen: list[int]) -> list[Tensor]:
        parameters = [weights(dtype)[i] for i in chosen]
        groups = [{"name": "a", "params": parameters, "lr": 0.1}]
        optimizer = make_optimizer(groups, TrainingConfig(max_grad_norm=0.0), fused)
        for used in steps:
            some = [p for p, i in zip(parameters, chosen, strict=True) if i in used]
            if some:
                loss(some).backward()
            if isinstance(optimizer, PerParameter) and fused:
                optimizer.finish_backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in parameters]

    steps = [[0, 2], [0, 1, 2], [1], [0, 1]]
    together = learned(steps, [0, 1, 2])
    if dtype == torch.bfloat16:  # the rounding differs; what stayed, stayed
        (_, still, _) = learned(steps[:1], [0, 1, 2])
        assert torch.equal(still, weights(dtype)[1])
        return
    for number, own in enumerate(together):
        assert torch.equal(own, learned(steps, [number])[0])


def test_a_state_has_no_trace_of_the_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each parameter, as when each had an optimizer of its own; such states load."""

    def steps(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        for _ in range(2):
            loss(parameters).backward()
            optimizer.step()

    whole = weights()
    first = made(whole, fused=True)
    steps(whole, first)
    own = torch.optim.AdamW(whole[:1], fused=True).state_dict()
    stored = copy.deepcopy(first.state_dict())
    assert [sorted(one["state"]) for one in stored["inner"]] == [[0]] * 3
    for one in stored["inner"]:
        one["param_groups"] = own["param_groups"]
    monkeypatch.setattr(per_parameter, "PIECE", 8)
    resumed = [nn.Parameter(p.detach().clone()) for p in whole]
    second = made(resumed, fused=True)
    second.load_state_dict(stored)
    steps(whole, first)
    steps(resumed, second)
    for left, right in zip(whole, resumed, strict=True):
        assert torch.equal(left, right)
