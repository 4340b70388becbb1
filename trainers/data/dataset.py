"""A dataset: pictures with captions, masks and the size each one trains at.

A folder's pictures are decoded once when the dataset is made, to see that they can be, and again
whenever they are asked for; in between there is neither an open file nor a decoded picture.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..errors import DatasetError
from ..settings.dataset import STEP_PX, DatasetConfig
from .buckets import bucket_of, size_problem
from .captions import clean_lines, find_captions, in_words, one_line
from .listing import PICTURE_SUFFIXES, Listing, list_folder, named, raise_listed
from .masks import check_mask_files, mask_sources, raise_masks
from .pictures import LARGEST_PX, READ_ERRORS, Picture, TensorSource, inspect

__all__ = ["Dataset", "Picture", "batch_dataset", "folder_dataset"]

Item = TypeVar("Item")
MANY_REPEATS = 100  # beyond this a number before a folder's name is more likely a year


@dataclass(frozen=True)
class Dataset:
    """Pictures in a fixed order.

    Attributes:
        caption_source: where captions came from, in words.
        notices: what the user should see.
    """

    name: str
    pictures: tuple[Picture, ...]
    resolution_px: int
    caption_source: str
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    def pixels(self, index: int) -> Tensor:
        """fp32 (H, W, 3) in 0..1 at the bucket's size; transparent parts are white.

        Raises:
            DatasetError: its file is gone or was damaged since the dataset was made.
        """
        with self._reading(self.pictures[index]) as picture:
            return picture.source.pixels(picture.bucket_px)

    def mask(self, index: int) -> Tensor | None:
        """fp32 (H, W) in 0..1, cut and resized like the pixels, 1 where it is trained; or None.

        Raises:
            DatasetError: its file is gone or was damaged since the dataset was made.
        """
        with self._reading(self.pictures[index]) as picture:
            return picture.source.mask(picture.bucket_px)

    def fingerprint(self, by_lines: bool = True) -> str:
        """A hash of all that training sees: pictures, masks, captions, sizes, repeats, order.

        Names and places of files do not count, their bytes do.

        Args:
            by_lines: whether it matters where the lines of a caption end.

        Raises:
            DatasetError: a file is gone since the dataset was made.
        """
        digest = hashlib.sha256()
        for picture, own in zip(self.pictures, self.digests(), strict=True):
            digest.update(own)
            caption = picture.caption if by_lines else one_line(picture.caption)
            digest.update(json.dumps([caption, picture.bucket_px, picture.repeats]).encode())
        return digest.hexdigest()

    def digests(self) -> Iterator[bytes]:
        """A hash of each picture and its mask.

        Raises:
            DatasetError: a file is gone since the dataset was made.
        """
        for picture in self.pictures:
            with self._reading(picture):
                digest = picture.source.digest()
            yield digest

    @contextmanager
    def _reading(self, picture: Picture) -> Iterator[Picture]:
        try:
            yield picture
        except READ_ERRORS as error:
            raise DatasetError(
                f"Dataset '{self.name}': {picture.name} or its mask could be read before, but not "
                "now.\nPut it back, or queue again without it."
            ) from error


def folder_dataset(
    folder: Path,
    config: DatasetConfig,
    on_picture: Callable[[int, int], None] | None = None,
    only: Container[str] | None = None,
) -> Dataset:
    """The pictures of a folder, and ten times those of its sub-folders named like `10_dog`.

    Args:
        on_picture: is told (done, total) after each picture that was decoded; may raise.
        only: names of the pictures to take; None takes all.

    Raises:
        DatasetError: the folder is missing or empty, or pictures, captions or masks cannot be
            used; all of one kind are listed.
    """
    listing = list_folder(folder)
    if only is not None:
        chosen = tuple(file for file in listing.pictures if file.name in only)
        listing = dataclasses.replace(listing, pictures=chosen)
    _raise_empty(listing)
    facts = _inspect_all(listing, on_picture)
    sizes = [(width, height) for width, height, _ in facts]
    _raise_shapes(folder.name, [file.name for file in listing.pictures], sizes, config)
    captions = find_captions(listing, config)
    sources = mask_sources(listing, config, [transparent for *_, transparent in facts])
    pictures = tuple(
        Picture(
            name=file.name, width_px=width, height_px=height, caption=caption,
            bucket_px=bucket_of(width, height, config), repeats=file.repeats,
            has_mask=bool(source.mask_path or source.alpha_mask), source=source,
        )
        for file, (width, height), caption, source
        in zip(listing.pictures, sizes, captions.texts, sources, strict=True)
    )  # fmt: skip
    check_mask_files(folder.name, pictures, sources)
    notices = [
        *captions.notices,
        *_folder_notices(listing, config),
        *_transparency_notice(pictures, facts),
        *_picture_notices(pictures, config),
    ]
    return Dataset(folder.name, pictures, config.resolution, captions.source, tuple(notices))


def batch_dataset(
    images: Sequence[Tensor],
    captions: Sequence[str] | None,
    masks: Sequence[Tensor] | None,
    config: DatasetConfig,
) -> Dataset:
    """Pictures that are in memory already; the tensors are kept, not copied.

    Args:
        images: each (h, w, C) in 0..1 with 1, 3 or 4 channels, of any sizes.
        captions: one for all or one for each; they win over the prompt, which fills empty ones.
        masks: each (h, w) in 0..1, 1 where it is trained; one for all or one for each, or None.
        config: its `captions` and `masks` say where to look in a folder and do not count here.

    Raises:
        DatasetError: there are no pictures, or counts, shapes or values cannot be used.
    """
    name = "batch"
    _raise_unusable_tensors(name, images)
    given_texts = _one_each(name, "captions", captions or [""], len(images))
    own = [clean_lines(text) for text in given_texts]
    prompt = one_line(config.prompt)
    texts = [text or prompt for text in own]
    given: list[Tensor | None] = [None] * len(images)
    if masks:
        given = list(_one_each(name, "masks", masks, len(images)))
    names = [f"image {number}" for number in range(1, len(images) + 1)]
    sizes = [(image.shape[1], image.shape[0]) for image in images]
    _raise_shapes(name, names, sizes, config)
    pictures = tuple(
        Picture(
            name=picture, width_px=width, height_px=height, caption=text,
            bucket_px=bucket_of(width, height, config), has_mask=mask is not None,
            source=TensorSource(image, mask),
        )
        for picture, (width, height), text, image, mask
        in zip(names, sizes, texts, images, given, strict=True)
    )  # fmt: skip
    shapes = {
        picture.name: (mask.shape[-1], mask.shape[-2])
        for picture, mask in zip(pictures, given, strict=True)
        if mask is not None
    }
    raise_masks(name, pictures, shapes)
    spare = "the prompt" if prompt else ""
    found = in_words(["the captions input" if text else spare for text in own])
    notices = tuple(_picture_notices(pictures, config))
    return Dataset(name, pictures, config.resolution, found, notices)


def _raise_empty(listing: Listing) -> None:
    if listing.pictures:
        return
    instead = ", ".join((*listing.foreign, *(f"{name}/" for name in listing.ignored_folders)))
    raise DatasetError(
        f"Dataset '{listing.folder.name}': no pictures in {listing.folder}"
        f"{f', only {instead}' if instead else ''}.\n"
        f"Put pictures into it ({' '.join(sorted(PICTURE_SUFFIXES))}), or choose another folder."
    )


def _inspect_all(
    listing: Listing, on_picture: Callable[[int, int], None] | None
) -> list[tuple[int, int, bool]]:
    """Width, height and transparency of every picture, each decoded once."""
    facts, unreadable, too_large = [], [], []
    for number, file in enumerate(listing.pictures, start=1):
        try:
            facts.append(inspect(file.path))
        except Image.DecompressionBombError:
            too_large.append(file.name)
        except READ_ERRORS:
            unreadable.append(file.name)
        if on_picture:
            on_picture(number, len(listing.pictures))
    name, total = listing.folder.name, len(listing.pictures)
    megapixels = LARGEST_PX // 1_000_000
    raise_listed(
        name, unreadable, total, "cannot be read", "Remove them or save them again as PNG."
    )
    raise_listed(
        name, too_large, total, f"have more than {megapixels} megapixels", "Shrink or remove them."
    )
    return facts


def _raise_shapes(
    name: str, pictures: Sequence[str], sizes: Sequence[tuple[int, int]], config: DatasetConfig
) -> None:
    problems = [size_problem(*size, config) for size in sizes]
    bad = [f"{p} ({problem})" for p, problem in zip(pictures, problems, strict=True) if problem]
    allowed = f"Allowed: sides of {STEP_PX} pixels and more"
    if config.buckets:
        allowed += f", the longest at most {config.max_aspect_ratio:g} times the shortest"
    raise_listed(
        name, bad, len(sizes), "have a shape that cannot be trained",
        f"{allowed}. Crop or remove them.",
    )  # fmt: skip


def _raise_unusable_tensors(name: str, images: Sequence[Tensor]) -> None:
    if not images:
        raise DatasetError(f"Dataset '{name}': there are no images.\nWire at least one into it.")
    bad = []
    for number, image in enumerate(images, start=1):
        if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
            bad.append(f"image {number} (shape {tuple(image.shape)})")
        elif not bool(torch.isfinite(image).all()):
            bad.append(f"image {number} (not finite)")
    raise_listed(
        name, bad, len(images), "cannot be used",
        "Allowed: height x width x 1, 3 or 4 channels of finite numbers from 0 to 1.",
    )  # fmt: skip


def _one_each(name: str, what: str, given: Sequence[Item], num_images: int) -> list[Item]:
    if len(given) == 1:
        return list(given) * num_images
    if len(given) != num_images:
        raise DatasetError(
            f"Dataset '{name}': {len(given)} {what} for {num_images} images.\n"
            f"Allowed: one for all, or one for each image."
        )
    return list(given)


def _folder_notices(listing: Listing, config: DatasetConfig) -> list[str]:
    notices = []
    if listing.ignored_folders:
        ignored = named(listing.ignored_folders, 6)
        notices.append(f"not read: sub-folders {ignored} (only names like 10_dog are)")
    if listing.foreign:
        notices.append(f"not read: {named(listing.foreign, 6)} (save them as PNG or JPEG)")
    if listing.strays:
        notices.append(f"masks without a picture: {named(listing.strays, 6)}")
    unused = [file.name for file in listing.pictures if "mask" in file.beside]
    if unused and config.masks not in ("auto", "file"):
        notices.append(
            f"masks is '{config.masks}', so mask files of {named(unused, 6)} are not used"
        )
    return notices


def _transparency_notice(
    pictures: Sequence[Picture], facts: Sequence[tuple[int, int, bool]]
) -> list[str]:
    whitened = [
        picture.name
        for picture, (*_, transparent) in zip(pictures, facts, strict=True)
        if transparent and not picture.has_mask
    ]
    return [f"transparent parts become white: {named(whitened, 6)}"] if whitened else []


def _picture_notices(pictures: Sequence[Picture], config: DatasetConfig) -> list[str]:
    notices = []
    small = [p.name for p in pictures if p.width_px * p.height_px < config.resolution**2]
    if small:
        fate = "enlarged" if config.upscale else "trained at their own size"
        size = f"{config.resolution}x{config.resolution}"
        notices.append(f"smaller than {size}, {fate}: {named(small, 6)}")
    many = {p.name.split("/")[0]: p.repeats for p in pictures if p.repeats > MANY_REPEATS}
    notices += [f"{folder}: each picture counts {times} times" for folder, times in many.items()]
    if empty := [p.name for p in pictures if not p.caption]:
        notices.append(f"empty captions: {named(empty, 6)}")
    return notices
