"""Pixels and masks as they are trained, from real files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from tests.dataset_files import RED, WHITE, centre, dataset_of, half_white, noise, refusal, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "dog"
    path.mkdir()
    return path


# Pixels


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", RED, [255, 0, 0]),
        ("RGBA", (255, 0, 0, 0), [255, 255, 255]),
        ("RGBA", (0, 0, 0, 51), [204, 204, 204]),
        ("LA", (0, 51), [204, 204, 204]),
        ("L", 51, [51, 51, 51]),
        ("1", 1, [255, 255, 255]),
        ("I;16", 51 * 257, [51, 51, 51]),
        ("CMYK", (0, 255, 255, 0), [255, 0, 0]),
        ("F", 0.2, [51, 51, 51]),
        ("F", 51.0, [51, 51, 51]),
    ],
)
def test_any_mode_to_rgb(folder: Path, mode: str, colour: Any, expected: list[int]) -> None:
    suffix = ".tif" if mode in ("CMYK", "F") else ".png"
    Image.new(mode, (128, 128), colour).save(folder / f"a{suffix}")
    assert centre(dataset_of(folder).pixels(0)) == expected


def test_palette_with_transparency(folder: Path) -> None:
    image = Image.new("P", (128, 128), 1)
    image.putpalette([0, 0, 0, *RED])
    image.save(folder / "a.png")
    image.save(folder / "b.png", transparency=1)
    dataset = dataset_of(folder)
    assert centre(dataset.pixels(0)) == [255, 0, 0]
    assert centre(dataset.pixels(1)) == [255, 255, 255]


def test_animation_gives_its_first_frame(folder: Path) -> None:
    frames = [Image.new("RGB", (128, 128), colour) for colour in (RED, WHITE)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    assert centre(dataset_of(folder).pixels(0)) == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(folder: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise(192, 64).save(folder / "a.png", exif=exif)
    with Image.open(folder / "a.png") as image:
        upright = ImageOps.exif_transpose(image)
    (picture,) = dataset_of(folder).pictures
    assert (picture.width_px, picture.height_px) == picture.bucket_px == upright.size
    assert torch.equal(
        dataset_of(folder).pixels(0), torch.from_numpy(np.asarray(upright, np.float32) / 255)
    )


def test_picture_of_its_bucket_is_untouched(folder: Path) -> None:
    image = noise(192, 64)
    image.save(folder / "a.png")
    pixels = dataset_of(folder).pixels(0)
    assert pixels.shape == (64, 192, 3)
    assert pixels.dtype == torch.float32
    assert torch.equal((pixels * 255).round().byte(), torch.from_numpy(np.array(image)))


def test_crop_is_centred(folder: Path) -> None:
    image = Image.new("RGB", (128, 128))
    ImageDraw.Draw(image).rectangle((32, 0, 95, 127), fill=RED)
    canvas = Image.new("RGB", (160, 128), WHITE)
    canvas.paste(image, (16, 0))
    canvas.save(folder / "a.png")
    pixels = dataset_of(folder, buckets=False).pixels(0)
    assert torch.equal((pixels * 255).round().byte(), torch.from_numpy(np.array(image)))


def test_shrinking_antialiases(folder: Path) -> None:
    stripes = np.zeros((512, 512), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(folder / "a.png")
    pixels = dataset_of(folder).pixels(0)
    assert pixels.std() < 0.02
    assert pixels.mean() == pytest.approx(0.5, abs=0.01)


def test_upscale_fills_the_resolution(folder: Path) -> None:
    save(folder / "a.png", (64, 64))
    assert dataset_of(folder).pixels(0).shape == (64, 64, 3)
    assert dataset_of(folder, upscale=True).pixels(0).shape == (128, 128, 3)


# Masks


@pytest.mark.parametrize("name", ["a.mask.png", "a-masklabel.png", "A.MASK.PNG"])
@pytest.mark.parametrize("source", ["file", "auto"])
def test_mask_file(folder: Path, name: str, source: str) -> None:
    save(folder / "a.png")
    half_white().save(folder / name)
    dataset = dataset_of(folder, masks=source)
    assert [picture.has_mask for picture in dataset.pictures] == [True]
    mask = dataset.mask(0)
    assert mask is not None
    assert mask.shape == (128, 128)
    assert mask[:, :64].min() == 1.0
    assert mask[:, 64:].max() == 0.0
    assert dataset_of(folder).mask(0) is None


@pytest.mark.parametrize("source", ["alpha", "auto"])
def test_mask_from_alpha(folder: Path, source: str) -> None:
    image = Image.new("RGB", (128, 128), RED)
    image.putalpha(half_white())
    image.save(folder / "a.png")
    mask = dataset_of(folder, masks=source).mask(0)
    assert mask is not None
    assert mask.mean() == 0.5


def test_mask_auto_prefers_the_file_and_trains_others_whole(folder: Path) -> None:
    save(folder / "a.png", colour=(255, 0, 0, 128))
    save(folder / "a.mask.png", colour=(51, 51, 51))
    save(folder / "b.png", colour=(255, 0, 0, 255))
    dataset = dataset_of(folder, masks="auto")
    mask = dataset.mask(0)
    assert mask is not None
    assert mask.mean() == pytest.approx(0.2)
    assert dataset.mask(1) is None
    assert [picture.has_mask for picture in dataset.pictures] == [True, False]


def test_mask_is_cut_like_its_picture(folder: Path) -> None:
    image = half_white((300, 200))
    image.convert("RGB").save(folder / "a.png")
    image.resize((150, 100)).save(folder / "a.mask.png")
    dataset = dataset_of(folder, masks="file", resolution=128)
    mask = dataset.mask(0)
    assert mask is not None
    assert mask.shape == dataset.pixels(0).shape[:2]
    assert (mask - dataset.pixels(0)[..., 0]).abs().max() < 0.3  # one shrunk twice, at the edge
    assert mask.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("source", ["file", "alpha"])
def test_mask_missing_lists_all(folder: Path, source: str) -> None:
    save(folder / "a.png")
    save(folder / "b.png")
    wanted = "mask file" if source == "file" else "transparent part"
    assert f"2 of 2 images have no {wanted}: a.png, b.png." in refusal(folder, masks=source)


def test_mask_black_all_over(folder: Path) -> None:
    save(folder / "a.png")
    save(folder / "a.mask.png", colour=(0, 0, 0))
    message = refusal(folder, masks="file")
    assert "1 of 1 images have a mask that is black all over: a.png." in message


def test_mask_trained_part_cropped_away_is_black(folder: Path) -> None:
    save(folder / "a.png", (256, 128))
    mask = Image.new("L", (256, 128), 0)
    mask.paste(255, (0, 0, 16, 128))
    mask.save(folder / "a.mask.png")
    assert "black all over: a.png" in refusal(folder, masks="file", buckets=False)


def test_mask_of_another_shape(folder: Path) -> None:
    save(folder / "a.png", (128, 192))
    save(folder / "a.mask.png", (192, 128), WHITE)
    assert "another shape: a.png (128x192, mask 192x128)" in refusal(folder, masks="file")


def test_mask_unreadable(folder: Path) -> None:
    save(folder / "a.png")
    (folder / "a.mask.png").write_bytes(b"")
    assert "1 of 1 masks cannot be read: a.mask.png." in refusal(folder, masks="file")
