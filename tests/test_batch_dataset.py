"""Datasets from tensors, and what a person sees of a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from tests.dataset_files import batch, dataset_of, half_white, save
from trainers.data.listing import list_folder
from trainers.data.summary import contact_sheet, description, summary, thumbnail
from trainers.errors import DatasetError
from trainers.settings.dataset import DatasetConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "dog"
    path.mkdir()
    return path


# Batches


def test_batch_takes_the_prompt() -> None:
    dataset = batch()
    assert [picture.name for picture in dataset.pictures] == ["image 1", "image 2"]
    assert [picture.caption for picture in dataset.pictures] == ["a photo of sks"] * 2
    assert (len(dataset), dataset.name) == (2, "batch")
    assert dataset.caption_source == "all 2 from the prompt"


def test_batch_picture_of_its_bucket_is_untouched() -> None:
    images = torch.rand(1, 128, 192, 3)
    assert torch.equal(batch(images=list(images)).pixels(0), images[0])


def test_batch_captions_win_over_the_prompt() -> None:
    assert [p.caption for p in batch(captions=[" a\n  dog "]).pictures] == ["a\ndog"] * 2
    dataset = batch(captions=["a dog", ""])
    assert [picture.caption for picture in dataset.pictures] == ["a dog", "a photo of sks"]
    assert dataset.caption_source == "1 of 2 from the captions input, 1 from the prompt"


@pytest.mark.parametrize("what", ["captions", "masks"])
def test_batch_another_count_is_refused(what: str) -> None:
    three = ["x"] * 3 if what == "captions" else [torch.ones(128, 192)] * 3
    with pytest.raises(DatasetError, match=f"'batch': 3 {what} for 2 images"):
        batch(**{what: three})


def test_batch_mask_is_kept_and_black_one_refused() -> None:
    mask = torch.zeros(128, 192)
    mask[:, :96] = 0.5
    found = batch(masks=[mask]).mask(1)
    assert found is not None
    assert torch.equal(found, mask)
    with pytest.raises(DatasetError, match="black all over: image 2"):
        batch(masks=[mask, torch.zeros(64, 64)])


@pytest.mark.parametrize(("channels", "expected"), [(1, 0.5), (3, 0.5), (4, 0.75)])
def test_batch_channels(channels: int, expected: float) -> None:
    pixels = batch(images=[torch.full((128, 192, channels), 0.5)]).pixels(0)
    assert pixels.shape == (128, 192, 3)
    assert pixels.min() == pixels.max() == expected


def test_batch_values_are_clipped() -> None:
    image = torch.full((128, 192, 3), 2.0)
    image[:64] = -1.0
    assert batch(images=[image]).pixels(0).unique().tolist() == [0.0, 1.0]


def test_batch_unusable_images_are_listed() -> None:
    images = [torch.rand(128, 192, 2), torch.full((128, 192, 3), float("nan")), torch.rand(9, 9, 3)]
    with pytest.raises(DatasetError, match=r"2 of 3 .* image 1 \(shape .*, image 2 \(not finite\)"):
        batch(images=images)
    with pytest.raises(DatasetError, match=r"1 of 1 .* image 1 \(9x9, a side under 64 pixels\)"):
        batch(images=images[2:])
    with pytest.raises(DatasetError, match="there are no images"):
        batch(images=[])


def test_batch_of_inference_tensors() -> None:
    with torch.inference_mode():
        images = [torch.rand(130, 192, 3)]
    assert not batch(images=images).pixels(0).is_inference()


def test_batch_fingerprint_is_of_content() -> None:
    mask = torch.ones(128, 192)
    prints = [
        batch().fingerprint(),
        batch(count=1).fingerprint(),
        batch(masks=[mask]).fingerprint(),
    ]
    assert batch().fingerprint() == prints[0]
    assert len(set(prints)) == 3


# Summary


def test_summary_of_a_folder(folder: Path) -> None:
    save(folder / "a.png", (256, 128))
    save(folder / "3_dog" / "b.png", colour=(255, 0, 0, 128))
    (folder / "a.txt").write_text("one two three")
    dataset = dataset_of(folder, masks="auto", prompt="a dog")
    counts = "dog: 2 pictures at 128 px, 4 with repeats (3_dog); sizes: 128x64 (1), 128x128 (1)"
    captions = "captions: 1 of 2 from .txt files, 1 from the prompt; masks: 1 of 2"
    assert summary(dataset) == f"{counts}\n{captions}"
    noted = description(dataset, ["look"]).split("\n")
    assert noted == [counts, captions, "note: look", "1 x 'one two three'", "1 x 'a dog'"]


COUNTS = "batch: 50 pictures at 192 px; sizes: 192x192 (50)"
FOUND = "captions: all 50 from the captions input"


@pytest.mark.parametrize(
    ("num_notices", "lines"),
    [
        (0, [COUNTS, FOUND]),
        (2, ["note: 0", "note: 1", COUNTS, FOUND]),
        (3, ["note: 0", "note: 1", "note: 2", f"{COUNTS}; {FOUND}"]),
        (4, ["note: 0", "note: 1", f"{COUNTS}; {FOUND}", "and 2 more notes, in ComfyUI's log"]),
        (9, ["note: 0", "note: 1", f"{COUNTS}; {FOUND}", "and 7 more notes, in ComfyUI's log"]),
    ],
)
def test_summary_has_four_lines_with_notes_first(num_notices: int, lines: list[str]) -> None:
    images = [torch.zeros(192, 192, 3)] * 50
    dataset = batch(images=images, captions=[f"dog {number}" for number in range(50)])
    assert summary(dataset, [str(number) for number in range(num_notices)]).split("\n") == lines


def test_summary_keeps_a_line_end_in_a_name_out(tmp_path: Path) -> None:
    save(tmp_path / "a\nb" / "c\nd.png", (64, 64))
    assert len(summary(dataset_of(tmp_path / "a\nb")).split("\n")) == 3


def test_thumbnail_is_cut_turned_and_dimmed_as_trained(folder: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    save(folder / "a.jpg", (512, 256), exif=exif)
    half_white((256, 512)).save(folder / "a.mask.png")
    (file,) = list_folder(folder).pictures
    whole = thumbnail(file, DatasetConfig(resolution=512))
    assert whole.size == (104, 208)
    cut = np.asarray(thumbnail(file, DatasetConfig(resolution=512, buckets=False, masks="file")))
    assert cut.shape == (208, 208, 3)
    assert cut[100, [50, 150], 0] == pytest.approx([254, 51], abs=2)


def test_contact_sheet_dims_what_is_not_trained() -> None:
    mask = torch.ones(192, 192)
    mask[:, 96:] = 0
    dataset = batch(images=[torch.ones(192, 192, 3)], masks=[mask])
    sheet = np.asarray(contact_sheet(dataset).convert("L"))
    assert sheet.shape == (304, 236)
    assert (sheet[60, 60], sheet[60, 160]) == (255, 51)


def test_contact_sheet_says_what_it_leaves_out() -> None:
    small, cut = contact_sheet(batch(5)), contact_sheet(batch(5), max_pictures=3)
    assert small.size == (14 + 3 * 222, 14 + 2 * 290)
    assert cut.size == (14 + 2 * 222, 14 + 2 * 290 + 31)
