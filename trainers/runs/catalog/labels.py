"""What people call a run and say of it. It lies beside run.json, and decides nothing of the run."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import SettingsError
from ..files import save_error, write_whole
from .reading import LABEL_JSON, UnreadableError, read_json

WRITING = threading.Lock()  # two pages may change two things of one label at once
MOST_CHARACTERS = {"title": 200, "note": 10_000}


@dataclass(frozen=True)
class Label:
    """A run's label.

    Attributes:
        title: its name in lists; empty for the name that it was trained under.
        pinned: neither deleted nor made smaller.
    """

    title: str = ""
    note: str = ""
    pinned: bool = False


def read_label(folder: Path) -> tuple[Label, list[str]]:
    """The label of the run in `folder`, and what of it cannot be read."""
    try:
        told = read_json(folder / LABEL_JSON)
    except FileNotFoundError:
        return Label(), []
    except UnreadableError as error:
        return Label(), [str(error)]
    fit = {name: told[name] for name, value in asdict(Label()).items()
           if type(told.get(name)) is type(value)}  # fmt: skip
    for name, most in MOST_CHARACTERS.items():
        fit[name] = fit.get(name, "")[:most]
    return Label(**fit), []


def write_label(folder: Path, asked: Mapping[str, Any]) -> Label:
    """Change what is asked of a run's label.

    Args:
        asked: some of title, note and pinned.

    Raises:
        SettingsError: a value is not allowed.
        SaveError: it cannot be written.
    """
    if problems := [problem for name, value in asked.items() if (problem := _wrong(name, value))]:
        raise SettingsError(tuple(problems))
    told = dict(asked)
    if "title" in told:
        told["title"] = " ".join(told["title"].split())
    with WRITING:
        label = Label(**{**asdict(read_label(folder)[0]), **told})
        _write(folder / LABEL_JSON, label)
    return label


def _write(path: Path, label: Label) -> None:
    if label != Label():
        write_whole(path, json.dumps(asdict(label), indent=1).encode())
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise save_error(path, 0, error) from error


def _wrong(name: str, value: Any) -> str | None:
    if name == "pinned":
        return None if isinstance(value, bool) else f"pinned is {value!r}; allowed: true or false"
    if (most := MOST_CHARACTERS.get(name)) is None:
        return f"{name[:100]!r} is unknown; allowed: {', '.join(asdict(Label()))}"
    if not isinstance(value, str):
        return f"{name} is no text; allowed: a text of at most {most:,} characters"
    if len(value) > most:
        return f"{name} has {len(value):,} characters; allowed: at most {most:,}"
    return None
