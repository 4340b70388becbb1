"""The loss plot: smoothing, range and what ends up in the picture, as numbers."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from PIL import Image, ImageColor

from trainers.errors import PersonalizeError
from trainers.runs.pictures.lines import COLOURS, DASHES, MOST_LINES, Line, draw_lines, points_of
from trainers.runs.pictures.plot import (
    LOOKS,
    Marks,
    draw_losses,
    loss_range,
    marks_of,
    smooth,
    window_steps,
)

DARK = LOOKS["dark"]

each_look = pytest.mark.parametrize("theme", LOOKS)


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


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it, 0 to 1."""
    parts = [value / 255 for value in ImageColor.getrgb(colour)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio, 1 to 21."""
    darker, lighter = sorted(map(luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


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
    assert num_pixels(picture, DARK.smooth) > 40


@pytest.mark.parametrize("size", [(480, 270), (1920, 800), (64, 36), (300, 300)])
def test_draw_any_size(size: tuple[int, int]) -> None:
    picture = draw_losses(noisy(100), *size)
    assert picture.size == size
    assert num_pixels(picture, DARK.background) > size[0] * size[1] / 10


def test_draw_same_losses_same_picture() -> None:
    assert draw_losses(noisy(100)).tobytes() == draw_losses(noisy(100)).tobytes()


@each_look
def test_draw_in_the_colours_of_the_theme(theme: str) -> None:
    marks = Marks({20: 0.2, 60: 0.15}, 60, previews=[50], states=[40])
    picture, look = draw_losses(noisy(100), marks=marks, theme=theme), LOOKS[theme]
    found = {colour for _, colour in picture.getcolors(1 << 20) or []}
    used = set(look) - {look.raw_dense, look.grid}  # the grid is too thin to be exactly of one
    assert {ImageColor.getrgb(colour) for colour in used} <= found
    assert num_pixels(picture, look.panel) > num_pixels(picture, look.background)


@each_look
def test_texts_and_lines_can_be_told_from_what_they_lie_on(theme: str) -> None:
    look = LOOKS[theme]
    lines = (look.smooth, look.raw, look.validation, look.preview, look.state)
    for colour in (look.text, look.faint, *lines):
        assert min(contrast(colour, look.background), contrast(colour, look.panel)) >= 4.5, colour
    for colour in (look.smooth, look.validation):
        assert contrast(colour, look.raw_dense) >= 4.5, colour


def test_one_look_is_dark_and_one_is_light() -> None:
    assert luminance(LOOKS["dark"].background) < 0.05
    assert luminance(LOOKS["light"].background) > 0.9


def test_draw_line_spans_the_steps() -> None:
    width = spread(draw_losses(noisy(1000)), DARK.smooth)[1]
    assert 776 <= width <= 880  # the plot is 776 wide, the value at its end 100 at most


def test_draw_equal_losses_are_one_level_line() -> None:
    picture = np.asarray(draw_losses([0.1] * 40))
    column = picture[:, 400].astype(int)
    lit = np.flatnonzero(column[:, 2] > 150)
    assert len(lit) in (3, 4)
    # Of 0 to 0.2, 0.1 is the middle of the plot.
    assert lit.mean() == pytest.approx((50 + 540 - 64) / 2, abs=1)


def test_draw_raw_line_lies_behind_the_smoothed() -> None:
    in_legend = num_pixels(draw_losses([0.1] * 40), DARK.raw)
    assert 20 < in_legend < 120
    assert num_pixels(draw_losses([0.1, 0.5] * 20), DARK.raw) > 10 * in_legend


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
    for colour in (DARK.validation, DARK.preview, DARK.state):
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
    odd = marks_of({"validation": [[1, float("nan")], [2, 0.5], [3, float("inf")]]})
    assert (odd.validation, odd.best) == ({2: 0.5}, 2)


def test_a_run_that_began_with_a_state_is_drawn_from_its_own_first_step() -> None:
    losses = noisy(20)
    told = {"loss": losses, "validation": [(410, 0.2)], "first_step": [401]}
    marks = marks_of(told)
    assert marks.first_step == 401
    moved = Marks({10: 0.2}, 10)
    drawn, alike = (draw_losses(losses, marks=m) for m in (marks, moved))
    for colour in (DARK.smooth, DARK.raw, DARK.validation):  # all but the numbers of the steps
        assert spread(drawn, colour) == spread(alike, colour)
        assert num_pixels(drawn, colour) > 30


# -- several runs -------------------------------------------------------------


@each_look
def test_several_runs_have_a_line_each_that_spans_its_own_steps(theme: str) -> None:
    short, long = ([0.1] * 100, [0.2] * 400)
    lines = [Line("short", short, Marks()), Line("long", long, Marks(first_step=101))]
    plot = np.asarray(draw_lines(lines, theme))[150:, :]  # below the legend
    plain, dashed = (Image.fromarray(plot) for _ in range(2))
    one, other = COLOURS[theme][:2]
    assert spread(plain, one)[1] == pytest.approx(776 * 100 / 500, abs=6)
    assert spread(dashed, other)[1] == pytest.approx(776 * 400 / 500, abs=12)
    drawn = num_pixels(dashed, other) / num_pixels(plain, one)
    assert 2 < drawn < 3.4, "four times as long, three tenths of it gaps"


def test_lines_differ_by_more_than_colour_and_can_be_read() -> None:
    assert len(set(DASHES)) == len(DASHES) == MOST_LINES
    for theme, colours in COLOURS.items():
        assert len(set(colours)) == MOST_LINES
        look = LOOKS[theme]
        for colour in colours:
            assert min(contrast(colour, look.background), contrast(colour, look.panel)) >= 4.5


def test_any_name_of_a_run_is_drawn() -> None:
    names = ["a $b$ c", "_under", "x" * 200, "<b>", "$", "", "日本"][:MOST_LINES]
    picture = draw_lines([Line(name, noisy(30), Marks()) for name in names])
    assert picture.size == (960, 540)


def test_several_runs_one_without_losses_is_an_error() -> None:
    with pytest.raises(PersonalizeError, match="holds no losses"):
        draw_lines([Line("a", [0.1], Marks()), Line("b", [], Marks())])


def test_points_of_a_run_are_those_that_are_drawn() -> None:
    losses = {"loss": [0.3, 0.123456789, 0.2], "first_step": [41], "previews": [42], "states": [43]}
    points = points_of(Line("<b>a</b>", losses["loss"], marks_of(losses)))
    assert points == {
        "title": "<b>a</b>", "loss": [[41, 0.3], [42, 0.12346], [43, 0.2]], "validation": [],
        "best": None, "previews": [42], "states": [43],
    }  # fmt: skip
    held = marks_of({"validation": [[9, 0.5], [3, 0.25], [6, 0.125]]})
    points = points_of(Line("a", [0.1] * 9, held))
    assert points["validation"] == [[3, 0.25], [6, 0.125], [9, 0.5]]
    assert points["best"] == {"of": "validation", "step": 6, "loss": 0.125}


def test_points_of_a_long_run_are_means_of_as_many_steps_each() -> None:
    losses = noisy(10_000)
    points = points_of(Line("a", losses, Marks(first_step=101)))["loss"]
    assert len(points) == 2000
    assert [step for step, _ in points] == list(range(105, 10_101, 5))
    means = np.array(losses).reshape(-1, 5).mean(axis=1)
    assert [loss for _, loss in points] == pytest.approx(means.tolist(), rel=1e-4)
