"""Datasets from folders: which files, in what order, and every refusal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from tests.dataset_files import WHITE, dataset_of, half_white, noise, refusal, save
from trainers.data.dataset import folder_dataset
from trainers.data.listing import folder_state, has_pictures, picture_folders
from trainers.errors import DatasetError
from trainers.settings.dataset import DatasetConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "dog"
    path.mkdir()
    return path


# Which files


def test_folder_in_natural_order(folder: Path) -> None:
    for name in ("dog 10.png", "Dog 2.png", "dog 1.webp", "a.jpeg", "b.BMP", "c.gif", "d.tiff"):
        save(folder / name)
    for name in (".hidden.png", "__MACOSX/x.png", "notes.md"):
        save(folder / name, format="PNG")
    expected = ["a.jpeg", "b.BMP", "c.gif", "d.tiff", "dog 1.webp", "Dog 2.png", "dog 10.png"]
    dataset = dataset_of(folder)
    assert [picture.name for picture in dataset.pictures] == expected
    assert dataset.notices == ()


def test_folder_repeats_kohya_sub_folders(folder: Path) -> None:
    save(folder / "a.png")
    save(folder / "10_sks dog" / "b.png")
    save(folder / "2_dog" / "c.png")
    save(folder / "other" / "d.png")
    save(folder / "0_none" / "e.png")
    dataset = dataset_of(folder)
    found = [(picture.name, picture.repeats) for picture in dataset.pictures]
    assert found == [("a.png", 1), ("2_dog/c.png", 2), ("10_sks dog/b.png", 10)]
    assert dataset.notices == ("not read: sub-folders 0_none, other (only names like 10_dog are)",)


def test_folder_notices(folder: Path) -> None:
    save(folder / "2024_trip" / "a.png", (64, 64))
    save(folder / "b.png", colour=(255, 0, 0, 128))
    save(folder / "gone.mask.png")
    save(folder / "b-masklabel.png")
    (folder / "IMG.HEIC").write_bytes(b"")
    assert dataset_of(folder, prompt="").notices == (
        "not read: IMG.HEIC (save them as PNG or JPEG)",
        "masks without a picture: gone.mask.png",
        "masks is 'none', so mask files of b.png are not used",
        "transparent parts become white: b.png",
        "smaller than 128x128, trained at their own size: 2024_trip/a.png",
        "2024_trip: each picture counts 2024 times",
        "empty captions: b.png",
    )


def test_folder_missing(folder: Path) -> None:
    assert "the folder" in refusal(folder / "gone")
    assert "cannot be read (No such file or directory)" in refusal(folder / "gone")


def test_folder_empty(folder: Path) -> None:
    (folder / "photos").mkdir()
    (folder / "a.heic").write_bytes(b"")
    assert f"no pictures in {folder}, only a.heic, photos/.\nPut pictures" in refusal(folder)
    assert not has_pictures(folder)


def test_folders_with_pictures_are_found_by_name(folder: Path) -> None:
    names = ["a/1.PNG", "b/10_dog/2.jpg", "c/d/3.webp", "e/f.txt", ".g/4.png", "__h/5.png",
             "i/.6.png", "7.png", "3_j/8.png", "k/1.mask.png"]  # fmt: skip
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    found = {path.relative_to(folder).as_posix() for path in picture_folders(folder)}
    assert found == {"a", "b", "b/10_dog", "c/d", "3_j"}
    assert all(has_pictures(folder / name) for name in found)
    assert not has_pictures(folder / "k")


def test_folder_state_changes_with_any_file(folder: Path) -> None:
    states = [folder_state(folder)]
    save(folder / "a.png")
    states.append(folder_state(folder))
    (folder / "a.txt").write_text("a dog")
    states.append(folder_state(folder))
    os.utime(folder / "a.txt", ns=(1, 1))
    states.append(folder_state(folder))
    save(folder / "10_dog" / "a.png")
    states.append(folder_state(folder))
    assert len(set(states)) == 5
    save(folder / "other" / "a.png")
    assert folder_state(folder) == states[-1]


# Pictures that cannot be used


def test_unreadable_pictures_are_listed_at_once(folder: Path) -> None:
    for number in range(3):
        save(folder / f"good {number}.png")
    (folder / "a.png").write_bytes(b"")
    (folder / "b.webp").write_bytes(b"no picture")
    noise(200, 200).save(folder / "c.jpg")
    (folder / "c.jpg").write_bytes((folder / "c.jpg").read_bytes()[:9000])
    noise(200, 200).save(folder / "d.png")
    (folder / "d.png").write_bytes((folder / "d.png").read_bytes()[:9000])
    assert refusal(folder) == (
        "Dataset 'dog': 4 of 7 images cannot be read: a.png, b.webp, c.jpg, d.png.\n"
        "Remove them or save them again as PNG."
    )


def test_cut_off_picture_is_refused_in_a_tolerant_host(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    noise(200, 200).save(folder / "a.jpg")
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:9000])
    assert "1 of 1 images cannot be read: a.jpg" in refusal(folder)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_absurd_shapes_are_listed_with_what_is_allowed(folder: Path) -> None:
    save(folder / "good.png")
    save(folder / "line.png", (1, 10000))
    save(folder / "strip.png", (500, 100))
    assert refusal(folder) == (
        "Dataset 'dog': 2 of 3 images have a shape that cannot be trained: line.png (1x10000, a "
        "side under 64 pixels), strip.png (500x100, sides 5.0 to 1).\nAllowed: sides of 64 pixels "
        "and more, the longest at most 4 times the shortest. Crop or remove them."
    )


def test_too_many_pixels_are_refused_unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder / "a.png", (200, 100))
    monkeypatch.setattr("trainers.data.pictures.LARGEST_PX", 19_999)
    assert "1 of 1 images have more than 178 megapixels: a.png" in refusal(folder)
    monkeypatch.undo()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_999)
    assert "1 of 1 images have more than 178 megapixels: a.png" in refusal(folder)


def test_long_lists_are_cut(folder: Path) -> None:
    for number in range(25):
        (folder / f"{number}.png").write_bytes(b"")
    assert "25 of 25 images cannot be read: 0.png, 1.png" in refusal(folder)
    assert "19.png and 5 more." in refusal(folder)


def test_picture_gone_since(folder: Path) -> None:
    dataset = dataset_of(save(folder / "a.png").parent)
    (folder / "a.png").unlink()
    for ask in (dataset.pixels, lambda index: dataset.fingerprint()):
        with pytest.raises(DatasetError, match="a.png or its mask could be read before"):
            ask(0)


def test_on_picture_is_told_and_may_stop(folder: Path) -> None:
    for number in range(3):
        save(folder / f"{number}.png")
    calls: list[tuple[int, int]] = []
    folder_dataset(folder, DatasetConfig(), lambda *progress: calls.append(progress))
    assert calls == [(1, 3), (2, 3), (3, 3)]


# Fingerprint


def test_fingerprint_ignores_names_and_places(folder: Path, tmp_path: Path) -> None:
    save(folder / "a.png")
    save(tmp_path / "cat" / "b.png")
    assert dataset_of(folder).fingerprint() == dataset_of(tmp_path / "cat").fingerprint()


def test_fingerprint_changes_with_what_is_trained(folder: Path) -> None:
    save(folder / "a.png", (192, 128))
    half_white((192, 128)).save(folder / "a.mask.png")
    prints = [
        dataset_of(folder, **settings).fingerprint()
        for settings in ({}, {"prompt": "a cat"}, {"resolution": 64}, {"masks": "file"})
    ]
    save(folder / "a.png", (192, 128), WHITE)
    prints.append(dataset_of(folder).fingerprint())
    (folder / "a.png").rename(save(folder / "2_dog" / "a.png"))
    prints.append(dataset_of(folder).fingerprint())
    assert len(set(prints)) == 6
