"""The captions of a folder of the host's input: read, and written into the .txt file of a picture.

Nothing else is written, and nothing outside of the host's input folder, links resolved.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths

from ....trainers.data.captions import clean_lines, own_captions
from ....trainers.data.listing import METADATA_NAME, Listing, PictureFile, list_folder, named
from ....trainers.errors import DatasetError
from ....trainers.runs.files import write_whole
from ..folders import dataset_folder, folder_names
from ..words import count_tokens

MOST_CHARACTERS = 20_000
TXT_COUNTS, TXT_SOURCE = ("auto", "txt"), ".txt files"
WRITING = threading.Lock()
Seen = str | None


@dataclass(frozen=True)
class Change:
    """A caption to be written; an empty one deletes the file.

    Attributes:
        was: what it is to replace, None or empty for none.
        unseen: whether it replaces whatever there is.
    """

    picture: str
    caption: str
    was: Seen = None
    unseen: bool = False


class ChangedError(DatasetError):
    """Captions are not what the page showed; `captions` says what they are now, by picture."""

    def __init__(self, captions: Mapping[str, str]) -> None:
        self.captions = dict(captions)
        which = (
            "The caption was" if len(captions) == 1 else f"Captions of {named(captions, 6)} were"
        )
        super().__init__(f"{which} changed elsewhere.\nTake that one, or save yours again.")


def described(name: str, choice: str, control_folder: str = "") -> dict[str, Any]:
    """The captions of a folder, as GET answers.

    Args:
        choice: one of DatasetConfig.captions'.
        control_folder: as on Training Images (Folder).

    Raises:
        DatasetError: there is no such folder.
    """
    listing = list_folder(dataset_folder(name))
    found, problems = own_captions(listing, choice)
    controls: list[tuple[Path, ...]] = [()] * len(found)
    try:
        controls = controls_of(listing, control_folder)
    except DatasetError as error:
        problems = [*problems, str(error)]
    pictures = [
        {
            "name": picture.name,
            "caption": text or None,
            "source": source or None,
            "words": picture.folder_words,
            "tokens": count_tokens(text),
            "editable": not (why := locked(picture, source, choice)),
            "why": why,
            "stamp": _stamp(picture, shown),
            "controls": [path.name for path in shown],
        }
        for picture, (text, source), shown in zip(listing.pictures, found, controls, strict=True)
    ]
    return {
        "pictures": pictures,
        "problems": problems,
        "writable": os.access(listing.folder, os.W_OK),
    }


def write(name: str, choice: str, changes: Sequence[Change]) -> None:
    """Write captions of a folder's pictures: all of them, or none where one cannot be.

    Args:
        choice: as DatasetConfig.captions.

    Raises:
        ChangedError: some are no longer what `was` says.
        DatasetError: what is asked for cannot be written.
        SaveError: the disk is full; what came before it is written.
    """
    contents = [encoded(change.caption) for change in changes]
    with WRITING:
        listing = list_folder(dataset_folder(name))
        files = _files(listing, [change.picture for change in changes])
        found, _ = own_captions(dataclasses.replace(listing, pictures=files), choice)
        _check(files, found, changes, choice)
        for file, content in zip(files, contents, strict=True):
            if content:
                write_whole(target_of(file), content)
            else:
                target_of(file).unlink(missing_ok=True)


def _check(
    files: Sequence[PictureFile],
    found: Sequence[tuple[str, str]],
    changes: Sequence[Change],
    choice: str,
) -> None:
    changed = {}
    for file, (text, source), change in zip(files, found, changes, strict=True):
        if why := locked(file, source, choice):
            raise DatasetError(f"{file.name}: {why}")
        if not change.unseen and (change.was or "") != text:
            changed[file.name] = text
    if changed:
        raise ChangedError(changed)


def encoded(caption: str) -> bytes:
    """What the file of a caption holds; nothing for one that is empty.

    Raises:
        DatasetError: it is too long, or no text.
    """
    if len(caption) > MOST_CHARACTERS:
        raise DatasetError(too_long(f"{len(caption):,} characters"))
    text = clean_lines(caption)
    try:
        return f"{text}\n".encode() if text else b""
    except UnicodeEncodeError as error:
        raise DatasetError("The caption has half a character.\nType it again.") from error


def too_long(what: str) -> str:
    """A sentence about a caption that is."""
    return f"The caption has {what}.\nAllowed: {MOST_CHARACTERS:,} characters."


def file_of(listing: Listing, name: str) -> PictureFile:
    """The picture of that name; a name is looked up and never made a path of."""
    return _files(listing, [name])[0]


def _files(listing: Listing, names: Iterable[str]) -> tuple[PictureFile, ...]:
    known = {picture.name: picture for picture in listing.pictures}
    for name in (names := list(names)):
        if name not in known:
            raise DatasetError(
                f"There is no picture {name!r} in {listing.folder.name!r}.\nReload the page."
            )
    return tuple(known[name] for name in names)


def locked(picture: PictureFile, source: str, choice: str) -> str:
    """Why the caption of a picture cannot be written as a .txt file beside it; or nothing."""
    if choice not in TXT_COUNTS:
        return f"captions is '{choice}', so a .txt file would not count."
    if source == METADATA_NAME:
        return f"{METADATA_NAME} has a line for it, which comes before a .txt file: edit it there."
    root = Path(os.path.realpath(folder_paths.get_input_directory()))
    target = target_of(picture)
    if any(root not in path.parents for path in (target, Path(os.path.realpath(picture.path)))):
        return f"It lies outside {root}."
    if not os.access(target.parent, os.W_OK):
        return "Its folder cannot be written to."
    if source != TXT_SOURCE and ".txt" in picture.beside and not _is_text(target):
        return f"{target.name} is not UTF-8 text: save it again as UTF-8, or delete it."
    return ""


def _is_text(file: Path) -> bool:
    try:
        file.read_bytes().decode()
    except UnicodeDecodeError:
        return False
    return True


def target_of(picture: PictureFile) -> Path:
    """The caption file that there is, or would be, links resolved."""
    return Path(os.path.realpath(picture.beside.get(".txt") or picture.path.with_suffix(".txt")))


def controls_of(listing: Listing, control_folder: str) -> list[tuple[Path, ...]]:
    """The control images of every picture."""
    from ....trainers.data.beside.controls import control_files  # torch, as above

    folders = [dataset_folder(name) for name in folder_names(control_folder)]
    return control_files(listing, folders)[0]


def _stamp(picture: PictureFile, controls: tuple[Path, ...]) -> str:
    paths = [picture.path, *controls]
    paths += [path for what, path in picture.beside.items() if what == "mask"]
    return "-".join(str(path.stat().st_mtime_ns) for path in paths)
