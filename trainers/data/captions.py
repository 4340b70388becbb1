"""What each picture of a folder is called: from files, names or the prompt."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DatasetError
from ..settings.dataset import DatasetConfig
from .listing import METADATA_NAME, Listing, PictureFile, named, raise_listed

METADATA_KEYS = ("text", "caption", "prompt")

# Each choice of DatasetConfig.captions: where to look, in this order.
SOURCES = {
    "auto": (METADATA_NAME, ".txt files", ".caption files", "the prompt", "the folder's name"),
    "txt": (".txt files",),
    "caption": (".caption files",),
    "metadata.jsonl": (METADATA_NAME,),
    "file name": ("the file name",),
    "prompt": ("the prompt",),
}
# "_001", " (2)", "-3" at the end, or nothing but digits: a counter, not a word.
COUNTER = re.compile(r"^\d+$|[\s_-]+\d+$|[\s_-]*\(\d+\)$")


@dataclass(frozen=True)
class Captions:
    """One text per picture, in the listing's order, and what there is to say about them."""

    texts: tuple[str, ...]
    source: str
    notices: tuple[str, ...]


def find_captions(listing: Listing, config: DatasetConfig) -> Captions:
    """The caption of every picture by `config.captions`.

    - "auto": per picture the first of its line in metadata.jsonl, its .txt, its .caption file, the
      prompt; where the prompt is empty, the words of a sub-folder named like `10_sks dog`.
    - "prompt": the prompt, even an empty one.
    - any other choice: only that source, and every picture must have it.

    White space is reduced to single blanks, so a caption is one line; an empty file or line counts
    as none.

    Raises:
        DatasetError: files are not UTF-8, a line of metadata.jsonl cannot be used, or the chosen
            source is missing for some pictures.
    """
    wanted = SOURCES[config.captions]
    not_utf8: list[str] = []
    metadata = _read_metadata(listing, not_utf8) if METADATA_NAME in wanted else {}
    lookups: dict[str, Callable[[PictureFile], str]] = {
        METADATA_NAME: lambda picture: metadata.get(picture.name, ""),
        ".txt files": lambda picture: _read_text(picture, ".txt", not_utf8),
        ".caption files": lambda picture: _read_text(picture, ".caption", not_utf8),
        "the file name": lambda picture: words_of(picture.path.stem),
        "the prompt": lambda picture: one_line(config.prompt),
        "the folder's name": lambda picture: picture.folder_words,
    }
    texts, origins = [], []
    for picture in listing.pictures:
        options = ((lookups[source](picture), source) for source in wanted)
        text, origin = next(((t, s) for t, s in options if t), ("", ""))
        texts.append(text)
        origins.append(origin)
    if not_utf8:
        raise DatasetError(
            f"Dataset '{listing.folder.name}': {len(not_utf8)} caption files are not UTF-8 text: "
            f"{named(not_utf8)}.\nSave them again with the encoding UTF-8."
        )
    if config.captions not in ("auto", "prompt"):
        _raise_missing(listing, texts, wanted[0])
    names = {picture.name for picture in listing.pictures}
    unknown = [name for name in metadata if name not in names]
    notices = (f"{METADATA_NAME} names files that are not there: {named(unknown, 6)}",)
    return Captions(tuple(texts), in_words(origins), notices if unknown else ())


def words_of(stem: str) -> str:
    """The words in a file name: `sks_dog_001` is "sks dog", `0042` is ""."""
    return one_line(COUNTER.sub("", stem).replace("_", " "))


def in_words(origins: list[str]) -> str:
    """How many captions came from where: "5 of 6 from .txt files, 1 from the prompt"."""
    counts = Counter(origin for origin in origins if origin)
    parts = [f"{count} from {origin}" for origin, count in counts.most_common()]
    if empty := len(origins) - counts.total():
        parts.append(f"{empty} empty")
    if len(parts) == 1:
        return f"all {parts[0]}"
    count, rest = parts[0].split(" ", 1)
    return ", ".join([f"{count} of {len(origins)} {rest}", *parts[1:]])


def one_line(text: str) -> str:
    """The text with every run of white space, line ends too, as one blank."""
    return " ".join(text.split())


def _read_text(picture: PictureFile, suffix: str, not_utf8: list[str]) -> str:
    path = picture.beside.get(suffix)
    if path is None:
        return ""
    text = _decoded(path, not_utf8)
    return one_line(text)


def _decoded(path: Path, not_utf8: list[str]) -> str:
    """The text of a file, without a byte order mark; if it is not UTF-8, its name is noted."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        if path.name not in not_utf8:
            not_utf8.append(path.name)
        return ""


def _read_metadata(listing: Listing, not_utf8: list[str]) -> dict[str, str]:
    """Captions by picture name; a file in the dataset's folder wins over one in a sub-folder."""
    captions: dict[str, str] = {}
    for prefix, path in reversed(listing.metadata):
        for number, line in enumerate(_decoded(path, not_utf8).splitlines(), start=1):
            if line.strip():
                entry, problem = _parse_line(line)
                if problem:
                    raise DatasetError(
                        f"Dataset '{listing.folder.name}': line {number} of {prefix}{path.name} "
                        f'{problem}.\nA line looks like {{"file_name": "a.png", "text": "a dog"}}.'
                    )
                captions[prefix + entry[0]] = entry[1]
    return captions


def _parse_line(line: str) -> tuple[tuple[str, str], str]:
    """((file name, caption), problem): the problem is empty if there is none."""
    nothing = ("", "")
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as error:
        return nothing, f"is not JSON ({error.msg} at column {error.colno})"
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        return nothing, "has no file_name"
    key = next((key for key in METADATA_KEYS if entry.get(key) is not None), None)
    text = entry[key] if key else ""
    if not isinstance(text, str):
        return nothing, f"has a {key} that is no text"
    name = str(PurePosixPath(entry["file_name"].replace("\\", "/")))
    return (name, one_line(text)), ""


def _raise_missing(listing: Listing, texts: list[str], source: str) -> None:
    missing = [p.name for p, text in zip(listing.pictures, texts, strict=True) if not text]
    raise_listed(
        listing.folder.name, missing, len(texts), f"have no caption from {source}",
        "Write them, or set captions to 'auto', which takes the prompt where there is no other.",
    )  # fmt: skip
