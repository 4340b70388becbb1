"""What the runs of a sweep came to: a table of them, and which is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...settings.sweep import Cell, shown
from ..pictures.plot import smooth

HELD_OUT, TRAINED = "held-out loss", "smoothed training loss"
FAILED = "failed"
# Of settings that change what the loss is: with several values of one, losses do not compare.
CHANGE_LOSS = (
    "method", "min_snr_gamma", "noise_offset", "timestep_min", "timestep_max", "timestep_sampling",
    "logit_mean", "logit_std", "discrete_flow_shift", "prior_weight", "prior", "held_out",
)  # fmt: skip


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep, as far as it came.

    Attributes:
        run: its folder's name; empty where it came to none.
        steps: how many it took.
        losses: of each step.
        validation: the held-out loss of what it hands out; None where no picture is held out.
        problem: what ended it, or why it was not begun, where it came to no result.
    """

    cell: Cell
    run: str = ""
    steps: int = 0
    losses: tuple[float, ...] = ()
    validation: float | None = None
    problem: str = ""

    @property
    def loss(self) -> float | None:
        """Smoothed, at the last step, as Plot Loss draws it."""
        return float(smooth(np.array(self.losses))[-1]) if self.losses else None


def swept_run(
    cell: Cell, run: str, steps: int, loss_map: Mapping[str, Any], hands_out_best: bool
) -> SweptRun:
    """A run that came to its end, by its loss map."""
    watched = [loss for _, loss in loss_map.get("validation", ())]
    validation = None
    if watched:
        validation = min(watched) if hands_out_best else watched[-1]
    return SweptRun(cell, run, steps, tuple(loss_map["loss"]), validation)


def judged_by(runs: Sequence[SweptRun]) -> str:
    """HELD_OUT if all runs with a result have that; else TRAINED."""
    done = [run for run in runs if run.losses]
    return HELD_OUT if done and all(run.validation is not None for run in done) else TRAINED


def best_of(runs: Sequence[SweptRun]) -> SweptRun | None:
    """The run with the lowest loss, the first of equals; None where none has a result."""
    done = [run for run in runs if run.losses]
    held_out = judged_by(runs) == HELD_OUT

    def loss(run: SweptRun) -> float:
        value = run.validation if held_out else run.loss
        return float("inf") if value is None or math.isnan(value) else value

    return min(done, key=loss, default=None)


def warning(axes: Mapping[str, Any]) -> str:
    """A sentence where the runs' losses are not of the same thing; else nothing."""
    if found := [name for name in CHANGE_LOSS if name in axes]:
        return f"The losses do not quite compare: {', '.join(found)} changes what is measured."
    return ""


def table(runs: Sequence[SweptRun], axes: Mapping[str, Any]) -> str:
    """The runs as a table in Markdown, aligned so that it reads as plain text too; below it why
    runs have failed."""
    best, held_out = best_of(runs), any(run.validation is not None for run in runs)
    head = ["", *axes, "steps", "loss", *([HELD_OUT] if held_out else []), "run"]
    rows = [head]
    for number, run in enumerate(runs, 1):
        rows.append(
            [
                f"{number} best" if run is best else str(number),
                *(shown(run.cell.varied[n]) if n in run.cell.varied else "" for n in axes),
                str(run.steps) if run.steps else "",
                _number(run.loss),
                *([_number(run.validation)] if held_out else []),
                run.run or FAILED,
            ]
        )
    widths = [max(3, *(len(row[place]) for row in rows)) for place in range(len(head))]
    rows.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join([*(f"| {line} |" for line in lines), *_failures(runs)])


def _failures(runs: Sequence[SweptRun]) -> list[str]:
    """A line for each reason, after an empty one."""
    numbers: dict[str, list[str]] = {}
    for number, run in enumerate(runs, 1):
        if run.problem:
            numbers.setdefault(" ".join(run.problem.split()), []).append(str(number))
    told = [f"{', '.join(which)} {FAILED}: {reason}" for reason, which in numbers.items()]
    return ["", *told] if told else []


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
