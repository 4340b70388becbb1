"""The pictures of a sweep: all losses in one plot, and what its runs sampled in one sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...settings.sweep import shown
from ..catalog.sweep import FAILED, SweptRun, best_of
from ..story import preview_files, preview_steps
from .grid import Label, draw_grid, written
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
LEGEND, ROW_PX = 0.36, 20  # the legend's share of the width; a run's height in it
CURVE_PX = (480, 270)  # of a run without pictures


def draw_sweep(runs: Sequence[SweptRun], theme: str = "dark") -> Image.Image:
    """An RGB picture of the smoothed loss of each run, those of two lines beside each other."""
    look, best = LOOKS[theme], best_of(runs)
    width, height = DESIGN_PX[0], max(DESIGN_PX[1], ROW_PX * (len(runs) + 4))
    figure = blank_figure(width, height, look)
    axes = figure.add_axes(
        (84 / width, 64 / height, 1 - LEGEND - 100 / width, 1 - 90 / height), facecolor=look.panel
    )
    style_axes(axes, look)
    axes.set_xlabel("step", color=look.faint, fontsize=FONT_PX)
    axes.set_ylabel("loss, smoothed", color=look.faint, fontsize=FONT_PX)
    names = list(dict.fromkeys(name for run in runs for name in run.cell.varied))
    for number, run in enumerate(runs):
        if not run.losses:
            continue
        values = smooth(np.array(run.losses))
        first = run.steps - len(values) + 1
        colour, line = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
        name = f"{number + 1}{' best' * (run is best)}  {_values(run, names)}"
        axes.plot(
            np.arange(first, first + len(values)), values, color=colour, linestyle=line,
            linewidth=SMOOTH_PX * (1.5 if run is best else 0.8), label=_short(name),
            marker="o" if len(values) == 1 else None, zorder=3 if run is best else 2,
        )  # fmt: skip
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.02, 1.02), frameon=False, labelcolor=look.text,
        fontsize=0.85 * FONT_PX, title=_short(BETWEEN.join(names)),
        alignment="left", title_fontproperties={"size": 0.85 * FONT_PX},
    ).get_title().set_color(look.faint)  # fmt: skip
    return picture_of(figure)


def draw_sheet(
    runs: Sequence[SweptRun], axes: Mapping[str, Sequence[Any]], folder: Path
) -> Image.Image:
    """An RGB sheet of the last previews of each run, a row each and a column for each prompt.

    With several axes and one prompt, columns are the last axis and rows the others. Where no run
    has previews, its loss is in their place. The best run has a frame, and its row says so.

    Args:
        folder: of all runs.
    """
    found = [_previews(folder / run.run, run.steps) if run.run else {} for run in runs]
    prompts = list(dict.fromkeys(prompt for previews in found for prompt in previews))
    if not prompts:
        prompts = ["loss"]
        found = [{"loss": draw_losses(run.losses, *CURVE_PX)} if run.losses else {} for run in runs]
    size = next(picture.size for previews in found for picture in previews.values())
    cells = [
        [previews.get(prompt) or _blank(size, run) for prompt in prompts]
        for run, previews in zip(runs, found, strict=True)
    ]
    best = next((place for place, run in enumerate(runs) if run is best_of(runs)), None)
    across = [*axes][-1] if len(axes) > 1 and len(prompts) == 1 else None
    if across is not None and len(runs) == math.prod(map(len, axes.values())):
        return _draw_table(cells, runs, (across, axes[across]), best)
    labels = [
        Label(_values(run, axes) or run.run, f"run {number + 1}{', best' * (number == best)}")
        for number, run in enumerate(runs)
    ]
    marked = None if best is None else (best, range(len(prompts)))
    return draw_grid(cells, labels, prompts, corner=BETWEEN.join(axes), marked=marked)


def _draw_table(
    cells: Sequence[Sequence[Image.Image]],
    runs: Sequence[SweptRun],
    across: tuple[str, Sequence[Any]],
    best: int | None,
) -> Image.Image:
    """A picture of each run; the values of an axis from left to right."""
    name, values = across
    rest = [axis for axis in runs[0].cell.varied if axis != name]
    starts = range(0, len(runs), len(values))
    labels = []
    for start in starts:
        is_here = best is not None and start <= best < start + len(values)
        detail = f"run {best + 1} is best" if is_here and best is not None else ""
        labels.append(Label(_values(runs[start], rest), detail))
    wide = [[cell for (cell,) in cells[start : start + len(values)]] for start in starts]
    marked = None if best is None else (best // len(values), [best % len(values)])
    columns = [f"{name} {shown(value)}" for value in values]
    return draw_grid(wide, labels, columns, corner=BETWEEN.join(rest), marked=marked)


def _values(run: SweptRun, axes: Iterable[str]) -> str:
    """Of each axis; a dash where its method has no such setting."""
    own = run.cell.varied
    return BETWEEN.join(shown(own[name]) if name in own else "–" for name in axes)


def _blank(size: tuple[int, int], run: SweptRun) -> Image.Image:
    """In the place of a picture that is not there; says so of a run without a result."""
    return written("" if run.losses else FAILED, size)


def _previews(folder: Path, steps: int) -> dict[str, Image.Image]:
    """The last ones up to a step, by prompt."""
    last = preview_steps(folder, steps)[-1:]
    found = {}
    for file in preview_files(folder):
        if last and int(file.stem.split("_")[1]) == last[0]:
            with Image.open(file) as picture:
                found[str(picture.info.get("prompt", ""))] = picture.convert("RGB")
    return found


def _short(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
