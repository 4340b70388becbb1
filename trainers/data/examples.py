"""What is computed of every picture once, before training: its latents, and its control images'."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..contracts import Controls, Size
from ..errors import DatasetError
from .buckets import crop_box
from .captions import one_line
from .dataset import Dataset, Picture

Item = TypeVar("Item")
# (1, H, W, 3) in 0..1 -> (1, C, ...), as the VAE gives them.
EncodePicture = Callable[[Tensor], Tensor]
# Those latents -> latents as the denoiser takes them.
ScaleLatents = Callable[[Tensor], Tensor]


class Shown(NamedTuple):
    """What is told of a picture beside its caption."""

    size: Size
    controls: Controls | None = None


@dataclass(frozen=True)
class TeacherSample:
    """What is given for a picture whose latents are noisy already: trainers.data.prior makes these.

    Attributes:
        target: (C, ...) fp32 on the CPU, what the denoiser should predict.
    """

    timestep: int | float
    target: Tensor


@dataclass(frozen=True)
class Examples:
    """A dataset as the loop sees it; one entry a picture.

    Attributes:
        latents: (C, ..., h, w) fp32 on the CPU, scaled for the denoiser.
        masks: (1, ..., h, w) fp32 in 0..1, or None for no mask.
        captions: what each picture shows.
        sizes: how each came to its training size.
        repeats: visits an epoch.
        num_class: how many of them, the last ones, are class images (prior preservation).
        controls: by index, the control images of those that have any.
        teacher: by index, the class images whose latents are noisy and whose target is given.
    """

    latents: tuple[Tensor, ...]
    masks: tuple[Tensor | None, ...]
    captions: tuple[str, ...]
    sizes: tuple[Size, ...]
    repeats: tuple[int, ...]
    num_class: int = 0
    controls: Mapping[int, Controls] = field(default_factory=dict)
    teacher: Mapping[int, TeacherSample] = field(default_factory=dict)

    @property
    def num_instances(self) -> int:
        return len(self.latents) - self.num_class

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        return tuple(latent.shape for latent in self.latents)

    def shown(self, place: int) -> Shown:
        """What is told of a picture beside its caption."""
        return Shown(self.sizes[place], self.controls.get(place))

    def chosen(self, places: Sequence[int]) -> Examples:
        """Some of these instance images."""
        assert not self.num_class, "class images are joined later"
        return Examples(
            tuple(self.latents[place] for place in places),
            tuple(self.masks[place] for place in places),
            tuple(self.captions[place] for place in places),
            tuple(self.sizes[place] for place in places),
            tuple(self.repeats[place] for place in places),
            controls={
                new: self.controls[old] for new, old in enumerate(places) if old in self.controls
            },
        )

    def with_class_images(self, images: Examples) -> Examples:
        """These instance images, then the class images."""
        assert not self.num_class, "class images are joined once"
        return Examples(
            self.latents + images.latents,
            self.masks + images.masks,
            self.captions + tuple(map(one_line, images.captions)),
            self.sizes + images.sizes,
            self.repeats + images.repeats,
            num_class=len(images.latents),
            controls={**self.controls, **self._behind(images.controls)},
            teacher=self._behind(images.teacher),
        )

    def _behind(self, by_index: Mapping[int, Item]) -> dict[int, Item]:
        """What is given for class images by their own indices, by those that they get here."""
        return {self.num_instances + index: one for index, one in by_index.items()}


def encode_pictures(
    dataset: Dataset,
    encode: EncodePicture,
    report: Callable[[int, int], None] = lambda done, total: None,
    scale: ScaleLatents = lambda latents: latents,
) -> Examples:
    """Encode every picture of `dataset` and its control images once.

    Args:
        report: called after each picture with how many are done, of how many.

    Raises:
        DatasetError: the VAE gives numbers that are not finite for a picture.
    """
    latents, masks, controls = [], [], {}

    def encoded(name: str, pixels: Tensor) -> Tensor:
        made = encode(pixels[None])
        if not made.isfinite().all():
            raise DatasetError(
                f"Dataset '{dataset.name}': the VAE turns '{name}' into NaN or infinity, "
                "even in fp32.\nUse another VAE, or save the picture again as PNG."
            )
        return made

    for index, picture in enumerate(dataset.pictures):
        latent = scale(encoded(picture.name, dataset.pixels(index)))[0].float().cpu()
        latents.append(latent)
        if picture.controls:
            names = (control.name for control in picture.controls)
            made = map(encoded, names, dataset.controls(index))
            kept = tuple(latent.float().cpu() for latent in made)
            controls[index] = Controls(kept, functools.partial(_batches, dataset, index))
        masks.append(_latent_mask(dataset.mask(index), latent))
        report(index + 1, len(dataset))
    return Examples(
        tuple(latents),
        tuple(masks),
        tuple(picture.caption for picture in dataset.pictures),
        tuple(size_of(picture) for picture in dataset.pictures),
        tuple(picture.repeats for picture in dataset.pictures),
        controls=controls,
    )


def _batches(dataset: Dataset, index: int) -> tuple[Tensor, ...]:
    """The control images of a picture, each as a batch of one."""
    return tuple(pixels[None] for pixels in dataset.controls(index))


def _latent_mask(mask: Tensor | None, latent: Tensor) -> Tensor | None:
    if mask is None:
        return None
    size = latent.shape[-2:]
    small = torch.nn.functional.interpolate(mask[None, None].float(), size=size, mode="area")
    return small.view(1, *[1] * (latent.ndim - 3), *size)


def stack_masks(masks: list[Tensor | None], latents: Tensor) -> Tensor | None:
    """One (B, 1, ..., h, w) mask for a batch; pictures without one are trained whole."""
    if all(mask is None for mask in masks):
        return None
    whole = torch.ones(1, *[1] * (latents.ndim - 4), *latents.shape[-2:])
    return torch.stack([whole if mask is None else mask for mask in masks])


def size_of(picture: Picture) -> Size:
    """How a picture comes to its training size."""
    width, height = picture.width_px, picture.height_px
    left, top, right, _ = crop_box(width, height, picture.bucket_px)
    scale = picture.bucket_px[0] / (right - left)
    return Size(width, height, round(left * scale), round(top * scale), *picture.bucket_px)
