"""Rows of an optimizer for each parameter: they learn what their leaves would learn alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.test_per_parameter import generator, loss
from trainers.optimizers.factory import make_optimizer
from trainers.optimizers.per_parameter import PerParameter
from trainers.optimizers.rows import Rows
from trainers.settings.training import TrainingConfig

# Small ones, whose states have 32 bits, and large ones, of which one has no whole blocks of 8 bits.
LENGTHS = (64, 5120, 320, 8192, 5000, 64)


def trained_in_rows(
    optimizer: str, fused: bool, rows: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Tensor], dict[str, Any], list[int]]:
    """Weights and state after four steps, and how many parameters the optimizer saw in each."""
    if not rows:
        monkeypatch.setattr(Rows, "shown", lambda self, piece, leaves: piece.trained)
    parameters = [nn.Parameter(torch.randn(n, generator=generator(n)).bfloat16()) for n in LENGTHS]
    groups = [{"name": "a", "params": parameters, "lr": 0.05}]
    optimizer_made = make_optimizer(groups, TrainingConfig(optimizer=optimizer), fused)
    assert isinstance(optimizer_made, PerParameter)
    seen: list[int] = []
    optimizer_made._inner.register_step_pre_hook(
        lambda inner, *_: seen.append(len(inner.param_groups[0]["params"]))
    )
    for _ in range(4):
        loss(parameters).backward()
        optimizer_made.step()
    return [p.detach() for p in parameters], optimizer_made.state_dict(), seen


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):  # as bitsandbytes wraps numbers of 8 bits
            assert_same_state(value, other[key])
        else:
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[key])), key


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "seen"), [("adamw", 1), ("lion", 1), ("adamw_8bit", 3)]
)  # the latter: small ones, the one without whole blocks, those with
def test_rows_learn_as_their_leaves(
    optimizer: str, seen: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if optimizer != "adamw":
        pytest.importorskip("bitsandbytes")
    weights, state, calls = trained_in_rows(optimizer, fused, True, monkeypatch)
    assert calls == [len(LENGTHS)] + 3 * [seen]
    alone, states, calls = trained_in_rows(optimizer, fused, False, monkeypatch)
    assert calls == 4 * [len(LENGTHS)]
    for left, right in zip(weights, alone, strict=True):
        assert torch.equal(left, right)
    for left, right in zip(state["inner"], states["inner"], strict=True):
        assert_same_state(left["state"][0], right["state"][0])


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_a_row_ends_where_a_leaf_has_no_gradient(optimizer: str) -> None:
    if optimizer != "adamw":
        pytest.importorskip("bitsandbytes")
    parameters = [nn.Parameter(torch.ones(64).bfloat16()) for _ in range(3)]
    groups = [{"name": "a", "params": parameters, "lr": 0.05}]
    optimizer_made = make_optimizer(groups, TrainingConfig(optimizer=optimizer))
    for some in (parameters, parameters, parameters[1:], parameters):
        loss(some).backward()
        optimizer_made.step()
    steps = [one["state"][0]["step"] for one in optimizer_made.state_dict()["inner"]]
    assert [float(step) for step in steps] == [3, 4, 4]
