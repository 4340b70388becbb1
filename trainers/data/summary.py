"""What a dataset holds, for a person to look over before training: a text and a contact sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..settings.dataset import DatasetConfig
from .beside.masks import source_of
from .buckets import bucket_of, crop_box, size_problem
from .captions import one_line
from .dataset import Dataset
from .listing import PictureFile, named
from .pictures import Picture, opened, orientation, to_rgb, upright

MOST_LINES, MOST_SIZES = 4, 4
BACKGROUND, FOREGROUND, FAINT = "#202124", "#e8eaed", "#9aa0a6"
THUMBNAIL_PX, GAP_PX, LINE_PX, FONT_PX = 208, 14, 17, 13
INSET_PX = THUMBNAIL_PX // 3
CAPTION_LINES = 3
DIMMED = 0.2  # brightness of what a mask leaves out


def summary(dataset: Dataset, notices: Sequence[str] = ()) -> str:
    """The dataset in four lines at most: what there is to notice, then what it holds.

    Args:
        notices: more of them than the dataset's own, which they come before.
    """
    told = [f"note: {notice}" for notice in (*notices, *dataset.notices)]
    facts = [_counts(dataset), _captions(dataset)]
    if len(told) + len(facts) > MOST_LINES:
        facts = ["; ".join(facts)]
    if (rest := len(told) + len(facts) - MOST_LINES) > 0:
        told, facts = told[: -rest - 1], [*facts, f"and {rest + 1} more notes, in ComfyUI's log"]
    return "\n".join(map(one_line, (*told, *facts)))  # a file's name may have a line end


def description(dataset: Dataset, notices: Sequence[str] = ()) -> str:
    """All that there is to say: every notice, every size and each different caption."""
    captions = Counter(picture.caption for picture in dataset.pictures)
    return "\n".join([
        _counts(dataset, most_sizes=None),
        _captions(dataset),
        *(f"note: {notice}" for notice in (*notices, *dataset.notices)),
        *(f"{count} x {text!r}" for text, count in captions.items()),
    ])  # fmt: skip


def contact_sheet(dataset: Dataset, max_pictures: int = 36) -> Image.Image:
    """Thumbnails as they will be trained: cut to their size, what a mask leaves out dimmed.

    In a corner of each its control images, under it its name, size and caption.
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


def thumbnail(file: PictureFile, config: DatasetConfig, most_px: int = THUMBNAIL_PX) -> Image.Image:
    """A picture of a folder as it is trained, small: cut to its shape, what a mask leaves out
    dimmed; the whole picture where its shape cannot be trained.

    Args:
        most_px: of its longer side.

    Raises:
        READ_ERRORS: it or its mask cannot be decoded.
    """
    with opened(file.path) as image:
        turned = orientation(image) >= 5
        width, height = image.size[::-1] if turned else image.size
        image.draft("RGB", (2 * most_px, 2 * most_px))  # JPEG: an eighth, if that does
        small = to_rgb(upright(image))
        transparent = image.has_transparency_data
    shape = width, height
    if not size_problem(width, height, config):
        shape = bucket_of(width, height, config)
    scale = min(1.0, most_px / max(shape))
    size = max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
    box = crop_box(*small.size, shape)
    cut = small.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    mask = source_of(file, config, transparent).mask(size)
    return _dimmed(torch.from_numpy(np.asarray(cut, dtype=np.float32) / 255), mask)


def inset(path: Path) -> Image.Image:
    """A control image, small and whole.

    Raises:
        READ_ERRORS: it cannot be decoded.
    """
    with opened(path) as image:
        image.draft("RGB", (2 * INSET_PX, 2 * INSET_PX))
        small = to_rgb(upright(image))
    small.thumbnail((INSET_PX, INSET_PX), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return small


def _counts(dataset: Dataset, most_sizes: int | None = MOST_SIZES) -> str:
    visits = sum(picture.repeats for picture in dataset.pictures)
    noun = "picture" if len(dataset) == 1 else "pictures"
    text = f"{dataset.name}: {len(dataset)} {noun} at {dataset.resolution_px} px"
    if visits > len(dataset):
        repeated = {p.name.rpartition("/")[0]: None for p in dataset.pictures if p.repeats > 1}
        text += f", {visits} with repeats ({named(repeated, 3)})"
    sizes = Counter(picture.bucket_px for picture in dataset.pictures).most_common()
    shown = [f"{w}x{h} ({count})" for (w, h), count in sizes]
    if num := dataset.num_controls:
        text += f", each with {num} control image{'s' if num > 1 else ''}"
    return f"{text}; sizes: {named(shown, most_sizes or len(shown))}"


def _captions(dataset: Dataset) -> str:
    text = f"captions: {dataset.caption_source}"
    masked = sum(picture.has_mask for picture in dataset.pictures)
    return f"{text}; masks: {masked} of {len(dataset)}" if masked else text


def _num_columns(num_pictures: int) -> int:
    return next((columns for columns in (1, 2, 3, 4, 5) if columns**2 >= num_pictures), 6)


def _thumbnail(dataset: Dataset, index: int) -> Image.Image:
    image = _dimmed(dataset.pixels(index), dataset.mask(index))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    right = image.width
    for control in reversed(dataset.controls(index)):
        inset = _dimmed(control, None)
        inset.thumbnail((INSET_PX, INSET_PX), Image.Resampling.LANCZOS)
        right -= inset.width
        image.paste(inset, (right, image.height - inset.height))
    return image


def _dimmed(values: Tensor, mask: Tensor | None) -> Image.Image:
    if mask is not None:
        values = values * (DIMMED + (1 - DIMMED) * mask[:, :, None])
    return Image.fromarray((values.numpy() * 255).round().astype(np.uint8))


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
