"""Whether files are what they were when a run was made, and what a dry run says of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..trainers.errors import RecipeError
from ..trainers.runs.fingerprint import same_run
from .recipe import Recipe, is_link

DATASETS = ("dataset", "class_dataset", "validation_dataset")
MOST_NAMED = 8


def check_files(recipe: Recipe, hashes: Mapping[tuple[str, str], str]) -> None:
    """See that each file that the run needed is there, and as long as it was.

    Args:
        hashes: SHA-256 by folder and name; those files are read too.

    Raises:
        RecipeError: with all that are missing or other files.
    """
    from ..nodes.host.runs.graph import path_of
    from ..trainers.runs.files import sha256

    others = []
    for file in recipe.files:
        key = file["folder"], file["name"]
        path, shown = path_of(*key), f"{key[0]}/{key[1]}"
        if path is None:
            others.append(f"{shown} is not there")
        elif path.stat().st_size != file["bytes"]:
            others.append(f"{shown} has {path.stat().st_size} bytes, had {file['bytes']}")
        elif key in hashes and sha256(path) != hashes[key]:
            others.append(f"{shown} has another content")
    if others:
        raise _others(others)


def check_same(recipe: Recipe, facts: Mapping[str, Any], target: str) -> None:
    """See that what is to be trained, and on what, is what the run had.

    Args:
        facts: as a run's run.json has them, of the run that is about to start.

    Raises:
        RecipeError: with all that is something else.
    """
    was = recipe.facts
    if was is None:
        return
    others = []
    now_base, was_base = facts["base_model"], was.get("base_model", {})
    for name in was_base.keys() | now_base.keys():
        if name != "computes_in" and now_base.get(name) != was_base.get(name):
            files = ", ".join(_names(recipe, target, name)) or "of the graph"
            others.append(f"{name} ({files}) has other weights or patches")
    for name in DATASETS:
        if name in was:
            others += [f"{name}: {what}" for what in _pictures(was[name], facts[name])]
    if others:
        raise _others(sorted(others))


def why_another(recipe: Recipe, facts: Mapping[str, Any], fingerprint: str) -> str | None:
    """Why this is not the run of the run.json, whose states and results do not count then."""
    was = recipe.facts
    if was is None or was.get("fingerprint") == fingerprint:
        return None
    decides = same_run(facts)  # without settings that stand as they did before they were there
    pairs = [("computes in", was["base_model"], facts["base_model"], ("computes_in",))]
    groups = ("made_with", "training", "objective", "own", "validation")
    for group in groups:
        before, after = was.get(group, {}), facts[group]
        names = [name for name in after if name in decides[group] or name in before]
        pairs.append(("", before, after, tuple(names)))
    pairs.append(("", was, facts, ("format",)))
    resumed = ({"begins with": told.get("resumed")} for told in (was, facts))
    pairs.append(("", next(resumed), next(resumed), ("begins with",)))
    reasons = [
        f"{title or name} {after[name]}, was {before.get(name)}"
        for title, before, after, names in pairs
        for name in names
        if before.get(name) != after[name]
    ]
    known = was.get("mended", ())
    reasons += [f"now {what}" for what in facts.get("mended", ()) if what not in known]
    return f"a run of its own, not that of the file: {', '.join(reasons) or 'the file was edited'}"


def exported_hashes(path: Path) -> dict[tuple[str, str], str]:
    """What files.json beside a run.json says, as Export Run writes it."""
    beside = path.parent / "files.json"
    if not beside.is_file():
        return {}
    try:
        files = json.loads(beside.read_text(encoding="utf-8"))["files"]
        return {(file["folder"], file["name"]): file["sha256"] for file in files}
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"'{beside}' is damaged: {error}.\nExport the run again, or delete this file."
        ) from error


def _others(others: list[str]) -> RecipeError:
    return RecipeError(
        f"ComfyUI's folders do not hold what the run was made with: {_listed(others)}.\n"
        "Put that there, or go on with what is there: --other-files."
    )


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _names(recipe: Recipe, target: str, socket: str) -> Iterator[str]:
    """Files that a socket of the training node is made from."""
    files = {file["name"]: f"{file['folder']}/{file['name']}" for file in recipe.files}
    ahead, seen = [recipe.nodes[target]["inputs"].get(socket)], set()
    while ahead:
        link = ahead.pop()
        if not is_link(link) or link[0] in seen or link[0] not in recipe.nodes:
            continue
        seen.add(link[0])
        for value in recipe.nodes[link[0]]["inputs"].values():
            if isinstance(value, str) and value.replace("\\", "/") in files:
                yield files[value.replace("\\", "/")]
            ahead.append(value)


def _pictures(was: Any, now: Any) -> Iterable[str]:
    """What is other in a dataset, as run.json lists it."""
    if was is None or now is None:
        return [] if was == now else ["there was none" if was is None else "there is none now"]
    if was["fingerprint"] == now["fingerprint"]:
        return []
    before, after = ({p["name"]: p for p in listing["pictures"]} for listing in (was, now))
    found = [f"{name} is gone" for name in before if name not in after]
    found += [f"{name} is new" for name in after if name not in before]
    for name in before.keys() & after.keys():
        if before[name]["caption"] != after[name]["caption"]:
            found.append(f"{name} has another caption")
        elif before[name]["bucket_px"] != after[name]["bucket_px"]:
            found.append(f"{name} has another size")
        elif before[name].get("controls") != after[name].get("controls"):
            found.append(f"{name} has other control images")
    return found or [f"pictures or masks of '{now['name']}' have another content"]
