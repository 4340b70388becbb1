"""Class images' folder without a host: names, what is missing, whole files, the dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainers.errors import SettingsError
from trainers.runs.pictures.class_images import ClassFolder
from trainers.settings.class_images import ClassImagesConfig

KEY = {"model": "a", "prompt": "a photo of a dog"}


def folder_of(parent: Path, **changed: Any) -> ClassFolder:
    key = KEY | changed
    return ClassFolder.open(parent, key["prompt"], key)


def fill(folder: ClassFolder, seeds: range) -> None:
    for seed in seeds:
        folder.write(seed, Image.new("RGB", (64, 64), (seed, 90, 160)))


def test_folder_is_named_by_prompt_and_key(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    slug, digest = folder.path.name.rsplit("-", 1)
    assert slug == "a-photo-of-a-dog"
    assert len(digest) == 8
    assert json.loads((folder.path / "key.json").read_text()) == KEY
    assert folder_of(tmp_path) == folder
    others = {folder_of(tmp_path, model="b"), folder_of(tmp_path, prompt="a photo of a cat")}
    assert len(others | {folder}) == 3


@pytest.mark.parametrize("prompt", ["", "写真", "x" * 300, "../../etc", 'a:b*c?"d"'])
def test_folder_name_is_a_fine_file_name(tmp_path: Path, prompt: str) -> None:
    folder = folder_of(tmp_path, prompt=prompt)
    assert folder.path.parent == tmp_path
    assert len(folder.path.name) < 60
    assert folder.path.name.replace("-", "").isalnum()


def test_only_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    fill(folder, range(5, 12))
    assert folder.missing(range(5, 25)) == list(range(12, 25))
    assert folder.missing(range(3, 8)) == [3, 4]


def test_dataset_is_exactly_the_pictures_that_were_asked_for(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    fill(folder, range(20))
    (folder.path / "other.png").write_bytes(b"broken")
    config = ClassImagesConfig(prompt="a photo of a dog", seed=8, count=4, width=64, height=64)
    dataset = folder.dataset(config)
    assert [p.name for p in dataset.pictures] == [f"{seed:08}.png" for seed in range(8, 12)]
    assert {p.caption for p in dataset.pictures} == {"a photo of a dog"}
    assert dataset.pixels(0)[0, 0, 0].item() == pytest.approx(8 / 255)
    assert dataset.resolution_px == 64


@pytest.mark.parametrize(
    ("width", "height", "resolution"), [(512, 512, 512), (512, 768, 640), (64, 128, 128)]
)
def test_resolution_leaves_the_pictures_their_size(
    tmp_path: Path, width: int, height: int, resolution: int
) -> None:
    config = ClassImagesConfig(width=width, height=height, count=1)
    assert config.resolution_px == resolution
    folder = folder_of(tmp_path)
    folder.write(0, Image.new("RGB", (width, height)))
    assert folder.dataset(config).pictures[0].bucket_px == (width, height)


def test_count_of_zero_is_refused() -> None:
    with pytest.raises(SettingsError, match="count is 0; allowed: 1 to"):
        ClassImagesConfig(count=0)
