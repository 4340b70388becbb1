"""Presets: settings that somebody found good for a purpose, each set in a file of its own.

    presets/<method>/<name>.json
    {"models": ["sd15"], "about": "One person.", "source": "mine", "settings": {"steps": 1200}}

Users put theirs beside ours. A file that cannot be used is told of in a line and takes no other one
away. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from ..settings.field import raise_problems, settings_of
from ..settings.run import METHOD_CONFIGS, WITHOUT, config_groups, run_config

MOST_BYTES = 64 * 1024  # of a file; ours have less than one of these 64
MOST_CHARACTERS = 500  # of a text, and of a line that tells what is wrong
TEXT = (str, f"a text of 1 to {MOST_CHARACTERS} characters")
FACTS: Mapping[str, tuple[type, str]] = {  # what a file has, and what that may be
    "models": (list, "a list of names"),
    "about": TEXT,
    "source": TEXT,
    "settings": (dict, "settings and their values"),
}


@dataclass(frozen=True)
class Preset:
    """One set of settings.

    Attributes:
        method: one of METHODS.
        name: its file's, without the ending.
        models: names of the architectures that it is for.
        about: what it is good for, in a sentence.
        source: where its values come from.
        settings: values of some of the method's settings, allowed and free of contradictions
            where all others have their defaults.
    """

    method: str
    name: str
    models: tuple[str, ...]
    about: str
    source: str
    settings: Mapping[str, Any]


def read_presets(
    folder: Path, models: Collection[str]
) -> tuple[dict[str, list[Preset]], list[str]]:
    """The presets in `folder` by method, each method's by name; and what is wrong with other files.

    Args:
        folder: has a folder for each method; if it is missing there are no presets.
        models: names of the architectures that there are.
    """
    presets: dict[str, list[Preset]] = {method: [] for method in METHOD_CONFIGS}
    problems = []
    for path, file in _files(folder):
        try:
            preset = _read(path, file, models)
        except SettingsError as error:
            problems.append(_short(f"{path}: {'; '.join(error.problems)}"))
        else:
            presets[preset.method].append(preset)
    return presets, problems


def settings_for(method: str) -> set[str]:
    """Names of all settings that a run of `method` has."""
    known = {name for group in config_groups(method).values() for name in settings_of(group)}
    return known - {*WITHOUT.get(method, ())}


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """JSON files at any depth but hidden ones, with their paths in `folder`, in a fixed order."""
    found = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*")}
    for path in sorted(found, key=lambda path: (path.casefold(), path)):
        hidden = any(part.startswith(".") for part in path.split("/"))
        if not hidden and path.lower().endswith(".json") and found[path].is_file():
            yield path, found[path]


def _read(path: str, file: Path, models: Collection[str]) -> Preset:
    """The preset in `file`; SettingsError with all that is wrong with it."""
    method = path.rpartition("/")[0]
    if method not in METHOD_CONFIGS:
        allowed = ", ".join(f"{name}/" for name in METHOD_CONFIGS)
        raise SettingsError((f"lies in no method's folder; allowed: {allowed}",))
    facts = _content(file)
    raise_problems(_fact_problems(facts, models))
    settings = facts["settings"]
    known = settings_for(method)
    raise_problems(
        f"{name!r} is no setting of {method}; allowed: those that its node's help page and those "
        "of Optimizer, Loss, Run, Memory and Speed Settings list"
        for name in settings
        if name not in known
    )
    run_config(method, settings)
    return Preset(method, file.stem, **{**facts, "models": tuple(facts["models"])})


def _content(file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise SettingsError((f"cannot be read: {error.strerror}",)) from error
    if len(content) > MOST_BYTES:
        raise SettingsError((f"has more than {MOST_BYTES // 1024} KB; allowed: less",))
    try:
        text = content.decode("utf-8-sig")  # Notepad puts a mark before it
        return json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise SettingsError((f"is not JSON: {error}",)) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object with these entries, where JSON itself lets the last of several win."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} is there twice")
        found[name] = value
    return found


def _refuse(number: str) -> None:
    raise ValueError(f"{number} is no number")


def _fact_problems(facts: Any, models: Collection[str]) -> Iterator[str]:
    if not isinstance(facts, dict):
        yield f"is no object; allowed: one with {', '.join(FACTS)}"
        return
    for name in sorted(facts.keys() - FACTS.keys()):
        yield f"{name!r} is unknown; allowed: {', '.join(FACTS)}"
    for name, (kind, allowed) in FACTS.items():
        fact = facts.get(name)
        if not isinstance(fact, kind) or fact in ([], {}) or not str(fact).strip():
            yield f"{name} is missing or empty; allowed: {allowed}"
        elif isinstance(fact, str) and len(fact) > MOST_CHARACTERS:
            yield f"{name} has {len(fact)} characters; allowed: {allowed}"
    named = facts.get("models")
    for model in named if isinstance(named, list) else ():
        if not isinstance(model, str) or model not in models:
            yield f"models has {model!r}; allowed: {', '.join(models)}"


def _short(line: str) -> str:
    return line if len(line) <= MOST_CHARACTERS else f"{line[: MOST_CHARACTERS - 4]} ..."
