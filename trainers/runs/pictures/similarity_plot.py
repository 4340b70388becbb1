"""Measures of samples as a picture: a row for each label, a column for each measure."""

from __future__ import annotations

from typing import Any

from PIL import Image

from .plot import DESIGN_PX, FONT_PX, LOOKS, POINTS_PER_INCH, TICK_PX, Look, picture_of, style_axes
from .similarity import REAL, Metric, Report

ROW_PX, ABOVE_PX, BELOW_PX, GAP_PX = 26, 44, 52, 22
MOST_ROWS_PX = 6000  # of height; beyond that rows come closer and some go unnamed
LETTER_PX, MOST_LETTERS, LAST_LETTERS, MARGIN_PX = 0.62 * TICK_PX, 32, 10, 24
EACH_PX, MEAN_PX, BEST_PX = 4, 8, 16  # across
MOST_TICKS = 5


def draw_report(report: Report, theme: str = "dark") -> Image.Image:
    """An RGB picture, 960 px wide: a faint dot for each sample, a large one for a row's mean.

    The best row of a measure has a ring; a broken line is where the real pictures are among
    themselves.

    Args:
        theme: one of plot.LOOKS.
    """
    from matplotlib.figure import Figure

    look, names = LOOKS[theme], [_short(label) for label in report.labels]
    rows_px = min(MOST_ROWS_PX, ROW_PX * max(2, len(names)))
    width, height = DESIGN_PX[0], rows_px + ABOVE_PX + BELOW_PX
    figure = Figure(
        ((width + 0.01) / POINTS_PER_INCH, (height + 0.01) / POINTS_PER_INCH),
        POINTS_PER_INCH,
        facecolor=look.background,
    )
    left = MARGIN_PX + LETTER_PX * max(map(len, names))
    panel = (width - left - MARGIN_PX - GAP_PX * (len(report.metrics) - 1)) / len(report.metrics)
    for number, metric in enumerate(report.metrics):
        place = left + number * (panel + GAP_PX)
        box = (place / width, BELOW_PX / height, panel / width, rows_px / height)
        axes = figure.add_axes(box, facecolor=look.panel)
        _draw_metric(axes, report, metric, look)
        step = -(-len(names) * ROW_PX // MOST_ROWS_PX)
        axes.set_yticks(range(0, len(names), step), names[::step] if number == 0 else [])
    _write_legend(figure, report, look)
    return picture_of(figure)


def _draw_metric(axes: Any, report: Report, metric: Metric, look: Look) -> None:
    means, best = report.row_means(metric), report.best(metric)
    for row, samples in enumerate(report.rows):
        if len(samples) > 1:
            numbers = [metric.each[place] for place in samples]
            axes.plot(numbers, [row] * len(numbers), "o", color=look.raw, markersize=EACH_PX)
    axes.plot(means, range(len(means)), "o", color=look.smooth, markersize=MEAN_PX)
    if len(means) > 1:
        ring = {"markersize": BEST_PX, "fillstyle": "none", "color": look.text}
        axes.plot(means[best], best, "o", **ring)
    if metric.real is not None:
        axes.axvline(metric.real, color=look.validation, linestyle="--")
    style_axes(axes, look)
    axes.margins(x=0.15)
    axes.set_ylim(len(means) - 0.5, -0.5)  # the first row on top
    axes.locator_params("x", nbins=MOST_TICKS)
    title = f"{metric.name}  {means[best]:.3f}"
    axes.set_title(title, loc="left", color=look.text, fontsize=FONT_PX)


def _write_legend(figure: Any, report: Report, look: Look) -> None:
    """In a line below: what dots and lines are."""
    from matplotlib.lines import Line2D

    kinds: list[tuple[str, dict[str, Any]]] = [
        ("mean of a row", {"marker": "o", "color": look.smooth, "markersize": MEAN_PX})
    ]
    if any(len(row) > 1 for row in report.rows):
        each = {"marker": "o", "color": look.raw, "markersize": EACH_PX}
        kinds.append(("one picture", each))
    if len(report.rows) > 1:
        ring = {"marker": "o", "fillstyle": "none", "color": look.text, "markersize": BEST_PX - 4}
        kinds.append(("best", ring))
    handles = [Line2D([], [], linestyle="none", label=name, **how) for name, how in kinds]
    if any(metric.real is not None for metric in report.metrics):
        handles.append(Line2D([], [], color=look.validation, linestyle="--", label=REAL))
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), frameon=False,
        labelcolor=look.faint, fontsize=TICK_PX,
    )  # fmt: skip


def _short(label: str) -> str:
    shown = "".join(sign if sign.isprintable() else " " for sign in label)
    if len(shown) > MOST_LETTERS:  # the strength is at the end
        shown = f"{shown[: MOST_LETTERS - LAST_LETTERS - 1]}…{shown[-LAST_LETTERS:]}"
    return shown.replace("$", r"\$")  # which would begin a formula
