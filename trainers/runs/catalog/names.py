"""Which names are runs, and where they lie: a name is looked at before it becomes a path."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from ...errors import RunError
from ..files import BAD_SIGNS, RESERVED

TRASH = "trash"
# What else lies in the folder of all runs; see nodes/host.
NO_RUNS = ("class_images", "compare", "exports", TRASH)
NAME = re.compile(r"(lora|dreambooth|textual_inversion)-(.+)-[0-9a-f]{8}")
RUN_JSON = "run.json"
MOST_CHARACTERS = 255
LINKS = (0xA000000C, 0xA0000003)  # Windows' reparse tags of symbolic links and of junctions


class UnknownRunError(RunError):
    """There is no run of that name."""

    def __init__(self, name: object) -> None:
        super().__init__(
            f"There is no run {str(name)[:MOST_CHARACTERS]!r}; allowed: the name of a run's folder "
            "in output/personalize.\nLoad the list of runs again."
        )


def is_link(facts: os.stat_result) -> bool:
    """Whether these facts, of `os.lstat`, are of something that leads elsewhere."""
    return stat.S_ISLNK(facts.st_mode) or getattr(facts, "st_reparse_tag", 0) in LINKS


def is_name(name: object) -> bool:
    """Whether a folder of a run may be called so, on any system."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= MOST_CHARACTERS
        and not re.search(r"[/\\]", name)
        and not BAD_SIGNS.search(name)
        and not RESERVED.fullmatch(name)
        and name[0] != "."
        and name[-1] not in ". "
        and name.casefold() not in NO_RUNS
    )


def run_path(parent: Path, name: object) -> Path:
    """The folder of a run in `parent`, the folder of all runs.

    Raises:
        UnknownRunError: the name is none, or is not that of a folder of its own there.
    """
    if not isinstance(name, str) or not is_name(name) or not _is_run(parent / name):
        raise UnknownRunError(name)
    return parent / name


def run_names(parent: Path) -> tuple[list[str], list[str]]:
    """Names of all runs in `parent`, and a sentence for each thing that may be one but is left out.

    A folder is a run by its name, or by its run.json: then somebody has called it otherwise.
    """
    names, problems = [], []
    for entry in _entries(parent):
        if entry.name.startswith(".") or entry.name.casefold() in NO_RUNS:
            continue
        try:
            facts = entry.stat(follow_symlinks=False)
        except OSError:  # gone since
            continue
        if is_link(facts):
            problems.append(f"{entry.name!r} is a link, which is not followed.")
        elif not _holds_run(entry.path, entry.name, facts):
            continue
        elif is_name(entry.name):
            names.append(entry.name)
        else:
            problems.append(f"{entry.name!r} cannot be the name of a run on every system.")
    return sorted(names), sorted(problems)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            yield from found
    except OSError:
        return  # nothing was trained yet


def _is_run(folder: Path) -> bool:
    try:
        return _holds_run(str(folder), folder.name, os.lstat(folder))
    except (OSError, ValueError):
        return False


def _holds_run(folder: str, name: str, facts: os.stat_result) -> bool:
    if is_link(facts) or not stat.S_ISDIR(facts.st_mode):
        return False
    return bool(NAME.fullmatch(name)) or os.path.lexists(f"{folder}/{RUN_JSON}")
