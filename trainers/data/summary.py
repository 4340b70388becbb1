"""What a dataset holds, for a person to look over before training: a text and a contact sheet."""

from __future__ import annotations

import textwrap
from collections import Counter

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .dataset import Dataset
from .pictures import Picture

MOST_CAPTIONS = 40
CAPTION_WIDTH = 120
BACKGROUND, FOREGROUND, FAINT = "#202124", "#e8eaed", "#9aa0a6"
THUMBNAIL_PX, GAP_PX, LINE_PX, FONT_PX = 208, 14, 17, 13
CAPTION_LINES = 3
DIMMED = 0.2  # brightness of what a mask leaves out


def summary(dataset: Dataset) -> str:
    """The dataset in lines: counts, sizes, captions, notices."""
    pictures = dataset.pictures
    sizes = Counter(picture.bucket_px for picture in pictures)
    lines = [
        _counts(dataset),
        "sizes: " + ", ".join(f"{w}x{h} ({count})" for (w, h), count in sizes.most_common()),
        f"captions: {dataset.caption_source}",
    ]
    if masked := sum(picture.has_mask for picture in pictures):
        lines.append(f"masks: {masked} of {len(pictures)}")
    lines += [f"note: {notice}" for notice in dataset.notices]
    captions = Counter(picture.caption for picture in pictures)
    described = [f"{count} x {_shortened(text)!r}" for text, count in captions.items()]
    lines += described[:MOST_CAPTIONS]
    if len(described) > MOST_CAPTIONS:
        lines.append(f"... {len(described)} different captions in all")
    return "\n".join(lines)


def contact_sheet(dataset: Dataset, max_pictures: int = 36) -> Image.Image:
    """Thumbnails as they will be trained: cut to their size, what a mask leaves out dimmed.

    Under each its name, size and caption.
    """
    shown = dataset.pictures[:max_pictures]
    columns = _num_columns(len(shown))
    rows = -(-len(shown) // columns)
    cell_width = THUMBNAIL_PX + GAP_PX
    cell_height = THUMBNAIL_PX + (1 + CAPTION_LINES) * LINE_PX + GAP_PX
    rest = len(dataset) - len(shown)
    height = GAP_PX + rows * cell_height + (LINE_PX + GAP_PX if rest else 0)
    sheet = Image.new("RGB", (GAP_PX + columns * cell_width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(shown):
        row, column = divmod(index, columns)
        corner = GAP_PX + column * cell_width, GAP_PX + row * cell_height
        _paste_centred(sheet, _thumbnail(dataset, index), corner)
        _write_label(draw, picture, corner)
    if rest:
        more = f"and {rest} more pictures"
        draw.text((GAP_PX, height - LINE_PX - GAP_PX), more, fill=FAINT, font=_font())
    return sheet


def _counts(dataset: Dataset) -> str:
    visits = sum(picture.repeats for picture in dataset.pictures)
    noun = "picture" if len(dataset) == 1 else "pictures"
    text = f"{dataset.name}: {len(dataset)} {noun} at {dataset.resolution_px} px"
    if visits == len(dataset):
        return text
    repeats = {p.name.rpartition("/")[0]: p.repeats for p in dataset.pictures if p.repeats > 1}
    return f"{text}, {visits} with repeats ({', '.join(repeats)})"


def _shortened(text: str) -> str:
    return textwrap.shorten(text, CAPTION_WIDTH, placeholder=" ...")


def _num_columns(num_pictures: int) -> int:
    return next((columns for columns in (1, 2, 3, 4, 5) if columns**2 >= num_pictures), 6)


def _thumbnail(dataset: Dataset, index: int) -> Image.Image:
    values = dataset.pixels(index)
    mask = dataset.mask(index)
    if mask is not None:
        values = values * (DIMMED + (1 - DIMMED) * mask[:, :, None])
    image = Image.fromarray((values.numpy() * 255).round().astype(np.uint8))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    return image


def _paste_centred(sheet: Image.Image, image: Image.Image, corner: tuple[int, int]) -> None:
    left = corner[0] + (THUMBNAIL_PX - image.width) // 2
    top = corner[1] + (THUMBNAIL_PX - image.height) // 2
    sheet.paste(image, (left, top))


def _write_label(draw: ImageDraw.ImageDraw, picture: Picture, corner: tuple[int, int]) -> None:
    left, top = corner[0], corner[1] + THUMBNAIL_PX + 4
    size = f"{picture.bucket_px[0]}x{picture.bucket_px[1]}"
    if picture.repeats > 1:
        size += f", {picture.repeats} times"
    size_left = left + THUMBNAIL_PX - draw.textlength(size, _font())
    room = size_left - left - 6
    draw.text(
        (left, top), _fitting(draw, picture.name.rpartition("/")[2], room), fill=FAINT, font=_font()
    )
    draw.text((size_left, top), size, fill=FAINT, font=_font())
    colour = FOREGROUND if picture.caption else FAINT
    text = picture.caption or "(empty caption)"
    for number, line in enumerate(_wrapped(draw, text), start=1):
        draw.text((left, top + number * LINE_PX), line, fill=colour, font=_font())


def _wrapped(draw: ImageDraw.ImageDraw, text: str) -> list[str]:
    """The text in at most CAPTION_LINES lines, each fitting under a thumbnail."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if len(lines) == CAPTION_LINES or draw.textlength(longer, _font()) <= THUMBNAIL_PX:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_fitting(draw, line, THUMBNAIL_PX) for line in lines]


def _fitting(draw: ImageDraw.ImageDraw, text: str, room_px: float) -> str:
    """The text, or as much of it as fits with an ellipsis."""
    if draw.textlength(text, _font()) <= room_px:
        return text
    text = text[:200]
    while text and draw.textlength(text + "...", _font()) > room_px:
        text = text[:-1]
    return text.rstrip() + "..."


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_PX)
