"""What each picture of a folder is called: from files, names or the prompt."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DatasetError
from ..settings.dataset import DatasetConfig
from .listing import METADATA_NAME, Listing, PictureFile, named, raise_listed
from .tokens import embeddings_in, rare_words

WINDOW_TOKENS = 75  # what CLIP reads at a time, its two marks aside
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
NOT_WRITTEN = ("the file name", "the prompt", "the folder's name")  # captions that nobody wrote
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

    White space is reduced to single blanks and empty lines are left out. A caption of several
    lines keeps them, for enable_wildcard; see trainers.objective.prompts. An empty file counts as
    none.

    Raises:
        DatasetError: files are not UTF-8, a line of metadata.jsonl cannot be used, or the chosen
            source is missing for some pictures.
    """
    wanted = SOURCES[config.captions]
    not_utf8: list[str] = []
    metadata = _read_metadata(listing, not_utf8) if METADATA_NAME in wanted else {}
    found = _look_up(listing, wanted, metadata, one_line(config.prompt), not_utf8)
    texts, origins = [text for text, _ in found], [origin for _, origin in found]
    if not_utf8:
        raise DatasetError(
            f"Dataset '{listing.folder.name}': {len(not_utf8)} caption files are not UTF-8 text: "
            f"{named(not_utf8)}.\nSave them again with the encoding UTF-8."
        )
    if config.captions not in ("auto", "prompt"):
        _raise_missing(listing, texts, wanted[0])
    names = {picture.name for picture in listing.pictures}
    unknown = [name for name in metadata if name not in names]
    notices = _unsaid(config.prompt, found)
    if unknown:
        notices.append(f"{METADATA_NAME} names files that are not there: {named(unknown, 6)}")
    return Captions(tuple(texts), in_words(origins), tuple(notices))


def own_captions(listing: Listing, choice: str) -> tuple[list[tuple[str, str]], list[str]]:
    """What each picture has of its own, and what is wrong with the files it comes from.

    Args:
        choice: as DatasetConfig.captions; the prompt and the folder's name count for nothing here.

    Returns:
        (text, source) of each picture, both empty where it has none; sentences on problems, which
        a training would refuse.
    """
    wanted = [s for s in SOURCES[choice] if s not in ("the prompt", "the folder's name")]
    not_utf8: list[str] = []
    problems, metadata = [], {}
    if METADATA_NAME in wanted:
        try:
            metadata = _read_metadata(listing, not_utf8)
        except DatasetError as error:
            problems.append(str(error))
    found = _look_up(listing, wanted, metadata, "", not_utf8)
    if not_utf8:
        problems.append(f"Not UTF-8 text: {named(not_utf8)}.\nSave them again as UTF-8.")
    return found, problems


def word_notices(
    texts: Sequence[str], num_tokens: Sequence[int], is_embedding: Callable[[str], bool]
) -> list[str]:
    """What there is to say about the words of captions, each different one counted once.

    Args:
        num_tokens: how many tokens CLIP makes of each text.
        is_embedding: whether there is an embedding of that name.
    """
    notices = []
    names = dict.fromkeys(name for text in texts for name in embeddings_in(text))
    if unknown := [f"embedding:{name}" for name in names if not is_embedding(name)]:
        notices.append(f"no such embedding, left out unless the clip learned it: {named(unknown)}")
    long = len({t for t, n in zip(texts, num_tokens, strict=True) if n > WINDOW_TOKENS})
    if long:
        are = "1 caption is" if long == 1 else f"{long} captions are"
        notices.append(
            f"{are} longer than {WINDOW_TOKENS} CLIP tokens: read whole, in several windows; "
            "nothing is cut"
        )
    return notices


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


def clean_lines(text: str) -> str:
    """The text without empty lines, each line as `one_line` has it."""
    return "\n".join(filter(None, map(one_line, text.splitlines())))


def one_line(text: str) -> str:
    """The text with every run of white space, line ends too, as one blank."""
    return " ".join(text.split())


def with_prefix(prefix: str, text: str) -> str:
    """The caption with a trigger word before it, a comma between, unless it begins with it."""
    words = one_line(prefix)
    bare = words.rstrip(" ,.;:")
    begins = text[: len(bare)].casefold() == bare.casefold()
    if not bare or (begins and not text[len(bare) :][:1].isalnum()):
        return text
    if not text:
        return bare
    return words + (", " if words == bare else " ") + text


def _look_up(
    listing: Listing,
    wanted: Iterable[str],
    metadata: Mapping[str, str],
    prompt: str,
    not_utf8: list[str],
) -> list[tuple[str, str]]:
    """The first text that `wanted` has for each picture and where it is from, or two empty ones."""
    lookups: dict[str, Callable[[PictureFile], str]] = {
        METADATA_NAME: lambda picture: metadata.get(picture.name, ""),
        ".txt files": lambda picture: _read_text(picture, ".txt", not_utf8),
        ".caption files": lambda picture: _read_text(picture, ".caption", not_utf8),
        "the file name": lambda picture: words_of(picture.path.stem),
        "the prompt": lambda picture: prompt,
        "the folder's name": lambda picture: picture.folder_words,
    }
    found = []
    for picture in listing.pictures:
        options = ((lookups[source](picture), source) for source in wanted)
        found.append(next(((text, source) for text, source in options if text), ("", "")))
    return found


def _unsaid(prompt: str, found: Sequence[tuple[str, str]]) -> list[str]:
    """A notice where the captions of files lack the prompt's rare word, which is lost with it.

    Quiet where they have one, be it another: a prompt that is not used may say what it likes.
    """
    written = [text for text, source in found if source and source not in NOT_WRITTEN]
    if not written or any(map(rare_words, written)) or not (rare := rare_words(prompt)):
        return []
    they = f"none of {len(written)} captions from files says"
    if len(written) == 1:
        they = "the one caption from a file does not say"
    return [f"{they} '{rare[0]}', the prompt's rare word (they replace the prompt)"]


def _read_text(picture: PictureFile, suffix: str, not_utf8: list[str]) -> str:
    path = picture.beside.get(suffix)
    if path is None:
        return ""
    return clean_lines(_decoded(path, not_utf8))


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
    return (name, clean_lines(text)), ""


def _raise_missing(listing: Listing, texts: list[str], source: str) -> None:
    missing = [p.name for p, text in zip(listing.pictures, texts, strict=True) if not text]
    raise_listed(
        listing.folder.name, missing, len(texts), f"have no caption from {source}",
        "Write them, or set captions to 'auto', which takes the prompt where there is no other.",
    )  # fmt: skip
