"""The size that each picture trains at: a pure function of its size and the settings."""

from __future__ import annotations

import math

from ..settings.dataset import STEP_PX, DatasetConfig

SHAPE_TOLERANCE = 0.02  # what was drawn on a shrunk copy may be off by a pixel
CONTROL_STEP_PX = 16  # of a control image's sides: what VAEs and patches divide them by


def size_problem(width_px: int, height_px: int, config: DatasetConfig) -> str | None:
    """What makes a picture's shape unusable, or None.

    Every side needs 64 pixels, enlarging or not: less holds nothing to learn. With buckets on, the
    longest side may be at most `max_aspect_ratio` times the shortest.
    """
    if min(width_px, height_px) < STEP_PX:
        return f"{width_px}x{height_px}, a side under {STEP_PX} pixels"
    ratio = max(width_px, height_px) / min(width_px, height_px)
    if config.buckets and ratio > config.max_aspect_ratio:
        return f"{width_px}x{height_px}, sides {ratio:.1f} to 1"
    return None


def bucket_of(width_px: int, height_px: int, config: DatasetConfig) -> tuple[int, int]:
    """The (width, height) that a picture trains at, both multiples of 64.

    With buckets: shrink the picture to an area of resolution² (one that is smaller stays as it
    is, unless `upscale`), then round each side down or up to a multiple of 64. Of these up to four
    results, those count whose area is at most resolution², that need no enlarging (unless
    `upscale`), and that the resized picture overhangs by less than 64 pixels; the one that crops
    the smallest share wins, of equals the larger. Rounding both sides down always counts.

    So a picture is cut on one axis only, by less than 64 pixels of its training size. The one
    exception: where the shrunk picture is narrower than 64 pixels, which takes a resolution under
    64 * sqrt(aspect ratio), the bucket is 64 wide and the crop larger.

    Without buckets: a square of the resolution, or of the largest multiple of 64 that fits into
    the picture if that is smaller (unless `upscale`).

    Args:
        width_px, height_px: a size without a size_problem.
    """
    assert min(width_px, height_px) >= STEP_PX
    if not config.buckets:
        shortest_px = min(width_px, height_px)
        side_px = config.resolution if config.upscale else min(config.resolution, shortest_px)
        return _rounded_down(side_px), _rounded_down(side_px)
    scale = config.resolution / math.sqrt(width_px * height_px)
    if not config.upscale:
        scale = min(scale, 1.0)
    longest_px = config.resolution**2 / STEP_PX  # beside a side of 64
    down = (
        _rounded_down(min(width_px * scale, longest_px)),
        _rounded_down(min(height_px * scale, longest_px)),
    )
    candidates = [down] + [
        (width, height)
        for width in (down[0], down[0] + STEP_PX)
        for height in (down[1], down[1] + STEP_PX)
        if width * height <= config.resolution**2
        and (config.upscale or (width <= width_px and height <= height_px))
        and overhang_px(width_px, height_px, (width, height)) < STEP_PX
    ]
    return min(
        candidates,
        key=lambda size: (cropped_share(width_px, height_px, size), -size[0] * size[1]),
    )


def control_size(
    size_px: tuple[int, int], picture_px: tuple[int, int], bucket_px: tuple[int, int]
) -> tuple[int, int]:
    """The (width, height) of a control image beside a picture that trains at `bucket_px`.

    One of the picture's own shape is cut and resized as the picture is. Any other keeps its shape
    at about the same area, with sides that are multiples of 16.

    Args:
        size_px, picture_px: (width, height) of the control image and of the picture.
    """
    if same_shape(size_px, picture_px):
        return bucket_px
    scale = math.sqrt(bucket_px[0] * bucket_px[1] / (size_px[0] * size_px[1]))
    width, height = (
        max(1, round(side * scale / CONTROL_STEP_PX)) * CONTROL_STEP_PX for side in size_px
    )
    return width, height


def same_shape(size_px: tuple[int, int], other_px: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) have the same ratio of sides, but for 2 %."""
    ratio = (size_px[0] * other_px[1]) / (size_px[1] * other_px[0])
    return abs(ratio - 1) <= SHAPE_TOLERANCE


def _rounded_down(side_px: float) -> int:
    return max(int(side_px) // STEP_PX * STEP_PX, STEP_PX)


def crop_box(
    width_px: int, height_px: int, bucket_px: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The centred part (left, top, right, bottom) of a picture that has its bucket's shape.

    In pixels of the picture, not rounded: resampling takes the box as it is, so cropping and
    resizing are one step. One axis is always whole.
    """
    bucket_width, bucket_height = bucket_px
    if bucket_width * height_px >= bucket_height * width_px:
        kept = width_px * bucket_height / bucket_width
        return 0.0, (height_px - kept) / 2, float(width_px), (height_px + kept) / 2
    kept = height_px * bucket_width / bucket_height
    return (width_px - kept) / 2, 0.0, (width_px + kept) / 2, float(height_px)


def cropped_share(width_px: int, height_px: int, bucket_px: tuple[int, int]) -> float:
    """The share of a picture's area that lies outside its crop_box, 0 to 1."""
    left, top, right, bottom = crop_box(width_px, height_px, bucket_px)
    return 1.0 - (right - left) * (bottom - top) / (width_px * height_px)


def overhang_px(width_px: int, height_px: int, bucket_px: tuple[int, int]) -> float:
    """By how much a picture that is resized to just cover its bucket sticks out of it."""
    scale = max(bucket_px[0] / width_px, bucket_px[1] / height_px)
    return max(width_px * scale - bucket_px[0], height_px * scale - bucket_px[1])
