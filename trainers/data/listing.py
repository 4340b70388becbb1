"""Which files of a folder make a dataset: pictures, their captions, masks and control images.

By name alone: nothing here opens a picture or imports torch or Pillow, so that menus can ask it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DatasetError
from ..settings.dataset import DatasetConfig

PICTURE_SUFFIXES = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
)
# Formats that people do put into such folders and that Pillow cannot open.
FOREIGN_SUFFIXES = frozenset((".heic", ".heif", ".jxl", ".raw", ".dng", ".cr2", ".nef", ".arw"))
MASK_ENDINGS = (".mask", "-masklabel")
CONTROL = re.compile(r"(.+)\.control(\d*)")  # a stem: name.control, name.control2
CAPTION_SUFFIXES = (".txt", ".caption")
HIDDEN = (".", "__")  # how names of what is left out begin
METADATA_NAME = "metadata.jsonl"
REPEATED_FOLDER = re.compile(r"([1-9]\d*)_(.*\S.*)")


@dataclass(frozen=True)
class PictureFile:
    """A picture and the files that belong to it.

    Attributes:
        name: the path from the dataset's folder, with forward slashes.
        repeats: how often it counts in one pass.
        folder_words: `sks dog` for a picture in the sub-folder `10_sks dog`, else empty.
        beside: files with the same stem, by what they are: ".txt", ".caption", "mask".
        controls: its control images by number: name.control is the first; two of one number are
            one too many.
    """

    path: Path
    name: str
    repeats: int
    folder_words: str
    beside: Mapping[str, Path]
    controls: Mapping[int, tuple[Path, ...]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name without the suffix, in small letters: what goes with it has the same."""
        return self.name.removesuffix(self.path.suffix).casefold()


@dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes:
        metadata: the metadata.jsonl files, each with the prefix ("" or "10_dog/") of its names.
        strays: names of masks without a picture, and
        stray_controls: of control images without one.
        foreign: names of pictures in formats that cannot be read.
        ignored_folders: names of sub-folders that are not read.
    """

    folder: Path
    pictures: tuple[PictureFile, ...]
    metadata: tuple[tuple[str, Path], ...]
    strays: tuple[str, ...]
    stray_controls: tuple[str, ...]
    foreign: tuple[str, ...]
    ignored_folders: tuple[str, ...]


def list_folder(folder: Path) -> Listing:
    """The dataset files of `folder` and of its sub-folders named like `10_dog`, in natural order.

    Hidden files are left out. Suffixes match in any case.

    Raises:
        DatasetError: the folder is missing or cannot be listed.
    """
    pictures: list[PictureFile] = []
    metadata: list[tuple[str, Path]] = []
    strays: dict[bool, list[str]] = {False: [], True: []}  # by whether they are control images
    foreign: list[str] = []
    for part in _parts(folder):
        files = _visible(part, directories=False)
        prefix = "" if part == folder else f"{part.name}/"
        pictures += _pictures_of(part, prefix, files)
        metadata += [(prefix, path) for path in files if path.name.casefold() == METADATA_NAME]
        stems = {path.stem.casefold() for path in files if _is_picture(path)}
        for path in files:
            stem, number = _belongs_to(path)
            if stem and stem not in stems:
                strays[number is not None].append(prefix + path.name)
        foreign += [prefix + path.name for path in files if _suffix(path) in FOREIGN_SUFFIXES]
    ignored = (p.name for p in _visible(folder, directories=True) if not _repeats(p))
    return Listing(
        folder, tuple(pictures), tuple(metadata), tuple(strays[False]), tuple(strays[True]),
        tuple(foreign), tuple(ignored),
    )  # fmt: skip


def has_pictures(folder: Path) -> bool:
    """Whether `folder` or one of its sub-folders named like `10_dog` holds a picture."""
    return any(
        _is_picture(path) for part in _parts(folder) for path in _visible(part, directories=False)
    )


def picture_folders(root: Path) -> list[Path]:
    """The folders below `root` of which has_pictures is true, by names alone: no file is looked at.

    Hidden folders are left out, and so are those that cannot be read. Links are not followed.
    """
    found = set()
    for place, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(HIDDEN)]
        if any(_is_picture(Path(name)) for name in files if not name.startswith(HIDDEN)):
            folder = Path(place)
            found |= {folder, folder.parent} if _repeats(folder) else {folder}
    return [folder for folder in found if root in folder.parents]


def folder_state(folder: Path) -> str:
    """A hash of the names, sizes and times of all files a dataset of `folder` might read."""
    digest = hashlib.sha256()
    for part in _parts(folder):
        for path in _visible(part, directories=False):
            facts = path.stat()
            digest.update(
                f"{part.name}/{path.name}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode()
            )
    return digest.hexdigest()


def unread_notices(
    listing: Listing, config: DatasetConfig, read_elsewhere: Sequence[Path]
) -> list[str]:
    """What lies in the folder and is not read, a line for each kind.

    Args:
        read_elsewhere: folders that are read beside it.
    """
    notices = []
    read = {path.name for path in read_elsewhere if path.parent == listing.folder}
    if ignored := [name for name in listing.ignored_folders if name not in read]:
        ignored_names = named(ignored, 6)
        notices.append(f"not read: sub-folders {ignored_names} (only names like 10_dog are)")
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


def named(names: Iterable[str], limit: int = 20) -> str:
    """The names in one line; beyond `limit` only how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def raise_listed(
    name: str, bad: Sequence[str], total: int, problem: str, remedy: str, noun: str = "images"
) -> None:
    """Raise one DatasetError that names all of `bad`; do nothing if there are none."""
    if bad:
        raise DatasetError(
            f"Dataset '{name}': {len(bad)} of {total} {noun} {problem}: {named(bad)}.\n{remedy}"
        )


def _parts(folder: Path) -> list[Path]:
    return [folder, *(path for path in _visible(folder, directories=True) if _repeats(path))]


def _visible(folder: Path, directories: bool) -> list[Path]:
    try:
        paths = [path for path in folder.iterdir() if not path.name.startswith(HIDDEN)]
    except OSError as error:
        raise DatasetError(
            f"Dataset '{folder.name}': the folder {folder} cannot be read ({error.strerror}).\n"
            "Create it and put pictures into it, or choose another one."
        ) from error
    kept = (path for path in paths if (path.is_dir() if directories else path.is_file()))
    return sorted(kept, key=lambda path: _natural_order(path.name))


def _natural_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A sort key in which `dog 2` comes before `dog 10`, in any case of the letters."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
    return [(0, int(p), "") if p[0].isdigit() else (1, 0, p) for p in pieces], name


def _pictures_of(part: Path, prefix: str, files: list[Path]) -> list[PictureFile]:
    beside: dict[str, dict[str, Path]] = {}
    controls: dict[str, dict[int, tuple[Path, ...]]] = {}
    for path in files:
        stem, number = _belongs_to(path)
        if number is not None:
            numbered = controls.setdefault(stem, {})
            numbered[number] = (*numbered.get(number, ()), path)
        elif stem:
            beside.setdefault(stem, {})["mask"] = path
        elif _suffix(path) in CAPTION_SUFFIXES:
            beside.setdefault(path.stem.casefold(), {})[_suffix(path)] = path
    repeats = _repeats(part) if prefix else None
    count, words = repeats or (1, "")
    return [
        PictureFile(
            path, prefix + path.name, count, words,
            beside.get(path.stem.casefold(), {}), controls.get(path.stem.casefold(), {}),
        )
        for path in files
        if _is_picture(path)
    ]  # fmt: skip


def _suffix(path: Path) -> str:
    return path.suffix.casefold()


def _is_picture(path: Path) -> bool:
    return _suffix(path) in PICTURE_SUFFIXES and not _belongs_to(path)[0]


def _belongs_to(path: Path) -> tuple[str, int | None]:
    """The stem of the picture that a mask or a control image belongs to, else an empty one.

    And a control image's number, from 1 on.
    """
    if _suffix(path) not in PICTURE_SUFFIXES:
        return "", None
    stem = path.stem.casefold()
    if found := CONTROL.fullmatch(stem):
        return found[1], int(found[2] or 1)
    ending = next((ending for ending in MASK_ENDINGS if stem.endswith(ending)), None)
    return (stem.removesuffix(ending) if ending else ""), None


def _repeats(folder: Path) -> tuple[int, str] | None:
    """The number and the words of a name like `10_sks dog`, or None."""
    match = REPEATED_FOLDER.fullmatch(folder.name)
    return (int(match[1]), match[2].replace("_", " ").strip()) if match else None
