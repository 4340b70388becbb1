"""What a run's folder holds, read so that nothing in it can hurt: no link is followed, nothing is
read that is no plain file or is far too long, and what cannot be read is a sentence."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import RunError
from ..folder import RESULT
from ..kept.workflow import WORKFLOW_JSON
from .names import RUN_JSON, is_link

LABEL_JSON, METRICS_JSONL, LOCK = "label.json", "metrics.jsonl", ".lock"
STATE, PREVIEW = re.compile(r"(\d{1,15})\.pt"), re.compile(r"step_(\d{1,15})_(\d{1,9})\.png")
MOST_FILES = 50_000  # of a run that are looked at
MOST_DEPTH = 6
MOST_JSON_BYTES = 32_000_000
MOST_METRICS_BYTES = 500_000_000  # about four million steps
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
OF_THE_RUN = {
    RUN_JSON: "settings", METRICS_JSONL: "metrics", WORKFLOW_JSON: "workflow", LABEL_JSON: "label",
    LOCK: "lock",
}  # fmt: skip
Stamp = tuple[int, int]  # time of the last change in ns, size in bytes


class UnreadableError(RunError):
    """A file of a run that cannot be read; the message is a sentence without a path."""


@dataclass(frozen=True)
class File:
    """A plain file of a run.

    Attributes:
        name: its path in the run's folder, with forward slashes.
        kind: settings, metrics, workflow, label, lock, state, preview, result or other.
        changed: seconds.
    """

    name: str
    kind: str
    num_bytes: int
    changed: float


@dataclass
class Content:
    """What lies in a run's folder.

    Attributes:
        stamps: of folders, and of files that are read; when they stay, all of this does, but for
            files that others write to in place.
        problems: what was left out, in sentences.
    """

    files: list[File] = field(default_factory=list)
    stamps: dict[str, Stamp] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[File]:
        return [file for file in self.files if file.kind == kind]

    def has(self, name: str) -> bool:
        return any(file.name == name for file in self.files)


def scan(folder: Path) -> Content:
    """All plain files of a run, by name."""
    content, ahead = Content(), [("", 0)]
    while ahead:
        inside, depth = ahead.pop()
        place = f"{folder}/{inside}" if inside else str(folder)
        try:
            content.stamps[inside] = _stamp(os.stat(place))
            with os.scandir(place) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            content.problems.append(f"{inside or 'The folder'} cannot be read: {error.strerror}.")
            continue
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if len(content.files) >= MOST_FILES:
                content.problems.append(
                    f"It has more than {MOST_FILES:,} files; some are left out."
                )
                return content
            if _add(content, entry, name) and depth < MOST_DEPTH:
                ahead.append((name, depth + 1))
    return content


def _add(content: Content, entry: os.DirEntry[str], name: str) -> bool:
    """Note what an entry is; whether it is a folder to look into."""
    try:
        facts = entry.stat(follow_symlinks=False)
    except OSError:  # gone since
        return False
    kind = kind_of(name)
    if is_link(facts):
        content.problems.append(f"{name} is a link, which is not followed.")
    elif stat.S_ISDIR(facts.st_mode):
        if kind in ("other", "lock"):
            return True
        content.problems.append(f"{name} is a folder, where a file should be.")
    elif not stat.S_ISREG(facts.st_mode):
        content.problems.append(f"{name} is no plain file.")
    else:
        if name in (RUN_JSON, METRICS_JSONL, LABEL_JSON):
            content.stamps[name] = _stamp(facts)
        elif name in ("state", "previews"):
            content.problems.append(f"{name} is a file, where a folder should be.")
        content.files.append(File(name, kind, facts.st_size, facts.st_mtime))
    return False


def kind_of(name: str) -> str:
    """What a file of a run is, by its path in the run's folder."""
    room, _, last = name.rpartition("/")
    if not room and (kind := OF_THE_RUN.get(last)):
        return kind
    if not room and last.startswith("result-") and last.endswith(".safetensors"):
        return "result"
    if room == "state" and (STATE.fullmatch(last) or last.endswith(".part")):
        return "state"
    return "preview" if room == "previews" and PREVIEW.fullmatch(last) else "other"


def is_unchanged(folder: Path, stamps: Mapping[str, Stamp]) -> bool:
    """Whether folders and files have the stamps that they had."""
    place = str(folder)
    try:
        return all(
            _stamp(os.stat(f"{place}/{name}" if name else place)) == stamp
            for name, stamp in stamps.items()
        )
    except OSError:
        return False


def _stamp(facts: os.stat_result) -> Stamp:
    return facts.st_mtime_ns, facts.st_size


# -- files --------------------------------------------------------------------


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """The bytes of a plain file.

    Raises:
        FileNotFoundError: it is not there.
        UnreadableError: it is something else, too long, or cannot be read.
    """
    try:
        if is_link(os.lstat(path)):
            raise UnreadableError(f"{path.name} is a link, which is not followed.")
        handle = os.open(path, os.O_RDONLY | NOFOLLOW)
        with open(handle, "rb") as file:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                raise UnreadableError(f"{path.name} is no plain file.")
            if facts.st_size > most_bytes:
                told = f"{facts.st_size / 1e6:,.0f} MB; at most {most_bytes / 1e6:,.0f} are read"
                raise UnreadableError(f"{path.name} has {told}.")
            return file.read(most_bytes)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(f"{path.name} cannot be read: {error.strerror}.") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; numbers that are not finite are None.

    Raises:
        FileNotFoundError: it is not there.
        UnreadableError: it is something else.
    """
    content = read_bytes(path, MOST_JSON_BYTES)
    try:
        told = json.loads(content, parse_float=finite, parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{path.name} is not JSON ({_first_line(error)}).") from error
    if not isinstance(told, dict):
        raise UnreadableError(f"{path.name} holds a {type(told).__name__}, where an object should.")
    return told


def read_workflow(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The graph of the run in `folder` as a page had it, and why it cannot be read."""
    try:
        told = read_json(folder / WORKFLOW_JSON)
    except FileNotFoundError:
        return None, []  # it came from no page, or from an earlier version
    except UnreadableError as error:
        return None, [str(error)]
    if not isinstance(told.get("nodes"), list):
        return None, [f"{WORKFLOW_JSON} holds no graph."]
    return told, []


def finite(text: str) -> float | None:
    """The number that a text is, if it is finite."""
    number = float(text)
    return number if math.isfinite(number) else None


def result_metadata(path: Path) -> dict[str, Any]:
    """What the header of a safetensors file says of it; nothing where that cannot be read."""
    try:
        if is_link(os.lstat(path)):
            return {}
        with open(os.open(path, os.O_RDONLY | NOFOLLOW), "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= MOST_JSON_BYTES:
                return {}
            told = json.loads(file.read(length))
            metadata = told.get("__metadata__") if isinstance(told, dict) else None
            return metadata if isinstance(metadata, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def result_steps(name: str) -> tuple[int, int] | None:
    """After how many steps a result was kept, and which of several files it is."""
    found = RESULT.fullmatch(name)
    return (int(found[1]), int(found[2] or 1)) if found and len(found[1]) <= 15 else None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
