"""A dataset: pictures with captions, masks, control images and the size each one trains at.

A folder's pictures are decoded once when the dataset is made, to see that they can be, and again
whenever they are asked for; in between there is neither an open file nor a decoded picture.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..errors import DatasetError
from ..settings.dataset import STEP_PX, DatasetConfig
from .beside.controls import control_files, given_control, raise_small
from .beside.masks import check_mask_files, mask_sources, raise_masks
from .buckets import bucket_of, control_size, size_problem
from .captions import clean_lines, find_captions, in_words, one_line
from .listing import (
    PICTURE_SUFFIXES,
    Listing,
    list_folder,
    named,
    raise_listed,
    unread_notices,
)
from .pictures import (
    LARGEST_PX,
    READ_ERRORS,
    Control,
    FileSource,
    Picture,
    TensorSource,
    file_hash,
    inspect,
)

__all__ = ["Dataset", "Picture", "batch_dataset", "folder_dataset"]

Item = TypeVar("Item")
Facts = tuple[int, int, bool]  # of a file: width, height, whether it has transparent parts
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

    @property
    def num_controls(self) -> int:
        """How many control images each picture has."""
        return len(self.pictures[0].controls)

    def controls(self, index: int) -> tuple[Tensor, ...]:
        """fp32 (H, W, 3) in 0..1 of each control image, which may differ in size.

        Raises:
            DatasetError: a file is gone or was damaged since the dataset was made.
        """
        with self._reading(self.pictures[index]) as picture:
            return tuple(one.source.pixels(one.size_px) for one in picture.controls)

    def fingerprint(self, by_lines: bool = True) -> str:
        """A hash of all that training sees: pictures, masks, control images, captions, sizes,
        repeats, order.

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
            facts: list[object] = [caption, picture.bucket_px, picture.repeats]
            facts += [control.size_px for control in picture.controls]
            digest.update(json.dumps(facts).encode())
        return digest.hexdigest()

    def digests(self) -> Iterator[bytes]:
        """A hash of each picture with its mask and control images.

        Raises:
            DatasetError: a file is gone since the dataset was made.
        """
        for picture in self.pictures:
            with self._reading(picture):
                sources = [picture.source, *(control.source for control in picture.controls)]
                digests = [source.digest() for source in sources]
            yield digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()

    @contextmanager
    def _reading(self, picture: Picture) -> Iterator[Picture]:
        try:
            yield picture
        except READ_ERRORS as error:
            raise DatasetError(
                f"Dataset '{self.name}': {picture.name} or its mask"
                f"{' or a control image' if picture.controls else ''} could be read before, but "
                "not now.\nPut it back, or queue again without it."
            ) from error


def folder_dataset(
    folder: Path,
    config: DatasetConfig,
    on_picture: Callable[[int, int], None] | None = None,
    only: Container[str] | None = None,
    control_folders: Sequence[Path] = (),
    *,
    hash_file: Callable[[Path], bytes] = file_hash,
) -> Dataset:
    """The pictures of a folder, and ten times those of its sub-folders named like `10_dog`.

    Args:
        on_picture: is told (done, total) after each picture that was decoded; may raise.
        only: names of the pictures to take; None takes all.
        control_folders: where control images lie that are not beside their pictures.
        hash_file: the SHA-256 of a file, for fingerprints; one may be given that remembers.

    Raises:
        DatasetError: a folder is missing or empty, or pictures, captions, masks or control images
            cannot be used; all of one kind are listed.
    """
    listing = list_folder(folder)
    if only is not None:
        chosen = tuple(file for file in listing.pictures if file.name in only)
        listing = dataclasses.replace(listing, pictures=chosen)
    _raise_empty(listing)
    control_paths, control_notices = control_files(listing, control_folders)
    facts, control_facts = _inspect_all(listing, control_paths, on_picture)
    sizes = [(width, height) for width, height, _ in facts]
    _raise_shapes(folder.name, [file.name for file in listing.pictures], sizes, config)
    captions = find_captions(listing, config)
    sources = [
        dataclasses.replace(source, hash_file=hash_file)
        for source in mask_sources(listing, config, [transparent for *_, transparent in facts])
    ]
    buckets = [bucket_of(*size, config) for size in sizes]
    shown = [
        tuple(
            Control(
                _shown_path(path, listing),
                control_size(control_facts[path][:2], size, bucket),
                FileSource(path, hash_file=hash_file),
            )
            for path in paths
        )
        for paths, size, bucket in zip(control_paths, sizes, buckets, strict=True)
    ]
    pictures = tuple(
        Picture(
            name=file.name, width_px=size[0], height_px=size[1], caption=caption,
            bucket_px=bucket, repeats=file.repeats,
            has_mask=bool(source.mask_path or source.alpha_mask), source=source,
            controls=controls,
        )
        for file, size, bucket, caption, source, controls
        in zip(listing.pictures, sizes, buckets, captions.texts, sources, shown, strict=True)
    )  # fmt: skip
    check_mask_files(folder.name, pictures, sources)
    notices = [
        *captions.notices,
        *unread_notices(listing, config, control_folders),
        *control_notices,
        *_transparency_notice(pictures, facts, control_facts),
        *_picture_notices(pictures, config),
    ]
    return Dataset(folder.name, pictures, config.resolution, captions.source, tuple(notices))


def batch_dataset(
    images: Sequence[Tensor],
    captions: Sequence[str] | None,
    masks: Sequence[Tensor] | None,
    config: DatasetConfig,
    controls: Sequence[Sequence[Tensor]] = (),
) -> Dataset:
    """Pictures that are in memory already; the tensors are kept, not copied.

    Args:
        images: each (h, w, C) in 0..1 with 1, 3 or 4 channels, of any sizes.
        captions: one for all or one for each; they win over the prompt, which fills empty ones.
        masks: each (h, w) in 0..1, 1 where it is trained; one for all or one for each, or None.
        config: its `captions` and `masks` say where to look in a folder and do not count here.
        controls: the first control images, the second ones ..., as `images`, one for each.

    Raises:
        DatasetError: there are no pictures, or counts, shapes or values cannot be used.
    """
    name = "batch"
    _raise_unusable_tensors(name, images)
    _raise_unusable_controls(name, controls, len(images))
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
            name=picture, width_px=size[0], height_px=size[1], caption=text,
            bucket_px=bucket_of(*size, config), has_mask=mask is not None,
            source=TensorSource(image, mask),
            controls=tuple(
                given_control(number, control[place], size, bucket_of(*size, config))
                for number, control in enumerate(controls, start=1)
            ),
        )
        for place, (picture, size, text, image, mask)
        in enumerate(zip(names, sizes, texts, images, given, strict=True))
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
    listing: Listing,
    controls: Sequence[tuple[Path, ...]],
    on_picture: Callable[[int, int], None] | None,
) -> tuple[list[Facts], dict[Path, Facts]]:
    """What there is to know of every picture, and of every control image; each decoded once."""
    files = {file.path: file.name for file in listing.pictures}
    files |= {path: _shown_path(path, listing) for paths in controls for path in paths}
    facts: dict[Path, Facts] = {}
    unreadable, too_large = [], []
    for number, (path, shown) in enumerate(files.items(), start=1):
        try:
            facts[path] = inspect(path)
        except Image.DecompressionBombError:
            too_large.append(shown)
        except READ_ERRORS:
            unreadable.append(shown)
        if on_picture:
            on_picture(number, len(files))
    name, total = listing.folder.name, len(files)
    megapixels = LARGEST_PX // 1_000_000
    raise_listed(
        name, unreadable, total, "cannot be read", "Remove them or save them again as PNG."
    )
    raise_listed(
        name, too_large, total, f"have more than {megapixels} megapixels", "Shrink or remove them."
    )
    of_controls = {path: facts[path] for paths in controls for path in paths}
    raise_small(name, {files[path]: found[:2] for path, found in of_controls.items()})
    return [facts[file.path] for file in listing.pictures], of_controls


def _shown_path(path: Path, listing: Listing) -> str:
    return Path(os.path.relpath(path, listing.folder)).as_posix()


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


def _raise_unusable_tensors(name: str, images: Sequence[Tensor], noun: str = "images") -> None:
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
        "Allowed: height x width x 1, 3 or 4 channels of finite numbers from 0 to 1.", noun,
    )  # fmt: skip


def _raise_unusable_controls(
    name: str, controls: Sequence[Sequence[Tensor]], num_images: int
) -> None:
    for place, given in enumerate(controls, start=1):
        which = f"control images no. {place}" if len(controls) > 1 else "control images"
        if len(given) != num_images:
            raise DatasetError(
                f"Dataset '{name}': {len(given)} {which} for {num_images} images.\n"
                "Allowed: one for each image, in the same order."
            )
        _raise_unusable_tensors(name, given, which)
        sizes = {f"no. {i}": (one.shape[1], one.shape[0]) for i, one in enumerate(given, start=1)}
        raise_small(name, sizes)


def _one_each(name: str, what: str, given: Sequence[Item], num_images: int) -> list[Item]:
    if len(given) == 1:
        return list(given) * num_images
    if len(given) != num_images:
        raise DatasetError(
            f"Dataset '{name}': {len(given)} {what} for {num_images} images.\n"
            f"Allowed: one for all, or one for each image."
        )
    return list(given)


def _transparency_notice(
    pictures: Sequence[Picture], facts: Sequence[Facts], controls: Mapping[Path, Facts]
) -> list[str]:
    whitened = [
        picture.name
        for picture, (*_, transparent) in zip(pictures, facts, strict=True)
        if transparent and not picture.has_mask
    ]
    whitened += [path.name for path, (*_, transparent) in controls.items() if transparent]
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
