"""One run with all that is known of it: curve, previews, states, results, settings, files."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.pictures import READ_ERRORS
from ..pictures.plot import smooth
from ..story import seed_of, thinned
from .curve import Curve, curve_of, read_curve, short
from .names import is_link
from .reading import NOFOLLOW, STATE, Content, File
from .rows import Found, Live, preview_place, results_of
from .settings import shown_settings

MOST_PREVIEWS, MOST_FILES, MOST_PROMPT = 1000, 2000, 2000
ORDER = (
    "settings", "metrics", "result", "state", "workflow", "other", "label", "lock", "preview",
)  # fmt: skip


def detail(
    folder: Path,
    found: Found,
    row: Mapping[str, Any],
    live: Live | None = None,
    titles: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The row, and beside it:

    curve: as story.py has it, for at most MOST_PREVIEWS previews; states: [{"step", "bytes"}];
    results: [{"step", "bytes", "file"}]; best: see `best`; settings: see settings.py; files:
    [{"file", "bytes", "kind"}].

    Args:
        row: as it is now.
        live: this run's training, if it is at work in this process.
    """
    curve = read_curve(folder) if live is None else curve_of(list(live.growing.rows))
    previews, problems = shown_previews(folder, found.content, curve.steps)
    states, results = states_of(found.content), results_of(found.content)
    files = sorted(found.content.files, key=lambda file: (ORDER.index(file.kind), file.name))
    if len(files) > MOST_FILES:
        problems.append(f"{len(files):,} files; the first {MOST_FILES:,} are listed.")
    return {
        **row,
        "curve": {
            "run": found.name,
            "steps": curve.steps,
            "loss": thinned(curve.loss),
            "validation": thinned(curve.validation),
            "previews": previews,
        },
        "states": [{"step": step, "bytes": file.num_bytes} for step, file in states.items()],
        "results": [
            {"step": step, "bytes": file.num_bytes, "file": file.name}
            for step, file in results.items()
        ],
        "best": best(curve, sorted({*states, *results})),
        "settings": shown_settings(row["method"], found.facts, titles or {}),
        "files": [
            {"file": file.name, "bytes": file.num_bytes, "kind": file.kind}
            for file in files[:MOST_FILES]
        ],
        "problems": list(dict.fromkeys([*row["problems"], *problems])),
    }


def states_of(content: Content) -> dict[int, File]:
    """The states that a run can go on from, by steps."""
    names = ((STATE.fullmatch(file.name.rpartition("/")[2]), file) for file in content.of("state"))
    return dict(sorted((int(name[1]), file) for name, file in names if name))


def best(curve: Curve, kept: Sequence[int]) -> dict[str, Any] | None:
    """Where the run was at its best.

    Args:
        kept: steps of which there is a state or a result.

    Returns:
        {"step", "loss", "of", "kept"}: of is "validation" where there was one, kept the step
        nearest to it of which something is kept, or None; else of is "loss", the smoothed one (see
        plot.py), and step is one of those kept. None where there is nothing to go by.
    """
    kept = [step for step in kept if step <= curve.steps]
    if curve.validation:
        step, loss = min(curve.validation, key=lambda point: point[1])
        near = min(kept, key=lambda one: abs(one - step), default=None)
        return {"step": int(step), "loss": short(loss), "of": "validation", "kept": near}
    if not curve.loss or not kept:
        return None
    steps = [step for step, _ in curve.loss]
    smoothed = smooth(np.array([loss for _, loss in curve.loss]))
    losses = {}
    for step in kept:
        if place := bisect_right(steps, step):
            losses[step] = float(smoothed[place - 1])
    if not losses:
        return None
    step = min(losses, key=lambda one: losses[one])
    return {"step": step, "loss": short(losses[step]), "of": "loss", "kept": step}


def shown_previews(
    folder: Path, content: Content, steps: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """The previews as story.py has them, and what of them is left out.

    Of more than MOST_PREVIEWS, those of every so manieth step are shown, from the last one back.
    """
    places = {preview_place(file): file for file in content.of("preview")}
    with_any = sorted({step for step, _ in places if step <= steps or not steps})
    count = sum(1 for step, _ in places if step <= steps or not steps)
    stride = -(-count // MOST_PREVIEWS) or 1
    chosen = set(with_any[::-1][::stride])
    shown, broken = [], 0
    for place in sorted(place for place in places if place[0] in chosen):
        file = places[place]
        told = _told(str(folder / file.name), file.changed, file.num_bytes)
        if told is None:
            broken += 1
            continue
        name = file.name.rpartition("/")[2]
        shown.append({"step": place[0], **told, "file": name, "changed": file.changed})
    problems = []
    if stride > 1:
        problems.append(
            f"{count:,} previews; those of {len(chosen):,} of {len(with_any):,} steps are shown."
        )
    if broken:
        problems.append(f"{broken:,} preview{'s' * (broken > 1)} cannot be read.")
    return shown[-MOST_PREVIEWS:], problems


@lru_cache(2 * MOST_PREVIEWS)
def _told(path: str, changed: float, num_bytes: int) -> dict[str, str] | None:
    """The prompt and the seed that a preview was made with, before its pixels; None where it is no
    picture."""
    try:
        if is_link(os.lstat(path)):
            return None
        with open(os.open(path, os.O_RDONLY | NOFOLLOW), "rb") as file, Image.open(file) as picture:
            prompt = str(picture.info.get("prompt", ""))[:MOST_PROMPT]
            return {"prompt": prompt, "seed": seed_of(picture)}
    except READ_ERRORS:
        return None
