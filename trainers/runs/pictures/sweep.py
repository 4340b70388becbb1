"""The pictures of a sweep: all losses in one plot, and what its runs sampled in one sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...settings.sweep import shown
from ..catalog.sweep import SweptRun, best_of
from ..story import preview_files, preview_steps
from .grid import BACKGROUND, Label, draw_grid
from .plot import (
    DESIGN_PX,
    FONT_PX,
    LOOKS,
    SMOOTH_PX,
    blank_figure,
    draw_losses,
    picture_of,
    smooth,
    style_axes,
)

COLOURS = (  # each with a contrast of 4.5 to the panel (WCAG)
    "#8ab4f8", "#fdd663", "#81c995", "#f28b82", "#c58af9", "#78d9ec", "#fcad70", "#ff8bcb",
)  # fmt: skip
LINES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)), (0, (3, 1)))
BETWEEN = " · "
LEGEND, ROWS = 0.36, 20  # the legend's share of the width; of runs that it has room for
CURVE_PX = (480, 270)  # of a run without pictures


def draw_sweep(runs: Sequence[SweptRun], theme: str = "dark") -> Image.Image:
    """An RGB picture of the smoothed loss of each run, those of two lines beside each other."""
    look, best = LOOKS[theme], best_of(runs)
    tall = max(1.0, len(runs) / ROWS)
    width, height = DESIGN_PX[0], round(DESIGN_PX[1] * tall)
    figure = blank_figure(width, height, look)
    axes = figure.add_axes(
        (84 / width, 64 / height, 1 - LEGEND - 100 / width, 1 - 90 / height), facecolor=look.panel
    )
    style_axes(axes, look)
    axes.set_xlabel("step", color=look.faint, fontsize=FONT_PX)
    axes.set_ylabel("loss, smoothed", color=look.faint, fontsize=FONT_PX)
    for number, run in enumerate(runs):
        if not run.losses:
            continue
        values, own = smooth(np.array(run.losses)), run.cell.varied.values()
        first = run.steps - len(values) + 1
        colour, line = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
        name = f"{number + 1}{' best' * (run is best)}  {BETWEEN.join(map(shown, own))}"
        axes.plot(
            np.arange(first, first + len(values)), values, color=colour, linestyle=line,
            linewidth=SMOOTH_PX * (1.5 if run is best else 0.8), label=_short(name),
            marker="o" if len(values) == 1 else None,
        )  # fmt: skip
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.02, 1.02), frameon=False, labelcolor=look.text,
        fontsize=0.85 * FONT_PX, title=_short(BETWEEN.join(best.cell.varied if best else ())),
        alignment="left", title_fontproperties={"size": 0.85 * FONT_PX},
    ).get_title().set_color(look.faint)  # fmt: skip
    return picture_of(figure)


def draw_sheet(
    runs: Sequence[SweptRun], axes: Mapping[str, Sequence[Any]], folder: Path
) -> Image.Image:
    """An RGB sheet of the last previews of each run, a row each and a column for each prompt.

    With two axes and one prompt, rows are the first axis and columns the second one. Where no run
    has previews, its loss is in their place.

    Args:
        folder: of all runs.
    """
    found = [_previews(folder / run.run, run.steps) if run.run else {} for run in runs]
    prompts = list(dict.fromkeys(prompt for previews in found for prompt in previews))
    if not prompts:
        prompts, found = ["loss"], [{"loss": _curve(run)} for run in runs]
    size = next(picture.size for previews in found for picture in previews.values())
    blank = Image.new("RGB", size, BACKGROUND)
    cells = [[previews.get(prompt, blank) for prompt in prompts] for previews in found]
    if len(axes) == 2 and len(prompts) == 1:
        (first, downs), (second, acrosses) = axes.items()
        if len(runs) == len(downs) * len(acrosses):
            wide = [
                [cells[row * len(acrosses) + column][0] for column in range(len(acrosses))]
                for row in range(len(downs))
            ]
            rows = [Label(f"{first} {shown(value)}") for value in downs]
            return draw_grid(wide, rows, [f"{second} {shown(value)}" for value in acrosses])
    return draw_grid(cells, [_label(*numbered) for numbered in enumerate(runs, 1)], prompts)


def _label(number: int, run: SweptRun) -> Label:
    return Label(run.cell.label or run.run, f"run {number}" if run.run else "no result")


def _previews(folder: Path, steps: int) -> dict[str, Image.Image]:
    """The last ones up to a step, by prompt."""
    last = preview_steps(folder, steps)[-1:]
    found = {}
    for file in preview_files(folder):
        if last and int(file.stem.split("_")[1]) == last[0]:
            with Image.open(file) as picture:
                found[str(picture.info.get("prompt", ""))] = picture.convert("RGB")
    return found


def _curve(run: SweptRun) -> Image.Image:
    if not run.losses:
        return Image.new("RGB", CURVE_PX, BACKGROUND)
    return draw_losses(run.losses, *CURVE_PX)


def _short(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
