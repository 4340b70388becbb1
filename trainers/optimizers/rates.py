"""Learning rates that optimizers find themselves: where the setting is 0, and what was found."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..settings.training import FIND_RATE
from .per_parameter import PerParameter

# Of Adafactor's own rate, which is relative to what is trained (arXiv 1804.04235). Its warm-up
# would rise by 1e-6 a step, for runs of a hundred thousand.
RELATIVE = {"relative_step": True, "scale_parameter": True, "warmup_init": False}
MOST_RELATIVE, LEAST_SCALE = 1e-2, 1e-3  # its rate, and what it takes for the size of zeros


def with_own_rates(name: str, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups for an optimizer of that name: a rate of 0 is its own, where it finds one."""
    if name in FIND_RATE:
        return [{**group, "lr": group["lr"] or 1.0} for group in groups]
    if name == "adafactor":
        return [group if group["lr"] else {**group, **RELATIVE} for group in groups]
    return groups


def rate_in_use(optimizer: torch.optim.Optimizer) -> float:
    """The rate of the step just made, of the first group: what was found where it is found."""
    group = optimizer.param_groups[0]
    if group.get("relative_step"):
        inner = optimizer.inner if isinstance(optimizer, PerParameter) else optimizer
        return _relative_rate(list(inner.state.values()))
    rate = float(group.get("scheduled_lr", group["lr"]))  # of AdamWScheduleFree: with its warm-up
    return rate * float(group.get("d", 1.0))  # of Prodigy


def _relative_rate(states: list[dict[str, Any]]) -> float:
    """Adafactor's own, the mean over what it trains."""
    own = [state for state in states if "RMS" in state]
    if not own:
        return 0.0
    sizes = torch.stack([torch.as_tensor(state["RMS"]).float() for state in own])
    step = max(int(state["step"]) for state in own)
    return min(MOST_RELATIVE, 1 / math.sqrt(step)) * sizes.clamp(min=LEAST_SCALE).mean().item()
