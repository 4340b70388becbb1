"""The loss plot: smoothing, range, ticks and what ends up in the picture, as numbers."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from PIL import Image

from trainers.errors import PersonalizeError
from trainers.runs.plot import (
    BACKGROUND,
    PREVIEW,
    RAW,
    SMOOTH,
    STATE,
    VALIDATION,
    Axis,
    Marks,
    draw_losses,
    extremes,
    loss_range,
    marks_of,
    smooth,
    tick_label,
    tick_step,
    window_steps,
)


def noisy(num_steps: int, seed: int = 5) -> list[float]:
    """Losses as a diffusion model gives them: skewed, never negative, a weak slope."""
    draw = random.Random(seed)
    return [draw.expovariate(8.0) + 0.05 + 0.1 * math.exp(-s / 99) for s in range(num_steps)]


def num_pixels(picture: Image.Image, colour: str) -> int:
    """How many pixels of `picture` are exactly of that colour."""
    wanted = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    return int((np.asarray(picture) == wanted).all(axis=2).sum())


def spread(picture: Image.Image, colour: str) -> tuple[int, int]:
    """Height and width of what is exactly of that colour."""
    wanted = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    rows, columns = np.nonzero((np.asarray(picture) == wanted).all(axis=2))
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


@pytest.mark.parametrize(("num_steps", "window"), [(1, 10), (100, 10), (500, 50), (20_000, 2000)])
def test_window_is_a_tenth_and_at_least_ten(num_steps: int, window: float) -> None:
    assert window_steps(num_steps) == window


@pytest.mark.parametrize("num_steps", [1, 2, 30, 500])
def test_smooth_is_the_weighted_mean_of_all_before(num_steps: int) -> None:
    losses = np.array(noisy(num_steps))
    keep = 1 - 2 / (window_steps(num_steps) + 1)
    expected = []
    for step in range(num_steps):
        weights = keep ** np.arange(step, -1, -1)
        expected.append(weights @ losses[: step + 1] / weights.sum())
    np.testing.assert_allclose(smooth(losses), expected, rtol=1e-9)


def test_smooth_by_hand() -> None:
    # Window 10, so b = 9/11: the second value is (9/11 * 1 + 2) / (9/11 + 1) = 1.55.
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0])), [1.0, 1.55])


def test_smooth_keeps_a_constant() -> None:
    np.testing.assert_allclose(smooth(np.full(300, 0.25)), 0.25, rtol=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "most", "step"),
    [
        (0, 1, 5, 0.2),
        (0, 1, 10, 0.1),
        (0, 0.006, 3, 0.002),
        (0, 500, 8, 100),
        (0, 30, 8, 5),
        (0, 20_000, 8, 5000),
        (0, 100_000, 8, 20_000),
        (0.1, 0.13, 6, 0.005),
    ],
)
def test_tick_step_is_round(low: float, high: float, most: int, step: float) -> None:
    assert tick_step(low, high, most) == step


def test_tick_step_any_range_is_one_two_or_five() -> None:
    draw = random.Random(1)
    for _ in range(2000):
        width, most = 10 ** draw.uniform(-9, 9), draw.randint(2, 9)
        step = tick_step(0, width, most)
        assert f"{step:.0e}"[0] in "125"
        assert step == pytest.approx(float(f"{step:.0e}"), rel=1e-12)
        assert 1 - 1e-9 <= step * most / width <= 2.5 + 1e-9


def test_tick_step_of_steps_is_whole() -> None:
    assert tick_step(0, 2, 8, least=1) == 1


@pytest.mark.parametrize(
    ("tick", "step", "label"),
    [
        (0, 0.2, "0.0"),
        (0.1 + 0.2, 0.1, "0.3"),
        (0.05, 0.05, "0.05"),
        (0.12, 0.002, "0.120"),
        (20_000, 5000, "20,000"),
        (3e-7, 1e-7, "3e-07"),
        (2e30, 1e30, "2e+30"),
    ],
)
def test_tick_label(tick: float, step: float, label: str) -> None:
    assert tick_label(tick, step) == label


def test_axis_ticks_reach_both_ends() -> None:
    axis = Axis(low=0, high=0.6, start_px=470, end_px=50, step=0.2)
    assert [label for _, label in axis.ticks()] == ["0.0", "0.2", "0.4", "0.6"]
    assert [place for place, _ in axis.ticks()] == pytest.approx([470, 330, 190, 50])


def test_axis_px_beyond_an_end_lies_on_it() -> None:
    axis = Axis(low=0, high=1, start_px=10, end_px=110, step=0.5)
    assert axis.px(np.array([-5, 0.25, 9.0])).tolist() == [10, 35, 110]


def test_range_one_spike_does_not_flatten() -> None:
    losses = noisy(500)
    without = loss_range(np.array(losses))
    losses[250] = 1e6
    assert loss_range(np.array(losses)) == pytest.approx(without, rel=0.1)


def test_range_shows_nearly_all_of_a_skewed_loss() -> None:
    losses = np.array(noisy(2000))
    low, high = loss_range(losses)
    assert low == 0
    assert 0.97 < np.mean(losses <= high) < 1


def test_range_shows_a_steep_start() -> None:
    losses = 5 * np.exp(-np.arange(400) / 30)
    assert loss_range(losses)[1] > 4.5


def test_range_starts_at_zero_only_where_that_is_cheap() -> None:
    assert loss_range(np.array([0.1, 0.2, 0.4]))[0] == 0
    low, high = loss_range(np.array([0.80, 0.81, 0.82]))
    assert (low, high) == pytest.approx((0.7988, 0.8212))


@pytest.mark.parametrize(("loss", "ends"), [(0.1, (0, 0.2)), (0.0, (0, 1)), (-1.0, (-2, 0))])
def test_range_of_one_value_has_it_in_the_middle(loss: float, ends: tuple[float, float]) -> None:
    assert loss_range(np.full(50, loss)) == ends
    assert loss_range(np.array([loss])) == ends


def test_extremes_keep_lowest_and_highest_of_every_column() -> None:
    losses = np.array(noisy(100_000))
    kept = extremes(losses, 200)
    assert len(kept) == 400
    assert (np.diff(kept) > 0).all()
    columns = losses.reshape(200, 500)
    pairs = np.sort(losses[kept].reshape(200, 2), axis=1)
    np.testing.assert_array_equal(pairs[:, 0], columns.min(axis=1))
    np.testing.assert_array_equal(pairs[:, 1], columns.max(axis=1))


def test_extremes_of_few_are_all() -> None:
    assert extremes(np.array([3.0, 1.0, 2.0]), 2).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "losses",
    [
        [0.12],
        [0.3, 0.1],
        [0.1] * 40,
        [0.0] * 5,
        [1e30, 3e30],
        [-1e-5, 2e-5, 1e-5],
        noisy(500),
        noisy(100_000),
    ],
    ids=["one", "two", "equal", "zeros", "huge", "tiny", "many", "very many"],
)
def test_draw_any_losses(losses: list[float]) -> None:
    picture = draw_losses(losses)
    assert (picture.size, picture.mode) == ((960, 540), "RGB")
    assert picture.getpixel((0, 0)) == (0x20, 0x21, 0x24)
    assert num_pixels(picture, SMOOTH) > 40


@pytest.mark.parametrize("size", [(480, 270), (1920, 800), (64, 36), (300, 300)])
def test_draw_any_size(size: tuple[int, int]) -> None:
    picture = draw_losses(noisy(100), *size)
    assert picture.size == size
    assert num_pixels(picture, BACKGROUND) > size[0] * size[1] / 10


def test_draw_same_losses_same_picture() -> None:
    assert draw_losses(noisy(100)).tobytes() == draw_losses(noisy(100)).tobytes()


def test_draw_line_spans_the_steps() -> None:
    width = spread(draw_losses(noisy(1000)), SMOOTH)[1]
    assert 776 <= width <= 880  # the plot is 776 wide, the value at its end 100 at most


def test_draw_equal_losses_are_one_level_line() -> None:
    picture = np.asarray(draw_losses([0.1] * 40))
    column = picture[:, 400].astype(int)
    lit = np.flatnonzero(column[:, 2] > 150)
    assert len(lit) in (3, 4)
    # Of 0 to 0.2, 0.1 is the middle of the plot.
    assert lit.mean() == pytest.approx((56 + 540 - 70) / 2, abs=1)


def test_draw_raw_line_lies_behind_the_smoothed() -> None:
    in_legend = num_pixels(draw_losses([0.1] * 40), RAW)
    assert 50 < in_legend < 120
    assert num_pixels(draw_losses([0.1, 0.5] * 20), RAW) > 1000


def test_draw_says_how_many_losses_are_off_the_scale() -> None:
    row = (slice(0, 50), slice(84, 600))  # above the plot, left of the legend
    spiky = [0.1, 0.2, 0.3] * 20 + [50.0]
    assert np.ptp(np.asarray(draw_losses(spiky))[row]) > 100
    assert np.ptp(np.asarray(draw_losses(spiky[:-1]))[row]) < 10


def test_draw_no_losses_is_an_error() -> None:
    with pytest.raises(PersonalizeError, match=r"holds no losses[^\n]*\nAllowed: .*at least one"):
        draw_losses([])


def test_draw_losses_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(PersonalizeError, match="2 of 4 losses are not finite, first at step 2"):
        draw_losses([0.1, math.nan, 0.2, math.inf])


# -- what else happened -------------------------------------------------------


def test_marks_are_drawn_and_named() -> None:
    marks = Marks({20: 0.2, 60: 0.15, 100: 0.18}, 60, previews=[50, 100], states=[40])
    plain, marked = (draw_losses(noisy(100), marks=m) for m in (None, marks))
    for colour in (VALIDATION, PREVIEW, STATE):
        assert num_pixels(plain, colour) == 0
        assert num_pixels(marked, colour) > 10


def test_marks_of_our_loss_map_and_of_another() -> None:
    ours = {"loss": [0.1], "validation": [(10, 0.3), (20, 0.2), (30, 0.4)], "previews": [10]}
    marks = marks_of(ours)
    assert (marks.best, dict(marks.validation), list(marks.previews)) == (
        20,
        {10: 0.3, 20: 0.2, 30: 0.4},
        [10],
    )
    assert marks_of({"loss": [0.1]}) == Marks()
