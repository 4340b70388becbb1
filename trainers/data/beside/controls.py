"""Which control images a picture has, and whether they can be used.

An edit model makes a picture from a caption and control images: the picture before the edit, a
sketch, a subject and its new scene. All pictures of a dataset have equally many, in one order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ...errors import DatasetError
from ...settings.dataset import STEP_PX
from ..buckets import control_size
from ..listing import Listing, list_folder, named, raise_listed
from ..pictures import Control, TensorSource

Numbered = Mapping[int, tuple[Path, ...]]  # one file for each number is right
REMEDY = (
    "Each picture needs the same control images: name.control.png (or name.control1.png, "
    "name.control2.png ...) beside name.png, or name.png in the control folder."
)


def control_files(
    listing: Listing, folders: Sequence[Path]
) -> tuple[list[tuple[Path, ...]], list[str]]:
    """The control images of every picture, in order, and what there is to notice.

    Args:
        folders: of the first control images, the second ones ..., with the pictures' own names in
            sub-folders as theirs; empty where the files lie beside the pictures.

    Raises:
        DatasetError: some pictures lack theirs or have one twice; all of one kind are listed.
    """
    name, beside = listing.folder.name, [file.controls for file in listing.pictures]
    strays = list(listing.stray_controls)
    if folders:
        _raise_two_places(listing, folders)
        beside, strays = _of_folders(listing, folders)
    wanted = sorted({number for files in beside for number in files})
    several = len(wanted) > 1
    missing, doubled = [], []
    for file, files in zip(listing.pictures, beside, strict=True):
        lacking = [str(number) for number in wanted if number not in files]
        if lacking:
            missing.append(file.name + (f" (no. {', '.join(lacking)})" if several else ""))
        twice = [path.name for paths in files.values() if len(paths) > 1 for path in paths]
        if twice:
            doubled.append(f"{file.name} ({', '.join(twice)})")
    total = len(beside)
    raise_listed(name, missing, total, "have no control image", REMEDY)
    raise_listed(
        name, doubled, total, "have one control image twice", "Keep one file for each number."
    )
    notices = [f"control images without a picture: {named(strays, 6)}"] if strays else []
    return [tuple(files[number][0] for number in wanted) for files in beside], notices


def raise_small(name: str, sizes_px: Mapping[str, tuple[int, int]]) -> None:
    """Raise DatasetError for control images that are too small to show anything.

    Args:
        sizes_px: width and height of each by its name.
    """
    small = [f"{c} ({w}x{h})" for c, (w, h) in sizes_px.items() if min(w, h) < STEP_PX]
    raise_listed(
        name, small, len(sizes_px), f"have a side under {STEP_PX} pixels",
        "Replace them with larger ones.", noun="control images",
    )  # fmt: skip


def given_control(
    number: int, control: Tensor, picture_px: tuple[int, int], bucket_px: tuple[int, int]
) -> Control:
    """A control image that is in memory already, (h, w, C) in 0..1; see control_size."""
    size_px = control_size((control.shape[1], control.shape[0]), picture_px, bucket_px)
    return Control(f"control image {number}", size_px, TensorSource(control))


def _raise_two_places(listing: Listing, folders: Sequence[Path]) -> None:
    name = listing.folder.name
    beside = [file.name for file in listing.pictures if file.controls]
    raise_listed(
        name, beside, len(listing.pictures),
        "have control images beside them, while a control folder is set too",
        "Remove those files, or clear control_folder.",
    )  # fmt: skip
    if listing.folder in folders:
        raise DatasetError(
            f"Dataset '{name}': its control folder is the folder itself.\n"
            "Choose the folder with the control images, or clear control_folder."
        )


def _of_folders(listing: Listing, folders: Sequence[Path]) -> tuple[list[Numbered], list[str]]:
    """The control images of every picture by their folder's number; those without a picture."""
    found: dict[str, dict[int, tuple[Path, ...]]] = {file.key: {} for file in listing.pictures}
    strays = []
    for number, folder in enumerate(folders, start=1):
        for control in list_folder(folder).pictures:
            numbered = found.get(control.key)
            if numbered is None:
                strays.append(f"{folder.name}/{control.name}")
            else:
                numbered[number] = (*numbered.get(number, ()), control.path)
    empty = [
        folder.name
        for number, folder in enumerate(folders, start=1)
        if not any(number in files for files in found.values())
    ]
    if empty:
        raise DatasetError(
            f"Dataset '{listing.folder.name}': no picture has a control image in {named(empty)}."
            f"\n{REMEDY}"
        )
    return [found[file.key] for file in listing.pictures], strays
