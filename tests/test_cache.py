"""What is computed once: latents, masks at their size, and encodings of captions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.dataset_files import batch
from trainers.data.examples import (
    batch_text,
    batch_tokens,
    encode_captions,
    encode_pictures,
    stack_masks,
)
from trainers.errors import DatasetError
from trainers.models import FAMILIES

FAMILY = FAMILIES["sd15"]


def shrink(pixels: Tensor) -> Tensor:
    """Stands for a VAE: the mean of each 8 by 8 block, in four channels."""
    planes = pixels.permute(0, 3, 1, 2)
    return torch.nn.functional.avg_pool2d(planes, 8)[:, [0, 1, 2, 0]]


def test_encode_pictures_scales_what_the_vae_gives() -> None:
    dataset = batch(2, captions=["a", "b"])
    examples = encode_pictures(dataset, shrink, FAMILY)
    assert examples.captions == ("a", "b")
    assert examples.repeats == (1, 1)
    assert examples.masks == (None, None)
    for index, latent in enumerate(examples.latents):
        expected = 0.18215 * shrink(dataset.pixels(index)[None])[0]
        torch.testing.assert_close(latent, expected)
        assert latent.dtype == torch.float32


def test_encode_pictures_reports_each() -> None:
    reports: list[tuple[int, int]] = []
    encode_pictures(batch(3), shrink, FAMILY, lambda done, total: reports.append((done, total)))
    assert reports == [(1, 3), (2, 3), (3, 3)]


def test_encode_pictures_mask_is_averaged_over_each_latent() -> None:
    mask = (torch.rand(1, 128, 192, generator=torch.Generator().manual_seed(0)) > 0.4).float()
    dataset = batch(1, masks=list(mask))
    at_pixels = dataset.mask(0)
    (latent_mask,) = encode_pictures(dataset, shrink, FAMILY).masks
    assert at_pixels is not None
    assert latent_mask is not None
    blocks = at_pixels.unflatten(0, (-1, 8)).unflatten(2, (-1, 8))
    torch.testing.assert_close(latent_mask[0], blocks.mean((1, 3)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_encode_pictures_vae_overflows(value: float) -> None:
    with pytest.raises(DatasetError, match="image 1.*NaN or infinity"):
        encode_pictures(batch(1), lambda pixels: shrink(pixels) + value, FAMILY)


def test_stack_masks_picture_without_one_is_trained_whole() -> None:
    latents, mask = torch.zeros(2, 4, 3, 5), torch.rand(1, 3, 5)
    stacked = stack_masks([mask, None], latents)
    assert stacked is not None
    assert torch.equal(stacked, torch.stack([mask, torch.ones(1, 3, 5)]))


def test_stack_masks_none_at_all() -> None:
    assert stack_masks([None, None], torch.zeros(2, 4, 3, 5)) is None


def test_encode_captions_each_caption_once() -> None:
    base, encoded_batches = tiny.parts(), []
    family = dataclasses.replace(
        FAMILY, encode_text=lambda *a: encoded_batches.append(a) or FAMILY.encode_text(*a)
    )
    assert encode_captions(base, family, ["dog", "cat", "dog", ""]).keys() == {"dog", "cat", ""}
    assert len(encoded_batches) == 3


def test_cached_captions_equal_encoding_the_batch() -> None:
    base, captions = tiny.parts(), ["dog", "a cat", "dog"]
    cached = batch_text(encode_captions(base, FAMILY, captions), captions)
    together = FAMILY.encode_text(base, batch_tokens(base, captions))
    tiny.assert_near(cached, together, atol=1e-5)
    assert not any(tensor.requires_grad for tensor in cached.values())
