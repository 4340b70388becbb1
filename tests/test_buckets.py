"""The rule of bucket_of's docstring, as properties over many sizes."""

from __future__ import annotations

import random

import pytest

from trainers.data.buckets import bucket_of, crop_box, cropped_share, overhang_px, size_problem
from trainers.settings.dataset import DatasetConfig

RESOLUTIONS = (256, 512, 768, 1024)


def sizes(smallest: int, count: int = 400) -> list[tuple[int, int]]:
    """Random widths and heights, at most 4 to 1, log-uniform from `smallest` to 4000."""
    draw = random.Random(7)
    found: list[tuple[int, int]] = []
    while len(found) < count:
        width, height = (round(smallest * (4000 / smallest) ** draw.random()) for _ in range(2))
        if max(width, height) <= 4 * min(width, height):
            found.append((width, height))
    return found


@pytest.mark.parametrize("upscale", [False, True])
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_bucket_any_size(resolution: int, upscale: bool) -> None:
    config = DatasetConfig(resolution=resolution, upscale=upscale)
    for width, height in sizes(64):
        bucket = bucket_of(width, height, config)
        assert bucket[0] % 64 == 0
        assert bucket[1] % 64 == 0
        assert 64 * 64 <= bucket[0] * bucket[1] <= resolution**2
        assert overhang_px(width, height, bucket) < 64
        assert upscale or (bucket[0] <= width and bucket[1] <= height)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_bucket_crops_less_than_rounding_down(resolution: int) -> None:
    config = DatasetConfig(resolution=resolution)
    for width, height in sizes(resolution):
        scale = resolution / (width * height) ** 0.5
        down = (int(width * scale) // 64 * 64, int(height * scale) // 64 * 64)
        bucket = bucket_of(width, height, config)
        assert cropped_share(width, height, bucket) <= cropped_share(width, height, down)


def test_bucket_crop_is_small_at_512() -> None:
    config = DatasetConfig(resolution=512)
    shares = [cropped_share(*size, bucket_of(*size, config)) for size in sizes(512)]
    assert max(shares) < 0.18
    assert sum(shares) / len(shares) < 0.06


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((512, 512), (512, 512)),
        ((4000, 4000), (512, 512)),
        ((3000, 2000), (576, 384)),
        ((2000, 3000), (384, 576)),
        ((4000, 3000), (576, 448)),
        ((1920, 1080), (640, 384)),
        ((511, 511), (448, 448)),
        ((100, 90), (64, 64)),
    ],
)
def test_bucket_known_sizes(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert bucket_of(*size, DatasetConfig(resolution=512)) == bucket


def test_bucket_upscale_fills_resolution() -> None:
    config = DatasetConfig(resolution=512, upscale=True)
    assert bucket_of(100, 100, config) == (512, 512)
    assert bucket_of(150, 100, config) == (576, 384)


def test_bucket_turned_picture_gives_turned_bucket() -> None:
    config = DatasetConfig(resolution=768)
    for width, height in sizes(64):
        assert bucket_of(height, width, config) == bucket_of(width, height, config)[::-1]


@pytest.mark.parametrize(("resolution", "bucket"), [(64, (64, 64)), (128, (256, 64))])
def test_bucket_low_resolution_keeps_its_area(resolution: int, bucket: tuple[int, int]) -> None:
    assert bucket_of(400, 100, DatasetConfig(resolution=resolution)) == bucket


@pytest.mark.parametrize(
    ("size", "upscale", "side"),
    [((900, 600), False, 512), ((300, 600), False, 256), ((300, 600), True, 512)],
)
def test_bucket_off_is_a_square(size: tuple[int, int], upscale: bool, side: int) -> None:
    config = DatasetConfig(resolution=512, buckets=False, upscale=upscale)
    assert bucket_of(*size, config) == (side, side)


def test_crop_box_is_centred_and_keeps_one_axis() -> None:
    assert crop_box(300, 100, (64, 64)) == (100.0, 0.0, 200.0, 100.0)
    assert crop_box(100, 300, (64, 64)) == (0.0, 100.0, 100.0, 200.0)
    for width, height in sizes(64):
        left, top, right, bottom = crop_box(width, height, (640, 384))
        assert min(left, top) == 0.0
        assert left + right == pytest.approx(width)
        assert top + bottom == pytest.approx(height)
        assert (right - left) / (bottom - top) == pytest.approx(640 / 384)


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        ((64, 64), None),
        ((400, 100), None),
        ((63, 64), "63x64, a side under 64 pixels"),
        ((1, 10000), "1x10000, a side under 64 pixels"),
        ((401, 100), "401x100, sides 4.0 to 1"),
        ((100, 10000), "100x10000, sides 100.0 to 1"),
    ],
)
def test_size_problem(size: tuple[int, int], problem: str | None) -> None:
    assert size_problem(*size, DatasetConfig()) == problem


def test_size_problem_without_buckets_allows_any_ratio() -> None:
    config = DatasetConfig(buckets=False, upscale=True)
    assert size_problem(100, 10000, config) is None
    assert size_problem(1, 10000, config) == "1x10000, a side under 64 pixels"
