"""The loss of a run as a picture, drawn with Pillow: the host has no plotting library.

Lines are drawn SCALE times too large and shrunk, which smooths their edges; text is written at the
final size. A further line is one more `_draw_line`; a mark is one more place asked of the Frame.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ..errors import PersonalizeError

Array = npt.NDArray[np.float64]
Draw = ImageDraw.ImageDraw

SCALE = 3
DESIGN_PX = (960, 540)  # every length below is meant for this size and follows others
LEFT_PX, TOP_PX, RIGHT_PX, BOTTOM_PX = 84, 56, 100, 70  # room around the curves
FONT_PX, SWATCH_PX, GAP_PX, DOT_PX = 18, 28, 10, 5
RAW_WIDTH_PX, SMOOTH_WIDTH_PX, GRID_WIDTH_PX = 1.3, 3.4, 1.0
MOST_X_TICKS, MOST_Y_TICKS = 8, 6
BACKGROUND, FOREGROUND, FAINT = "#202124", "#e8eaed", "#9aa0a6"
PANEL, GRID, SMOOTH = "#18191b", "#2f3236", "#8ab4f8"
RAW, RAW_DENSE = "#50719c", "#2d3e56"  # a line; a band, where steps share pixels
VALIDATION, PREVIEW, STATE = "#fdd663", "#81c995", "#c58af9"

FENCE, SLOPE_STEPS = 3.0, 5  # in quartile distances, as Tukey's "far out"; see loss_range


def draw_losses(
    losses: Sequence[float],
    width_px: int = DESIGN_PX[0],
    height_px: int = DESIGN_PX[1],
    marks: Marks | None = None,
) -> Image.Image:
    """An RGB picture of the loss of steps 1, 2, ...: a faint line and a smoothed one through it.

    Raises:
        PersonalizeError: there are no losses, or some are not finite.
    """
    marks = marks or Marks()
    values = _checked(losses)
    smoothed = smooth(values)
    frame = _frame(values, width_px, height_px)
    large = Image.new("RGB", (width_px * SCALE, height_px * SCALE), BACKGROUND)
    lines = ImageDraw.Draw(large)
    _draw_grid(lines, frame)
    _draw_line(lines, frame, values, _raw_colour(frame), RAW_WIDTH_PX)
    _draw_line(lines, frame, smoothed, SMOOTH, SMOOTH_WIDTH_PX)
    _draw_end(lines, frame, smoothed)
    _draw_marks(lines, frame, marks)
    picture = large.resize((width_px, height_px), Image.Resampling.LANCZOS)
    texts = ImageDraw.Draw(picture)
    _write_axes(texts, frame)
    _write_end(texts, frame, smoothed)
    _write_legend(texts, frame, values, marks)
    return picture


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


def tick_step(low: float, high: float, most: int, least: float = 0.0) -> float:
    """The smallest 1, 2 or 5 times a power of ten that fits into the range `most` times or less."""
    wanted = max((high - low) / most, least)
    power = math.floor(math.log10(wanted))
    # From text: 2 * 10 ** -3 need not be the number that 0.002 is.
    steps = (float(f"{digits}e{power}") for digits in (1, 2, 5, 10))
    return next(step for step in steps if step >= wanted * (1 - 1e-9))


def tick_label(tick: float, step: float) -> str:
    """A tick with as many decimals as its step."""
    if not 1e-5 <= step < 1e6:
        return f"{tick:.3g}"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{tick:,.{decimals}f}"


def extremes(losses: Array, num_columns: int) -> npt.NDArray[np.intp]:
    """Indices of the lowest and the highest loss of each column, in order; of all if few."""
    if len(losses) <= 2 * num_columns:
        return np.arange(len(losses))
    bounds = np.linspace(0, len(losses), num_columns + 1).astype(int)
    columns = itertools.pairwise(bounds.tolist())
    kept = [a + pick(losses[a:b]) for a, b in columns for pick in (np.argmin, np.argmax)]
    return np.unique(kept)


@dataclass(frozen=True)
class Marks:
    """What else happened in a run, by step.

    Attributes:
        validation: the held-out pictures' loss where they were looked at.
        best: the step where that was lowest.
        previews: steps that have previews.
        states: steps that the run can go on from.
    """

    validation: Mapping[int, float] = field(default_factory=dict)
    best: int | None = None
    previews: Sequence[int] = ()
    states: Sequence[int] = ()


def marks_of(loss_map: Mapping[str, Any]) -> Marks:
    """What a loss map of ours has beside the losses; nothing of another's."""
    validation = {int(step): float(loss) for step, loss in loss_map.get("validation", ())}
    best = min(validation, key=lambda step: validation[step]) if validation else None
    return Marks(validation, best, loss_map.get("previews", ()), loss_map.get("states", ()))


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on pixels from `start_px` to `end_px`; a tick every `step`."""

    low: float
    high: float
    start_px: float
    end_px: float
    step: float

    def px(self, values: Array | float) -> Array:
        """Where values lie; those beyond an end lie on it."""
        share = (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)
        places: Array = self.start_px + share * (self.end_px - self.start_px)
        return places

    def ticks(self) -> list[tuple[float, str]]:
        """Place and label of every multiple of `step`."""
        first, end = (
            math.ceil(self.low / self.step - 1e-9),
            math.floor(self.high / self.step + 1e-9),
        )
        values = [number * self.step for number in range(first, end + 1)]
        return [(float(self.px(value)), tick_label(value, self.step)) for value in values]


@dataclass(frozen=True)
class Frame:
    """The axes of a picture, and `unit`: how many pixels one pixel of the design is."""

    x: Axis
    y: Axis
    unit: float

    def end_of(self, losses: Array) -> tuple[float, float]:
        return float(self.x.px(float(len(losses)))), float(self.y.px(losses[-1]))

    def width(self, width_px: float, scale: int = SCALE) -> int:
        return max(1, round(width_px * self.unit * scale))

    def font(self) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.load_default(max(1, round(FONT_PX * self.unit)))


def _checked(losses: Sequence[float]) -> Array:
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


def _frame(losses: Array, width_px: int, height_px: int) -> Frame:
    unit = min(width_px / DESIGN_PX[0], height_px / DESIGN_PX[1])
    last = max(2, len(losses))  # the only step of a run lies in the middle
    low, high = loss_range(losses)
    x_step, y_step = tick_step(0, last, MOST_X_TICKS, least=1), tick_step(low, high, MOST_Y_TICKS)
    x = Axis(0, last, LEFT_PX * unit, width_px - RIGHT_PX * unit, x_step)
    y = Axis(low, high, height_px - BOTTOM_PX * unit, TOP_PX * unit, y_step)
    return Frame(x, y, unit)


def _draw_grid(draw: Draw, frame: Frame) -> None:
    x, y = frame.x, frame.y
    corners = np.array([x.start_px, y.end_px, x.end_px, y.start_px])
    draw.rectangle((corners * SCALE).tolist(), fill=PANEL)
    upright = [(place, y.start_px, place, y.end_px) for place, _ in x.ticks()]
    level = [(x.start_px, place, x.end_px, place) for place, _ in y.ticks()]
    for ends in upright + level:
        # In the middle of a pixel of the final size, so that all lines look alike.
        draw.line(((np.floor(ends) + 0.5) * SCALE).tolist(), GRID, frame.width(GRID_WIDTH_PX))


def _draw_line(draw: Draw, frame: Frame, losses: Array, colour: str, width_px: float) -> None:
    kept = extremes(losses, max(1, round((frame.x.end_px - frame.x.start_px) * SCALE)))
    points = np.stack([frame.x.px((kept + 1).astype(float)), frame.y.px(losses[kept])], axis=1)
    places = (points * SCALE).round(3)  # what is level but for rounding errors is drawn level
    draw.line(places.ravel().tolist(), colour, frame.width(width_px), joint="curve")


def _raw_colour(frame: Frame) -> str:
    return RAW if frame.x.high <= 2 * (frame.x.end_px - frame.x.start_px) else RAW_DENSE


def _draw_end(draw: Draw, frame: Frame, smoothed: Array) -> None:
    end, radius = np.array(frame.end_of(smoothed)), DOT_PX * frame.unit
    draw.ellipse((np.concatenate([end - radius, end + radius]) * SCALE).tolist(), SMOOTH)


def _draw_marks(draw: Draw, frame: Frame, marks: Marks) -> None:
    """Validation as a line of dots, the best with a ring; previews and states below the plot."""
    radius = DOT_PX * frame.unit
    places = {
        step: np.array([float(frame.x.px(float(step))), float(frame.y.px(loss))])
        for step, loss in sorted(marks.validation.items())
    }
    if len(places) > 1:
        line = np.concatenate(list(places.values())) * SCALE
        draw.line(line.tolist(), VALIDATION, frame.width(SMOOTH_WIDTH_PX * 0.7), joint="curve")
    for place in places.values():
        draw.ellipse(_box(place, 0.8 * radius), VALIDATION)
    if marks.best in places:
        width = frame.width(GRID_WIDTH_PX * 2)
        draw.ellipse(_box(places[marks.best], 2.2 * radius), outline=FOREGROUND, width=width)
    for steps, colour, row in ((marks.previews, PREVIEW, 1), (marks.states, STATE, 2)):
        for step in steps:
            below = np.array([float(frame.x.px(float(step))), frame.y.start_px - row * 2 * radius])
            draw.rectangle(_box(below, 0.5 * radius), colour)


def _box(middle: Array, half: float) -> list[float]:
    box: list[float] = (np.concatenate([middle - half, middle + half]) * SCALE).tolist()
    return box


def _write_axes(draw: Draw, frame: Frame) -> None:
    x, y, unit, font = frame.x, frame.y, frame.unit, frame.font()
    for place, label in x.ticks():
        draw.text((place, y.start_px + GAP_PX * unit), label, FAINT, font, anchor="ma")
    for place, label in y.ticks():
        draw.text((x.start_px - GAP_PX * unit, place), label, FAINT, font, anchor="rm")
    below = ((x.start_px + x.end_px) / 2, y.start_px + 36 * unit)
    draw.text(below, "step", FOREGROUND, font, anchor="ma")
    draw.text((x.start_px - GAP_PX * unit, y.end_px / 2), "loss", FOREGROUND, font, anchor="rm")


def _write_end(draw: Draw, frame: Frame, smoothed: Array) -> None:
    x, y = frame.end_of(smoothed)
    value = f"{smoothed[-1]:#.4g}".rstrip(".")
    draw.text((x + (DOT_PX + 7) * frame.unit, y), value, SMOOTH, frame.font(), anchor="lm")


def _write_legend(draw: Draw, frame: Frame, losses: Array, marks: Marks) -> None:
    """From right to left above the plot; also how many losses lie beyond its edges."""
    right, row, font = frame.x.end_px, frame.y.end_px / 2, frame.font()
    gap, swatch = GAP_PX * frame.unit, SWATCH_PX * frame.unit
    shown = [("smoothed", SMOOTH, True), ("loss", _raw_colour(frame), True)]
    shown += [("held out", VALIDATION, bool(marks.validation))]
    shown += [("preview", PREVIEW, bool(marks.previews)), ("state", STATE, bool(marks.states))]
    for name, colour, is_there in shown:
        if is_there:
            draw.text((right, row), name, FOREGROUND, font, anchor="rm")
            right -= draw.textlength(name, font) + gap
            draw.line((right - swatch, row, right, row), colour, frame.width(SMOOTH_WIDTH_PX, 1))
            right -= swatch + 2 * gap
    if beyond := int(np.count_nonzero((losses < frame.y.low) | (losses > frame.y.high))):
        text = f"{beyond:,} of {len(losses):,} off the scale"
        draw.text((right, row), text, FAINT, font, anchor="rm")
