"""What a run has to tell, read from its folder: the curve of its loss, and its previews."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

MOST_POINTS = 2000  # of a curve: more than a page has pixels for it

SEED = re.compile(r"\d{1,20}")
TIMES = ("began", "seconds", "at_work_since")

Row = Mapping[str, Any]  # of metrics.jsonl


def story(folder: Path, metrics: Sequence[Row]) -> dict[str, Any]:
    """The run in `folder`, as plain values.

    Returns:
        run: the folder's name.
        steps: how many there were.
        loss, validation: lists of [step, loss]; long ones as means of so many steps each.
        previews: a list of {"step", "prompt", "seed", "file", "changed"}: the seed in digits, "" if
            it is not known, the file's name in the folder of the previews and the time of its last
            change in seconds; of the steps there were alone, since a longer run may have left
            later ones.
    """
    steps = metrics[-1]["step"] if metrics else 0
    previews = [facts for facts in map(_preview, preview_files(folder)) if facts]
    return {
        "run": folder.name,
        "steps": steps,
        **{name: thinned(points) for name, points in curves(metrics).items()},
        "previews": [facts for facts in previews if facts["step"] <= steps],
    }


def times_of(folder: Path, begins: bool, anew: bool) -> dict[str, float]:
    """What run.json is to say of a run's times, after what it says now.

    Args:
        begins: the run is at work from now on; else that ends now.
        anew: nothing before counts.

    Returns:
        began: when the run began, in seconds since 1970; seconds: for how long it was trained, but
            for processes that were killed, which nobody timed; at_work_since: of one at work.
    """
    now, kept = time.time(), dict.fromkeys(TIMES, 0.0)
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        kept |= {name: float(told[name]) for name in TIMES if name in told}
    began, spent, since = kept.values()
    if begins:
        known = began and not anew
        return {"began": began if known else now, "seconds": spent if known else 0.0,
                "at_work_since": now}  # fmt: skip
    since = since or now
    return {"began": began or since, "seconds": round(spent + max(0.0, now - since), 1)}


def read_metrics(folder: Path, at_most: float = float("inf")) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl up to a step; those before the first that is damaged."""
    rows = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["step"] <= at_most:
                rows.append(row)
    return rows


def curves(metrics: Sequence[Row]) -> dict[str, list[list[float]]]:
    """The loss of every step, and the validation's where there was one, as [step, loss]."""
    return {
        name: [[row["step"], row[name]] for row in metrics if name in row]
        for name in ("loss", "validation")
    }


def thinned(points: list[list[float]], most: int = MOST_POINTS) -> list[list[float]]:
    """At most so many points: each the last step and the mean loss of a stretch of the curve."""
    stride = -(-len(points) // most) or 1
    if stride == 1:
        return points
    stretches = (points[i : i + stride] for i in range(0, len(points), stride))
    return [[part[-1][0], sum(loss for _, loss in part) / len(part)] for part in stretches]


def preview_files(folder: Path) -> list[Path]:
    """The previews of the run in `folder`, by step and then by prompt."""
    return sorted((folder / "previews").glob("step_*.png"))


def preview_steps(folder: Path, last: int) -> list[int]:
    """The steps up to `last` that have previews; a longer run may have left later ones."""
    steps = {_step(file) for file in preview_files(folder)}
    return sorted(step for step in steps if step <= last)


def last_preview(folder: Path, last: int) -> Path | None:
    """What the first prompt gave in the last preview up to step `last`."""
    steps = preview_steps(folder, last)
    found = [file for file in preview_files(folder) if steps and _step(file) == steps[-1]]
    return found[0] if found else None


def _step(file: Path) -> int:
    return int(file.stem.split("_")[1])


def seed_of(picture: Image.Image) -> str:
    """What a preview's noise was made from, in digits: there may be more than a page's numbers
    hold. Empty where it does not say."""
    seed = str(picture.info.get("seed", ""))
    return seed if SEED.fullmatch(seed) else ""


def _preview(file: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError, IndexError), Image.open(file) as picture:
        return {
            "step": _step(file),
            "prompt": str(picture.info.get("prompt", "")),  # before the pixels, which are not read
            "seed": seed_of(picture),
            "file": file.name,
            "changed": file.stat().st_mtime,
        }
    return None
