"""The loss of a run as a picture, drawn by matplotlib without a window."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import PersonalizeError

Array = npt.NDArray[np.float64]

DESIGN_PX = (960, 540)  # where a point of matplotlib is a pixel; other sizes follow
POINTS_PER_INCH = 72
FONT_PX, TICK_PX, RAW_PX, BAND_PX, SMOOTH_PX, DOT_PX = 14, 13, 1.2, 8, 2.6, 6
ROOM_PX = (84, 64, 100, 50)  # left, below, right and above
MOST_X_TICKS, MOST_Y_TICKS = 8, 6
PREVIEW_ROW, STATE_ROW = 0.02, 0.05  # of the plot's height


class Look(NamedTuple):
    """The colours of a plot; text and lines have a contrast of 4.5 to what they lie on (WCAG).

    Attributes:
        panel: what the lines lie on; the rest of the picture is `background`.
        raw_dense: the band that takes the place of the line `raw` where steps share pixels.
    """

    background: str
    panel: str
    grid: str
    text: str
    faint: str
    smooth: str
    raw: str
    raw_dense: str
    validation: str
    preview: str
    state: str


LOOKS = {
    "dark": Look(
        "#202124", "#18191b", "#2f3236", text="#e8eaed", faint="#9aa0a6", smooth="#8ab4f8",
        raw="#6d8bb7", raw_dense="#2d3e56", validation="#fdd663", preview="#81c995",
        state="#c58af9",
    ),
    "light": Look(
        "#f8f9fa", "#ffffff", "#e3e5e9", text="#202124", faint="#5f6368", smooth="#083d8f",
        raw="#4c74ac", raw_dense="#ccdaf0", validation="#7d4e00", preview="#1c7434",
        state="#7a2bc8",
    ),
}  # fmt: skip

FENCE, SLOPE_STEPS = 3.0, 5  # in quartile distances, as Tukey's "far out"; see loss_range


def draw_losses(
    losses: Sequence[float],
    width_px: int = DESIGN_PX[0],
    height_px: int = DESIGN_PX[1],
    marks: Marks | None = None,
    theme: str = "dark",
) -> Image.Image:
    """An RGB picture of the loss of each step: a faint line and a smoothed one through it.

    Args:
        theme: one of LOOKS.

    Raises:
        PersonalizeError: there are no losses, or some are not finite.
    """
    values, look, marks = checked(losses), LOOKS[theme], marks or Marks()
    unit = min(width_px / DESIGN_PX[0], height_px / DESIGN_PX[1])
    figure = blank_figure(width_px, height_px, look)
    room = np.array(ROOM_PX) * unit / np.array([width_px, height_px, width_px, height_px])
    axes = figure.add_axes((*room[:2], *(1 - room[:2] - room[2:])), facecolor=look.panel)
    _set_scales(axes, values, marks.first_step, look)
    _draw_lines(axes, values, marks.first_step, width_px, look)
    _draw_marks(axes, marks, look)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=5, frameon=False, labelcolor=look.text,
        fontsize=FONT_PX,
    )  # fmt: skip
    return picture_of(figure)


def blank_figure(width_px: int, height_px: int, look: Look) -> Any:
    """A figure of matplotlib, in whose units a pixel of DESIGN_PX is a point."""
    from matplotlib.figure import Figure

    unit = min(width_px / DESIGN_PX[0], height_px / DESIGN_PX[1])
    dpi = unit * POINTS_PER_INCH
    inches = ((width_px + 0.01) / dpi, (height_px + 0.01) / dpi)  # pixels are rounded down
    return Figure(inches, dpi, facecolor=look.background)


def picture_of(figure: Any) -> Image.Image:
    """A figure as an RGB picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def style_axes(axes: Any, look: Look) -> None:
    """Ticks as faint words, a grid behind the lines, no frame."""
    axes.tick_params(colors=look.faint, labelsize=TICK_PX, length=0)
    axes.grid(color=look.grid)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def window_steps(num_steps: int) -> float:
    """Over how many steps a run's loss is smoothed: a tenth of them, but at least 10."""
    return max(10.0, num_steps / 10)


def smooth(losses: Array) -> Array:
    """The exponential moving average of `losses`, without the pull of its start at zero.

        m_t = b m_(t-1) + (1 - b) loss_t        m_0 = 0
        smoothed_t = m_t / (1 - b^t)            b = 1 - 2 / (window + 1)

    With this b, losses are as old on average as in a plain mean over the window.
    """
    keep = 1 - 2 / (window_steps(len(losses)) + 1)
    parts = ((1 - keep) * losses).tolist()
    means = list(itertools.accumulate(parts, lambda mean, part: keep * mean + part))
    smoothed: Array = np.array(means) / (1 - keep ** np.arange(1, len(losses) + 1))
    return smoothed


def loss_range(losses: Array) -> tuple[float, float]:
    """The lowest and highest loss to show, such that a few spikes do not flatten the rest.

    All within 3 quartile distances of the middle half is shown, and every slope: the medians of
    steps 1 to 5, 6 to 10, ... The axis starts at zero where that costs at most a third.
    """
    first, third = np.percentile(losses, (25, 75)).tolist()
    reach = FENCE * (third - first)
    groups = losses[: len(losses) - len(losses) % SLOPE_STEPS].reshape(-1, SLOPE_STEPS)
    medians = np.median(groups, axis=1).tolist()
    low = max(float(losses.min()), min([first - reach, *medians]))
    high = min(float(losses.max()), max([third + reach, *medians]))
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # one value: to the middle
        return (min(0.0, 2 * low), max(0.0, 2 * high)) if high else (0.0, 1.0)
    margin = 0.06 * (high - low)
    return (0.0 if 0 <= low <= high / 3 else low - margin), high + margin


@dataclass(frozen=True)
class Marks:
    """What else happened in a run, by step.

    Attributes:
        validation: the held-out pictures' loss where they were looked at and it was finite.
        best: the step where that was lowest.
        previews: steps that have previews.
        states: steps that the run can go on from.
        first_step: of the losses; more than 1 where a run began with another one's state.
    """

    validation: Mapping[int, float] = field(default_factory=dict)
    best: int | None = None
    previews: Sequence[int] = ()
    states: Sequence[int] = ()
    first_step: int = 1


def marks_of(loss_map: Mapping[str, Any]) -> Marks:
    """What a loss map of ours has beside the losses; nothing of another's."""
    told = {int(step): float(loss) for step, loss in loss_map.get("validation", ())}
    validation = {step: loss for step, loss in told.items() if math.isfinite(loss)}
    best = min(validation, key=lambda step: validation[step]) if validation else None
    first = next(iter(loss_map.get("first_step", ())), 1)
    return Marks(validation, best, loss_map.get("previews", ()), loss_map.get("states", ()), first)


def checked(losses: Sequence[float]) -> Array:
    """The losses as an array.

    Raises:
        PersonalizeError: there are none, or some are not finite.
    """
    values = np.asarray(losses, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(values) and not len(bad):
        return values
    problem = "loss_map holds no losses"
    if len(bad):
        problem = f"{len(bad)} of {len(values)} losses are not finite, first at step {bad[0] + 1}"
    raise PersonalizeError(
        f"Plot Loss: {problem}.\n"
        "Allowed: one finite number a step, at least one. Wire the loss_map of another run."
    )


def _set_scales(axes: Any, losses: Array, first: int, look: Look) -> None:
    """Limits, ticks and grid; above the plot, how many losses lie beyond its edges."""
    low, high = loss_range(losses)
    # The only step of a run lies in the middle.
    set_scales(axes, (first - 1, first - 1 + max(2, len(losses))), (low, high), look)
    if beyond := int(np.count_nonzero((losses < low) | (losses > high))):
        text = f"{beyond:,} of {len(losses):,} off the scale"
        axes.set_title(text, loc="left", color=look.faint, fontsize=FONT_PX)


def set_scales(
    axes: Any, steps: tuple[float, float], losses: tuple[float, float], look: Look
) -> None:
    """Limits, ticks, grid and names of both axes."""
    axes.set_xlim(*steps)
    axes.set_ylim(*losses)
    axes.locator_params("x", nbins=MOST_X_TICKS, integer=True)
    axes.locator_params("y", nbins=MOST_Y_TICKS)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    style_axes(axes, look)
    axes.set_xlabel("step", color=look.text, fontsize=FONT_PX)
    axes.set_ylabel("loss", color=look.text, fontsize=FONT_PX)


def _draw_lines(axes: Any, losses: Array, first: int, width_px: int, look: Look) -> None:
    steps, smoothed = np.arange(first, first + len(losses)), smooth(losses)
    end = (steps[-1], np.clip(smoothed[-1], *axes.get_ylim()))
    is_band = len(losses) > 2 * width_px
    colour, key_px = (look.raw_dense, BAND_PX) if is_band else (look.raw, RAW_PX)
    axes.plot(steps, losses, color=colour, linewidth=RAW_PX)
    axes.plot([], [], color=colour, linewidth=key_px, label="loss")  # for the legend
    axes.plot(steps, smoothed, color=look.smooth, linewidth=SMOOTH_PX, label="smoothed")
    axes.plot(*end, "o", color=look.smooth, markersize=DOT_PX, clip_on=False, zorder=3)
    axes.annotate(
        f"{smoothed[-1]:#.4g}".rstrip("."), end, (DOT_PX + 2, 0), textcoords="offset points",
        va="center", color=look.smooth, fontsize=FONT_PX,
    )  # fmt: skip


def _draw_marks(axes: Any, marks: Marks, look: Look) -> None:
    """Validation as a line of dots, the best with a ring; previews and states at the bottom."""
    dots = {"clip_on": False, "zorder": 3}
    if validation := sorted(marks.validation.items()):
        axes.plot(
            *zip(*validation, strict=True), "o-", color=look.validation, linewidth=0.7 * SMOOTH_PX,
            markersize=DOT_PX, label="held out", **dots,
        )  # fmt: skip
    if marks.best is not None:
        ring = {"markersize": 2.2 * DOT_PX, "fillstyle": "none", "color": look.text}
        axes.plot(marks.best, marks.validation[marks.best], "o", **ring, **dots)
    for name, steps, colour, row in (
        ("preview", marks.previews, look.preview, PREVIEW_ROW),
        ("state", marks.states, look.state, STATE_ROW),
    ):  # fmt: skip
        if steps:
            axes.plot(
                steps, np.full(len(steps), row), "s", color=colour, markersize=DOT_PX, label=name,
                transform=axes.get_xaxis_transform(), **dots,
            )  # fmt: skip
