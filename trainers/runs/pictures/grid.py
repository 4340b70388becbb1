"""A sheet of pictures in rows and columns, with words beside and above them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

MOST_SIDE_PX = 8192  # of a sheet; larger ones are made smaller, words as well
MOST_PIXELS = 32 * 2**20  # of a sheet: as an IMAGE they take 400 MB
BACKGROUND, FOREGROUND, FAINT = "#202124", "#e8eaed", "#9aa0a6"
MARK = "#fdd663"  # a contrast of 11 to the background (WCAG)
GAP, SIDE, FONT, LINE = 1 / 64, 0.45, 1 / 20, 1.3  # of a cell; LINE of the font
SMALLEST_FONT_PX, SMALLEST_SIDE_PX = 10, 72
MOST_LINES = 4  # of a prompt
MOST_CHARACTERS = 400  # of a text that are looked at: more fit nowhere


class Label(NamedTuple):
    """What stands beside a row.

    Attributes:
        detail: on a line of its own, never left out.
    """

    name: str
    detail: str = ""


class _Plan(NamedTuple):
    """Sizes in pixels; `side` is the column of labels, `top` the row of them."""

    width: int
    height: int
    gap: int
    font: int
    side: int
    top: int


def draw_grid(
    cells: Sequence[Sequence[Image.Image]],
    rows: Sequence[Label],
    columns: Sequence[str],
    *,
    corner: str = "",
    marked: tuple[int, Sequence[int]] | None = None,
) -> Image.Image:
    """An RGB picture of `cells`, of one size each, by rows; no larger than MOST_SIDE_PX and
    MOST_PIXELS.

    Args:
        corner: what the names of the rows are.
        marked: a row, and columns next to each other: a frame is drawn around these cells.
    """
    plan = _plan(cells[0][0].size, len(rows), len(columns))
    width, height = _whole(plan, len(rows), len(columns))
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(_font_file(), plan.font)
    step_x, step_y = plan.width + plan.gap, plan.height + plan.gap
    lines = wrapped(corner, font, plan.side - 2 * plan.gap, MOST_LINES)
    _write(draw, (plan.side / 2, plan.top / 2), lines, font, [FAINT] * len(lines))
    for number, text in enumerate(columns):
        lines = wrapped(text, font, plan.width, MOST_LINES)
        middle = (plan.side + number * step_x + plan.width / 2, plan.top / 2)
        _write(draw, middle, lines, font, [FOREGROUND] * len(lines))
    for number, (label, pictures) in enumerate(zip(rows, cells, strict=True)):
        top = plan.top + number * step_y
        lines, colours = _beside(label, font, plan)
        _write(draw, (plan.side / 2, top + plan.height / 2), lines, font, colours)
        for column, picture in enumerate(pictures):
            if picture.size != (plan.width, plan.height):
                picture = picture.resize((plan.width, plan.height), Image.Resampling.LANCZOS)
            sheet.paste(picture, (plan.side + column * step_x, top))
    if marked:
        row, places = marked
        left, right = (plan.side + place * step_x for place in (places[0], places[-1]))
        top, gap = plan.top + row * step_y, plan.gap
        frame = (left - gap, top - gap, right + plan.width - 1 + gap, top + plan.height - 1 + gap)
        draw.rectangle(frame, outline=MARK, width=gap)
    return sheet


def written(text: str, size: tuple[int, int]) -> Image.Image:
    """A cell with words in the place of a picture."""
    cell = Image.new("RGB", size, BACKGROUND)
    font = ImageFont.truetype(_font_file(), max(SMALLEST_FONT_PX, round(FONT * max(size))))
    lines = wrapped(text, font, size[0], MOST_LINES)
    _write(ImageDraw.Draw(cell), (size[0] / 2, size[1] / 2), lines, font, [FAINT] * len(lines))
    return cell


def wrapped(text: str, font: ImageFont.FreeTypeFont, width_px: float, most_lines: int) -> list[str]:
    """`text` in lines of at most that width, cut with an ellipsis where it needs more of them."""
    lines: list[str] = []
    for word in _words(text, font, width_px):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width_px:
            lines[-1] = longer
        elif len(lines) < most_lines:
            lines.append(word)
        else:
            lines[-1] = _cut(f"{lines[-1]} {word}", font, width_px)
            break
    return lines


def _words(text: str, font: ImageFont.FreeTypeFont, width_px: float) -> Iterator[str]:
    """The words, those too long for a line in pieces; what cannot be printed is a blank."""
    shown = "".join(sign if sign.isprintable() else " " for sign in text[:MOST_CHARACTERS])
    for word in shown.split():
        while font.getlength(word) > width_px and len(word) > 1:
            fitting = max(1, _num_fitting(word, font, width_px))
            yield word[:fitting]
            word = word[fitting:]
        yield word
    if len(text) > MOST_CHARACTERS:
        yield "…"


def _num_fitting(word: str, font: ImageFont.FreeTypeFont, width_px: float) -> int:
    return next(n for n in range(len(word), -1, -1) if font.getlength(word[:n]) <= width_px)


def _cut(line: str, font: ImageFont.FreeTypeFont, width_px: float) -> str:
    room = width_px - font.getlength("…")
    return line[: _num_fitting(line, font, max(0.0, room))].rstrip(" …") + "…"


def _beside(label: Label, font: ImageFont.FreeTypeFont, plan: _Plan) -> tuple[list[str], list[str]]:
    """A row's lines and their colours."""
    width = plan.side - 2 * plan.gap
    room = max(1, int(plan.height / (LINE * plan.font)) - bool(label.detail))
    names = wrapped(label.name, font, width, min(room, 2 * MOST_LINES))
    details = wrapped(label.detail, font, width, 1)
    return [*names, *details], [FOREGROUND] * len(names) + [FAINT] * len(details)


def _write(
    draw: ImageDraw.ImageDraw,
    middle: tuple[float, float],
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont,
    colours: Sequence[str],
) -> None:
    pitch = LINE * font.size
    for number, (line, colour) in enumerate(zip(lines, colours, strict=True)):
        y = middle[1] + (number - (len(lines) - 1) / 2) * pitch
        draw.text((middle[0], y), line, colour, font, anchor="mm")


def _plan(size: tuple[int, int], num_rows: int, num_columns: int) -> _Plan:
    """The largest sizes, up to the cells' own, at which the sheet is within its limits."""
    scale = 1.0
    while True:
        width, height = (max(1, int(side * scale)) for side in size)
        font = max(SMALLEST_FONT_PX, round(FONT * max(width, height)))
        side = max(SMALLEST_SIDE_PX, round(SIDE * max(width, height)))
        gap = max(1, round(GAP * max(width, height)))
        top = math.ceil((MOST_LINES + 0.5) * LINE * font)
        plan = _Plan(width, height, gap, font, side, top)
        whole = _whole(plan, num_rows, num_columns)
        if (max(whole) <= MOST_SIDE_PX and math.prod(whole) <= MOST_PIXELS) or scale < 0.01:
            return plan
        scale *= 0.97


def _whole(plan: _Plan, num_rows: int, num_columns: int) -> tuple[int, int]:
    """Width and height of the sheet."""
    return (
        plan.side + num_columns * (plan.width + plan.gap),
        plan.top + num_rows * (plan.height + plan.gap),
    )


def _font_file() -> Path:
    """DejaVu Sans, which comes with matplotlib: Pillow's own font has Latin letters alone."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
