"""The losses of several runs in one picture, told apart by dashes as well as by colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..catalog.curve import short
from ..story import thinned
from .plot import (
    DESIGN_PX,
    DOT_PX,
    FONT_PX,
    LOOKS,
    RAW_PX,
    ROOM_PX,
    SMOOTH_PX,
    Array,
    Look,
    Marks,
    blank_figure,
    checked,
    loss_range,
    picture_of,
    set_scales,
    smooth,
)

# By place.
COLOURS = {
    "dark": ("#8ab4f8", "#fdd663", "#81c995", "#f28b82", "#c58af9", "#78d9ec"),
    "light": ("#083d8f", "#7d4e00", "#1c7434", "#b3261e", "#7a2bc8", "#006a78"),
}
DASHES: tuple[tuple[int, ...], ...] = (
    (), (7, 3), (2, 2), (7, 2, 2, 2), (14, 3), (7, 2, 2, 2, 2, 2),
)  # fmt: skip
MOST_LINES = len(DASHES)
RAW_OPACITY = 0.2
KEY_WIDTH, MOST_LETTERS = 3.5, 40  # of the legend: in letters, and of a name


class Line(NamedTuple):
    """One run of a picture; see Marks."""

    name: str
    losses: Sequence[float]
    marks: Marks


def points_of(line: Line) -> dict[str, Any]:
    """The same as plain values, for a page that draws it itself: js/runs/plot.js.

    Returns:
        title: the line's name.
        loss, validation: lists of [step, loss], thinned as those of a run; see story.
        best: None, or {"of": "validation", "step", "loss"}: where that was lowest.
        states, previews: steps.
    """
    marks, first = line.marks, line.marks.first_step
    loss = [[step, float(value)] for step, value in enumerate(line.losses, first)]
    held = [[step, value] for step, value in sorted(marks.validation.items())]
    curves = {"loss": thinned(loss), "validation": thinned(held)}
    best = None
    if marks.best is not None:
        lowest = short(marks.validation[marks.best])
        best = {"of": "validation", "step": marks.best, "loss": lowest}
    return {
        "title": line.name,
        **{kind: [[step, short(value)] for step, value in of] for kind, of in curves.items()},
        "best": best,
        "states": list(marks.states),
        "previews": list(marks.previews),
    }


def draw_lines(lines: Sequence[Line], theme: str = "dark") -> Image.Image:
    """An RGB picture of several runs, each smoothed as it is alone, over its own steps.

    Args:
        lines: at most MOST_LINES.
        theme: one of LOOKS.

    Raises:
        PersonalizeError: one has no losses, or some are not finite.
    """
    assert 1 <= len(lines) <= MOST_LINES
    width_px, height_px = DESIGN_PX
    look, values = LOOKS[theme], [checked(line.losses) for line in lines]
    figure = blank_figure(width_px, height_px, look)
    room = np.array(ROOM_PX) / np.array([width_px, height_px, width_px, height_px])
    axes = figure.add_axes((*room[:2], *(1 - room[:2] - room[2:])), facecolor=look.panel)
    ends = [loss_range(losses) for losses in values]
    first = min(line.marks.first_step for line in lines)
    last = max(line.marks.first_step + len(line.losses) - 1 for line in lines)
    limits = (min(low for low, _ in ends), max(high for _, high in ends))
    set_scales(axes, (first - 1, max(last, first + 1)), limits, look)
    for line, losses, colour, dash in zip(lines, values, COLOURS[theme], DASHES, strict=False):
        _draw(axes, line, losses, (colour, dash))
    _legend(axes, look)
    return picture_of(figure)


def _draw(axes: Any, line: Line, losses: Array, style: tuple[str, tuple[int, ...]]) -> None:
    colour, dash = style
    first = line.marks.first_step
    steps, smoothed = np.arange(first, first + len(losses)), smooth(losses)
    kind = (0, tuple(length / SMOOTH_PX * 1.5 for length in dash)) if dash else "-"
    axes.plot(steps, losses, color=colour, linewidth=RAW_PX, alpha=RAW_OPACITY)
    axes.plot(
        steps, smoothed, color=colour, linewidth=SMOOTH_PX, linestyle=kind,
        label=f"{_short(line.name)}: {smoothed[-1]:#.4g}".rstrip("."),
    )  # fmt: skip
    if validation := sorted(line.marks.validation.items()):
        axes.plot(
            *zip(*validation, strict=True), "o", color=colour, markersize=DOT_PX, clip_on=False,
            zorder=3,
        )  # fmt: skip


def _short(name: str) -> str:
    # A dollar begins a formula of matplotlib, and what begins with _ has no place in its legends.
    text = name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"
    return text.replace("$", r"\$")


def _legend(axes: Any, look: Look) -> None:
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles, labels, loc="upper right", frameon=True, facecolor=look.panel, framealpha=0.85,
        edgecolor=look.grid, labelcolor=look.text, fontsize=FONT_PX, handlelength=KEY_WIDTH,
    )  # fmt: skip
