"""Control images of edit models: found, cut, refused, encoded, and what is unchanged without."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from tests import tiny
from tests.dataset_files import RED, WHITE, batch, centre, dataset_of, half_white, refusal, save
from trainers.contracts import REFERENCES, Parts
from trainers.data.buckets import control_size
from trainers.data.dataset import Dataset, batch_dataset, folder_dataset
from trainers.data.examples import Examples, encode_pictures
from trainers.data.listing import folder_state, list_folder, picture_folders
from trainers.data.summary import contact_sheet, summary
from trainers.data.validation import split
from trainers.errors import DatasetError
from trainers.loop import make_job, with_teacher
from trainers.runs.folder import run_facts
from trainers.settings.dataset import DatasetConfig
from trainers.step import Job, losses_and_weights, validation_loss

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


# What training does with them


def shrink(pixels: torch.Tensor) -> torch.Tensor:
    """Stands for a VAE: the mean of each 8 by 8 block, in four channels."""
    planes = pixels.permute(0, 3, 1, 2)
    return torch.nn.functional.avg_pool2d(planes, 8)[:, [0, 1, 2, 0]]


def edit_examples() -> Examples:
    """Three pictures of two shapes, the middle one with a control image of a shape of its own."""
    shown = [images(1, (64, 64), seed)[0] for seed in (1, 2, 3)]
    shown[1] = images(1, (64, 128), 2)[0]
    pictures = [*images(2, (64, 64)), *images(1, (64, 96))]
    config = DatasetConfig(resolution=96, upscale=True)
    dataset = batch_dataset(pictures, list(tiny.CAPTIONS), None, config, [shown])
    return encode_pictures(dataset, shrink, scale=lambda latents: 2 * latents)


def test_control_images_are_kept_as_the_vae_gives_them() -> None:
    dataset = batch(controls=[images(), images(2, (64, 64))])
    examples = encode_pictures(dataset, shrink, scale=lambda latents: 2 * latents)
    assert torch.equal(examples.latents[1], 2 * shrink(dataset.pixels(1)[None])[0])
    one = examples.controls[1]
    assert [latent.shape for latent in one.latents] == [(1, 4, 16, 24), (1, 4, 20, 20)]
    for latent, pixels, again in zip(one.latents, dataset.controls(1), one.pixels(), strict=True):
        assert torch.equal(latent, shrink(pixels[None]))
        assert torch.equal(again, pixels[None])
    assert encode_pictures(batch(), shrink).controls == {}


def test_vae_overflows_on_a_control_image() -> None:
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return shrink(pixels) / (0 if pixels.shape[1] == 160 else 1)

    with pytest.raises(DatasetError, match="turns 'control image 1' into NaN"):
        encode_pictures(batch(controls=[images(2, (64, 64))]), encode)


def test_control_images_follow_their_pictures() -> None:
    examples = edit_examples()
    rest, watched = split(examples, frozenset([1]))
    assert watched is not None
    assert watched.controls == {0: examples.controls[1]}
    assert rest.controls == {0: examples.controls[0], 1: examples.controls[2]}
    joined = tiny.examples().with_class_images(examples)
    assert joined.controls == {3 + index: one for index, one in examples.controls.items()}
    assert joined.shown(2).controls is None


class Told(list[list[tuple[Any, ...]]]):
    """What the denoiser is told of each sample: its size and references."""

    def __init__(self, parts: Parts) -> None:
        self._predict, parts.predict = parts.predict, self.predict

    def predict(self, noisy: Any, timesteps: Any, texts: Any, sizes: Any) -> torch.Tensor:
        self.append([(text, text.get(REFERENCES)) for text in texts])
        plain = [{k: v for k, v in text.items() if k != REFERENCES} for text in texts]
        return self._predict(noisy, timesteps, plain, sizes)


def edit_job(looks: bool = False, **settings: Any) -> tuple[Job, Told]:
    base = tiny.parts()
    config, pictures = tiny.run_config(**settings), edit_examples()
    texts = [*tiny.CAPTIONS, config.objective.class_prompt, ""]
    encoded: dict[Any, Any] = {}
    if looks:
        base.architecture = dataclasses.replace(base.architecture, control_encoder="Node")
        for controls in pictures.controls.values():
            encoded |= {(text, controls): base.text.encode(text) for text in texts}
    else:
        encoded |= tiny.encode_captions(base, texts)
    told = Told(base)
    return make_job(base, pictures, encoded, config, pictures), told


@pytest.mark.parametrize("looks", [False, True])
def test_every_sample_is_told_of_its_own_control_images(looks: bool) -> None:
    job, told = edit_job(looks, caption_dropout=0.5)
    for step in range(6):
        for picture in range(3):
            losses_and_weights(job, [picture], step, 0)
            ((text, references),) = told.pop()
            controls = job.examples.controls[picture]
            assert references is controls.latents
            captions = (tiny.CAPTIONS[picture], "")
            keys = [(caption, controls) if looks else caption for caption in captions]
            assert any(text["hidden"] is job.encoded[key]["hidden"] for key in keys)


def test_validation_and_preservation_see_the_same_control_images() -> None:
    job, told = edit_job(prior="output preservation", class_prompt="a dog")
    losses_and_weights(job, [0, 1], 0, 0)
    assert len(told) == 3  # the samples, then the base and the adapter on the class prompt
    latents = [job.examples.controls[index].latents for index in (0, 1)]
    assert all([r for _, r in batch] == latents for batch in told)
    told.clear()
    validation_loss(job)
    assert {id(references) for ((_, references),) in told} == {
        id(one.latents) for one in job.examples.controls.values()
    }


def test_teacher_s_samples_have_their_pictures_control_images() -> None:
    job, told = edit_job(
        method="dreambooth", prior="teacher", class_prompt="a dog", prior_samples=4
    )
    taught = with_teacher(job).examples
    assert [taught.controls[3 + i] for i in range(4)] == [
        taught.controls[index] for index in (0, 1, 2, 0)
    ]
    assert [r for ((_, r),) in told] == [taught.controls[3 + i].latents for i in range(4)]
