"""What is computed once of each picture: latents, its mask at their size, how it came there."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.dataset_files import batch
from trainers.contracts import Size
from trainers.data.examples import encode_pictures, size_of, stack_masks
from trainers.errors import DatasetError


def shrink(pixels: Tensor) -> Tensor:
    """Stands for a VAE: the mean of each 8 by 8 block, in four channels."""
    planes = pixels.permute(0, 3, 1, 2)
    return torch.nn.functional.avg_pool2d(planes, 8)[:, [0, 1, 2, 0]]


def test_encode_pictures_keeps_what_the_vae_gives() -> None:
    dataset = batch(2, captions=["a", "b"])
    examples = encode_pictures(dataset, shrink)
    assert examples.captions == ("a", "b")
    assert examples.repeats == (1, 1)
    assert examples.masks == (None, None)
    for index, latent in enumerate(examples.latents):
        assert torch.equal(latent, shrink(dataset.pixels(index)[None])[0])
        assert latent.dtype == torch.float32


def test_encode_pictures_reports_each() -> None:
    reports: list[tuple[int, int]] = []
    encode_pictures(batch(3), shrink, lambda done, total: reports.append((done, total)))
    assert reports == [(1, 3), (2, 3), (3, 3)]


def test_encode_pictures_mask_is_averaged_over_each_latent() -> None:
    mask = (torch.rand(1, 128, 192, generator=torch.Generator().manual_seed(0)) > 0.4).float()
    dataset = batch(1, masks=list(mask))
    at_pixels = dataset.mask(0)
    (latent_mask,) = encode_pictures(dataset, shrink).masks
    assert at_pixels is not None
    assert latent_mask is not None
    blocks = at_pixels.unflatten(0, (-1, 8)).unflatten(2, (-1, 8))
    torch.testing.assert_close(latent_mask[0], blocks.mean((1, 3)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_encode_pictures_vae_overflows(value: float) -> None:
    with pytest.raises(DatasetError, match="image 1.*NaN or infinity"):
        encode_pictures(batch(1), lambda pixels: shrink(pixels) + value)


def test_stack_masks_picture_without_one_is_trained_whole() -> None:
    latents, mask = torch.zeros(2, 4, 3, 5), torch.rand(1, 3, 5)
    stacked = stack_masks([mask, None], latents)
    assert stacked is not None
    assert torch.equal(stacked, torch.stack([mask, torch.ones(1, 3, 5)]))


def test_stack_masks_none_at_all() -> None:
    assert stack_masks([None, None], torch.zeros(2, 4, 3, 5)) is None


@pytest.mark.parametrize("inner", [(), (1,), (3,)], ids=["plane", "one frame", "frames"])
def test_masks_have_the_dimensions_of_the_latents(inner: tuple[int, ...]) -> None:
    def encode(pixels: Tensor) -> Tensor:  # as video models have them: (1, C, frames, h, w)
        small = shrink(pixels)
        return small.reshape(1, 4, *[1] * len(inner), *small.shape[2:]).expand(
            1, 4, *inner, *small.shape[2:]
        )

    mask = torch.ones(128, 192)
    mask[:, :96] = 0
    examples = encode_pictures(batch(2, masks=[mask, mask]), encode)
    latents = torch.stack(examples.latents)
    stacked = stack_masks([examples.masks[0], None], latents)
    assert stacked is not None
    height, width = latents.shape[-2:]
    assert stacked.shape == (2, 1, *[1] * len(inner), height, width)
    assert stacked.expand_as(latents[:, :1]).mean((0, 1, *range(2, 2 + len(inner)))).shape == (
        height,
        width,
    )
    assert stacked[0].sum() < stacked[1].sum() == height * width


@pytest.mark.parametrize(
    ("size", "bucket", "crop"),
    [
        ((300, 100), (64, 64), (64, 0)),  # resized to 192 x 64
        ((100, 300), (64, 64), (0, 64)),
        ((640, 384), (640, 384), (0, 0)),
        ((1000, 1000), (512, 256), (0, 128)),  # to 512 x 512
        ((200, 100), (128, 128), (64, 0)),  # enlarged, to 256 x 128
    ],
)
def test_size_of_a_picture_counts_its_crop_after_resizing(
    size: tuple[int, int], bucket: tuple[int, int], crop: tuple[int, int]
) -> None:
    (picture,) = batch(1).pictures
    picture = dataclasses.replace(picture, width_px=size[0], height_px=size[1], bucket_px=bucket)
    assert size_of(picture) == Size(*size, *crop, *bucket)
