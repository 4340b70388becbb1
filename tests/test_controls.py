"""Control images of edit models: found, cut, refused, and what is unchanged without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from tests import tiny
from tests.dataset_files import RED, WHITE, batch, centre, dataset_of, half_white, refusal, save
from trainers.data.buckets import control_size
from trainers.data.dataset import Dataset, folder_dataset
from trainers.data.listing import folder_state, list_folder, picture_folders
from trainers.data.summary import contact_sheet, summary
from trainers.errors import DatasetError
from trainers.runs.folder import run_facts
from trainers.settings.dataset import DatasetConfig

BLUE = (0, 0, 255)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "dog"
    path.mkdir()
    return path


def pairs(folder: Path, *names: str, ending: str = ".control.png") -> Path:
    for name in names:
        save(folder / f"{name}.png")
        save(folder / f"{name}{ending}", colour=BLUE)
    return folder


def with_folders(folder: Path, *controls: Path) -> Dataset:
    return folder_dataset(folder, DatasetConfig(resolution=128), control_folders=controls)


def names_of(dataset: Dataset) -> list[list[str]]:
    return [[control.name for control in picture.controls] for picture in dataset.pictures]


# Which files


def test_control_images_beside_their_pictures(folder: Path) -> None:
    pairs(folder, "a", "b")
    save(folder / "2_dog" / "C.png")
    save(folder / "2_dog" / "c.CONTROL.webp", colour=WHITE)
    dataset = dataset_of(folder)
    assert names_of(dataset) == [
        ["a.control.png"], ["b.control.png"], ["2_dog/c.CONTROL.webp"]
    ]  # fmt: skip
    assert dataset.num_controls == 1
    assert centre(dataset.pixels(0)) == list(RED)
    assert [centre(dataset.controls(index)[0]) for index in (0, 2)] == [list(BLUE), list(WHITE)]
    assert dataset.notices == ()


def test_several_control_images_come_by_number(folder: Path) -> None:
    pairs(folder, "a")
    for number in (10, 2):
        save(folder / f"a.control{number}.jpg")
    assert names_of(dataset_of(folder)) == [["a.control.png", "a.control2.jpg", "a.control10.jpg"]]


def test_control_folders_have_the_pictures_names(folder: Path, tmp_path: Path) -> None:
    for name in ("a.png", "2_dog/b.png"):
        save(folder / name)
    edges, depths = tmp_path / "edges", folder / "depths"
    for name in ("a.jpg", "2_dog/B.png", "c.png"):
        save(edges / name)
        save(depths / name)
    dataset = with_folders(folder, edges, depths)
    assert names_of(dataset) == [
        ["../edges/a.jpg", "depths/a.jpg"], ["../edges/2_dog/B.png", "depths/2_dog/B.png"]
    ]  # fmt: skip
    assert dataset.notices == ("control images without a picture: edges/c.png, depths/c.png",)


def test_control_images_are_no_pictures(folder: Path) -> None:
    save(folder / "a" / "x.control.png")
    save(folder / "a" / "x.control.mask.png")
    assert picture_folders(folder) == []
    listing = list_folder(folder / "a")
    assert listing.pictures == ()
    assert (listing.strays, listing.stray_controls) == (("x.control.mask.png",), ("x.control.png",))
    pairs(folder / "a", "b")
    assert dataset_of(folder / "a").notices == (
        "masks without a picture: x.control.mask.png",
        "control images without a picture: x.control.png",
    )


def test_folder_state_sees_control_images(folder: Path) -> None:
    save(folder / "a.png")
    before = folder_state(folder)
    save(folder / "a.control.png")
    assert folder_state(folder) != before


# Refusals


def test_missing_control_images_are_listed(folder: Path) -> None:
    pairs(folder, "a", "b")
    save(folder / "c.png")
    save(folder / "d.png")
    assert refusal(folder) == (
        "Dataset 'dog': 2 of 4 images have no control image: c.png, d.png.\nEach picture needs the "
        "same control images: name.control.png (or name.control1.png, name.control2.png ...) "
        "beside name.png, or name.png in the control folder."
    )
    save(folder / "a.control2.png")
    assert "3 of 4 images have no control image: b.png (no. 2), c.png (no. 1, 2), d" in refusal(
        folder
    )


def test_missing_in_a_control_folder(folder: Path, tmp_path: Path) -> None:
    save(folder / "a.png")
    save(folder / "b.png")
    save(tmp_path / "edges" / "a.png")
    with pytest.raises(DatasetError, match="1 of 2 images have no control image: b.png"):
        with_folders(folder, tmp_path / "edges")
    save(tmp_path / "depths" / "c.png")
    with pytest.raises(DatasetError, match=r"no picture has a control image in depths\.\nEach"):
        with_folders(folder, tmp_path / "edges", tmp_path / "depths")


def test_doubled_control_images_are_listed(folder: Path, tmp_path: Path) -> None:
    pairs(folder, "a", "b")
    save(folder / "a.control.jpg")
    save(folder / "b.control1.png")
    assert refusal(folder) == (
        "Dataset 'dog': 2 of 2 images have one control image twice: a.png (a.control.jpg, "
        "a.control.png), b.png (b.control1.png, b.control.png).\nKeep one file for each number."
    )
    save(tmp_path / "x" / "a.png")
    save(tmp_path / "y" / "a.png")
    save(tmp_path / "y" / "a.webp")
    with pytest.raises(DatasetError, match=r"twice: a.png \(a.png, a.webp\)"):
        with_folders(tmp_path / "x", tmp_path / "y")


def test_control_images_in_two_places(folder: Path) -> None:
    pairs(folder, "a")
    save(folder / "control" / "a.png")
    with pytest.raises(DatasetError, match="beside them, while a control folder is set too: a.png"):
        with_folders(folder, folder / "control")
    (folder / "a.control.png").unlink()
    assert names_of(with_folders(folder, folder / "control")) == [["control/a.png"]]
    with pytest.raises(DatasetError, match="control folder is the folder itself"):
        with_folders(folder, folder)


def test_unusable_control_images_are_listed(folder: Path) -> None:
    pairs(folder, "a", "b")
    save(folder / "a.control.png", (32, 300))
    assert "1 of 2 control images have a side under 64 pixels: a.control.png (32x300)" in refusal(
        folder
    )
    (folder / "b.control.png").write_bytes(b"no picture")
    assert "1 of 4 images cannot be read: b.control.png" in refusal(folder)


def test_control_image_gone_since(folder: Path) -> None:
    dataset = dataset_of(pairs(folder, "a"))
    (folder / "a.control.png").unlink()
    with pytest.raises(DatasetError, match="a.png or its mask or a control image could be read"):
        dataset.controls(0)


# Sizes and pixels


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((400, 200), (256, 128)),  # the picture's shape: cut as the picture
        ((1000, 505), (256, 128)),
        ((100, 100), (176, 176)),  # its own, at about the same area
        ((300, 100), (320, 112)),
        ((64, 6400), (16, 1808)),
    ],
)
def test_control_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert control_size(size, (600, 300), (256, 128)) == expected


def test_same_shape_is_cut_as_the_picture(folder: Path) -> None:
    # 300 x 200 trains as 128 x 64: the middle band, from 25 to 175.
    picture = Image.new("RGB", (300, 200), RED)
    picture.paste(BLUE, (0, 25, 300, 175))
    picture.save(folder / "a.png")
    picture.resize((150, 100), Image.Resampling.NEAREST).save(folder / "a.control.png")
    dataset = dataset_of(folder)
    (control,) = dataset.controls(0)
    assert control.shape == dataset.pixels(0).shape == (64, 128, 3)
    assert (control - dataset.pixels(0)).abs().mean() < 0.02


def test_control_images_are_read_as_pictures_are(folder: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    save(folder / "a.png", (128, 256))
    save(folder / "a.control1.jpg", (256, 128), exif=exif)
    save(folder / "a.control2.png", (128, 256), (255, 0, 0, 0))
    Image.fromarray(np.full((256, 128), 65535, np.uint16)).save(folder / "a.control3.png")
    dataset = dataset_of(folder)
    assert [c.shape for c in dataset.controls(0)] == [dataset.pixels(0).shape] * 3
    assert [centre(c) for c in dataset.controls(0)[1:]] == [[255] * 3] * 2
    assert dataset.notices == ("transparent parts become white: a.control2.png",)


def test_masks_leave_control_images_whole(folder: Path) -> None:
    pairs(folder, "a")
    half_white().save(folder / "a.mask.png")
    dataset = dataset_of(folder, masks="file")
    assert dataset.mask(0) is not None
    assert dataset.controls(0)[0].unique().tolist() == [0.0, 1.0]
    assert centre(dataset.controls(0)[0]) == list(BLUE)


# Batches


def images(count: int = 2, size: tuple[int, int] = (128, 192), seed: int = 1) -> list[torch.Tensor]:
    return list(torch.rand(count, *size, 3, generator=torch.Generator().manual_seed(seed)))


def test_batch_with_control_images() -> None:
    first, second = images(), images(2, (64, 64), 2)
    dataset = batch(controls=[first, second])
    assert dataset.num_controls == 2
    assert torch.equal(dataset.controls(1)[0], first[1])
    assert dataset.controls(1)[1].shape == (160, 160, 3)
    assert names_of(dataset)[0] == ["control image 1", "control image 2"]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([images(1)], "1 control images for 2 images.\nAllowed: one for each image"),
        ([images(), images(3)], "3 control images no. 2 for 2 images"),
        ([images(2, (32, 128))], r"2 of 2 control images have a side under 64 .* \(128x32\)"),
        ([[torch.ones(128, 128)] * 2], "2 of 2 control images cannot be used: image 1"),
    ],
)
def test_batch_control_images_refused(given: Any, match: str) -> None:
    with pytest.raises(DatasetError, match=match):
        batch(controls=given)


# What is told and kept of them


def test_fingerprint_covers_control_images_and_is_as_before_without(folder: Path) -> None:
    assert batch().fingerprint()[:8] == "fb366273"
    assert batch(masks=[torch.ones(128, 192)]).fingerprint()[:8] == "a4945dcf"
    prints = [batch(controls=given).fingerprint() for given in ((), [images()], [images(seed=3)])]
    pairs(folder, "a")
    prints += [dataset_of(folder).fingerprint(), dataset_of(folder, resolution=64).fingerprint()]
    save(folder / "a.control.png", colour=WHITE)
    prints.append(dataset_of(folder).fingerprint())
    (folder / "a.control.png").unlink()
    prints.append(dataset_of(folder).fingerprint())
    assert len(set(prints)) == len(prints)


def test_summary_and_contact_sheet_show_control_images(folder: Path) -> None:
    dataset = dataset_of(pairs(folder, "a", "b"))
    assert summary(dataset).startswith(
        "dog: 2 pictures at 128 px, each with 1 control image; sizes: 128x128 (2)\n"
    )
    sheet = np.asarray(contact_sheet(dataset))
    corner = 14 + (208 + 128) // 2 - 1  # of the first picture: right, and below
    assert tuple(sheet[corner, corner]) == BLUE
    assert tuple(sheet[corner - 80, corner - 80]) == RED
    two = batch(1, controls=[images(1), images(1)])
    assert "each with 2 control images;" in summary(two)


def test_run_json_lists_control_images_where_there_are_some() -> None:
    facts = run_facts(tiny.run_config(), "flux", {}, batch(), batch(controls=[images()]))
    assert all("controls" not in picture for picture in facts["dataset"]["pictures"])
    listed = [picture["controls"] for picture in facts["class_dataset"]["pictures"]]
    assert [(one["name"], one["size_px"]) for (one,) in listed] == [
        ("control image 1", (192, 128))
    ] * 2
    assert len({one["hash"] for (one,) in listed}) == 2
    json.dumps(facts)
