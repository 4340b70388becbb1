"""Which mask a picture has, and whether it can be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...settings.dataset import DatasetConfig
from ..buckets import same_shape
from ..listing import Listing, PictureFile, raise_listed
from ..pictures import READ_ERRORS, FileSource, Picture, inspect


def mask_sources(
    listing: Listing, config: DatasetConfig, transparent: Sequence[bool]
) -> list[FileSource]:
    """Every picture with the mask that `config.masks` asks for."""
    sources, missing = [], []
    for file, has_alpha in zip(listing.pictures, transparent, strict=True):
        sources.append(source := source_of(file, config, has_alpha))
        if config.masks in ("file", "alpha") and not (source.mask_path or source.alpha_mask):
            missing.append(file.name)
    wanted = "mask file" if config.masks == "file" else "transparent part"
    raise_listed(
        listing.folder.name, missing, len(sources), f"have no {wanted}",
        "Add them, or set masks to 'auto', which trains such pictures whole.",
    )  # fmt: skip
    return sources


def source_of(file: PictureFile, config: DatasetConfig, has_alpha: bool) -> FileSource:
    """One picture with the mask that `config.masks` asks for, if it has it."""
    mask_path = file.beside.get("mask") if config.masks in ("auto", "file") else None
    alpha = config.masks in ("auto", "alpha") and has_alpha and mask_path is None
    return FileSource(file.path, mask_path, alpha)


def check_mask_files(name: str, pictures: Sequence[Picture], sources: Sequence[FileSource]) -> None:
    """Raise for masks of a folder's pictures that cannot be used; all of one kind are listed."""
    unreadable, shapes = [], {}
    for picture, source in zip(pictures, sources, strict=True):
        if source.mask_path is None:
            continue
        try:
            shapes[picture.name] = inspect(source.mask_path)[:2]
        except READ_ERRORS:
            unreadable.append(source.mask_path.name)
    raise_listed(
        name, unreadable, len(shapes) + len(unreadable), "cannot be read",
        "Remove them or save them again as PNG.", noun="masks",
    )  # fmt: skip
    raise_masks(name, pictures, shapes)


def raise_masks(
    name: str, pictures: Sequence[Picture], mask_sizes: Mapping[str, tuple[int, int]]
) -> None:
    """Raise for masks of another shape than their picture, and for those that train nothing.

    Args:
        mask_sizes: width and height by the picture's name, for masks that are not its own alpha.
    """
    misshapen, black = [], []
    for picture in pictures:
        mask = picture.source.mask(picture.bucket_px)
        if mask is None:
            continue
        if not bool(mask.max() > 0):
            black.append(picture.name)
            continue
        width, height = mask_sizes.get(picture.name, (picture.width_px, picture.height_px))
        if not same_shape((width, height), (picture.width_px, picture.height_px)):
            size = f"{picture.width_px}x{picture.height_px}"
            misshapen.append(f"{picture.name} ({size}, mask {width}x{height})")
    masked = sum(picture.has_mask for picture in pictures)
    raise_listed(
        name, misshapen, masked, "have a mask of another shape",
        "Make each mask as wide and high as its picture.",
    )  # fmt: skip
    raise_listed(
        name, black, masked, "have a mask that is black all over",
        "White is trained: paint the subject white, or remove the mask.",
    )  # fmt: skip
