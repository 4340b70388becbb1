"""One run as a list shows it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from ...models.architectures import ARCHITECTURES
from ...settings.run import METHOD_CONFIGS
from ..folder import TRAINING
from ..kept.workflow import WORKFLOW_JSON
from .curve import Growing, Summary, read_summary, short
from .labels import Label, read_label
from .names import NAME, RUN_JSON
from .reading import (
    LABEL_JSON,
    LOCK,
    PREVIEW,
    Content,
    File,
    Stamp,
    UnreadableError,
    read_json,
    result_metadata,
    result_steps,
    scan,
)

DONE, STOPPED, UNFINISHED, DAMAGED = "done", "stopped", "unfinished", "damaged"
STATES = {"done": DONE, "stopped": STOPPED, "interrupted": UNFINISHED, TRAINING: UNFINISHED}
BYTES = {"result": "results", "state": "states", "preview": "previews"}  # all else is "other"
MODELS = ("checkpoints", "diffusion_models", "unet")  # the host's folders of base models
NO_TRAINING = ("lock", "label", "workflow")  # kinds of files that also change without one
MOST_TEXT = 300
SETTLED_SECONDS = 3.0  # clocks of file systems are coarse: what is younger may change unseen
RECENT_SECONDS = 86_400  # a training that wrote nothing for so long is taken for a killed one
LATEST_SECOND = 2.5e11  # the year 9892: what comes later is no time


@dataclass(frozen=True)
class Live:
    """The training at work in this process.

    Attributes:
        run: its folder's name.
        growing: its metrics, which grow.
        since: when it began, in seconds since 1970.
    """

    run: str
    growing: Growing
    since: float


@dataclass(frozen=True)
class Found:
    """A run as it was read.

    Attributes:
        row: see `row_of`; its state is what run.json says.
        settled: whether later changes would show in its content's stamps.
        is_whole: else its row and its content's stamps are all that is known.
    """

    name: str
    content: Content
    facts: Mapping[str, Any]
    row: dict[str, Any]
    settled: bool
    is_whole: bool = True

    @property
    def lasts(self) -> bool:
        """Whether its row is right as long as its content's stamps stay."""
        # What could not be read may be readable later, without a change of the file.
        is_sure = self.settled and not self.row["problems"]
        return is_sure and self.facts.get("status") != TRAINING

    @classmethod
    def short(cls, row: dict[str, Any], stamps: dict[str, Stamp]) -> Found:
        """One that lasts, without what no list needs: hundreds would fill the memory with it."""
        return cls(row["run"], Content(stamps=stamps), {}, row, settled=True, is_whole=False)


def find(folder: Path) -> Found:
    """Read the run in `folder`."""
    started = time.time()
    content = scan(folder)
    problems = list(content.problems)
    facts: dict[str, Any] = {}
    try:
        facts = read_json(folder / RUN_JSON)
    except FileNotFoundError:
        problems.append(f"{RUN_JSON} is not there.")
    except UnreadableError as error:
        problems.append(str(error))
    curve = read_summary(folder)
    label, wrong = read_label(folder) if content.has(LABEL_JSON) else (Label(), [])
    problems += [*curve.problems, *wrong]
    row = row_of(folder, content, facts, curve, label)
    problems += _missing(row, facts, content)
    row["problems"] = list(dict.fromkeys(problems))
    newest = max((changed for changed, _ in content.stamps.values()), default=0) / 1e9
    settled = abs(started - newest) > SETTLED_SECONDS
    return Found(folder.name, content, facts, row, settled)


def row_of(
    folder: Path, content: Content, facts: Mapping[str, Any], curve: Summary, label: Label
) -> dict[str, Any]:
    """What a list shows; every value is of its kind, whatever run.json has in its place."""
    named = NAME.fullmatch(folder.name)
    results = results_of(content)
    told = _told_by_result(folder, facts, results)
    method = text(facts.get("method")) or (named[1] if named else "")
    steps = curve.steps or max(results, default=0)
    name = named[2] if named else folder.name
    own = [file for file in content.files if file.kind not in NO_TRAINING]
    changed = max((file.changed for file in own), default=0.0)
    architecture = text(facts.get("architecture"))
    return {
        "run": folder.name,
        "title": label.title or name,
        "renamed": bool(label.title),
        "method": method,
        "model": base_model(facts) or text(told.get("ss_sd_model_name")),
        "architecture": architecture,
        "architecture_title": title_of(architecture),
        "data": text(inside(facts, "dataset", "name")) or (name if named else ""),
        "pictures": len(listed(inside(facts, "dataset", "pictures"))),
        "steps": steps,
        "planned_steps": planned_steps(facts, curve, steps),
        "began": began(facts, told, own),
        "changed": changed,
        "seconds": seconds(facts, told),
        "state": STATES.get(text(facts.get("status")), DAMAGED if not facts else UNFINISHED),
        "loss": curve.sparks,
        "last_loss": curve.last,
        "preview": last_preview(content, steps),
        "bytes": bytes_of(content),
        "graph": has_graph(facts) or content.has(WORKFLOW_JSON),
        "note": label.note,
        "pinned": label.pinned,
    }


def now(found: Found, live: Live | None, parent: Path) -> dict[str, Any]:
    """The row as it is at this moment: of a run that is at work, here or elsewhere."""
    if live is not None and live.run == found.name:
        return found.row | _working(found, live)
    recent = time.time() - found.row["changed"] < RECENT_SECONDS
    if recent and found.facts.get("status") == TRAINING and found.content.has(LOCK):
        if is_held(parent / found.name):
            return found.row | {"state": TRAINING}
    return found.row


def _working(found: Found, live: Live) -> dict[str, Any]:
    rows = live.growing.rows
    told: dict[str, Any] = {"state": TRAINING}
    before = found.row["seconds"] or 0
    told["seconds"] = round(before + max(0.0, time.time() - live.since), 1)
    if rows:
        last = rows[-1]
        told |= {
            "steps": last["step"],
            "planned_steps": last.get("num_steps", found.row["planned_steps"]),
            "loss": live.growing.sparkline(),
            "last_loss": short(last["loss"]),
            "preview": last_preview(found.content, last["step"]),
        }
    # A folder that was just made has no run.json yet.
    told["problems"] = [] if not found.facts else found.row["problems"]
    return told


def is_held(folder: Path) -> bool:
    """Whether some process trains this run."""
    lock = folder / LOCK
    try:
        if not lock.is_file():  # to ask would make one
            return False
        with filelock.FileLock(lock, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # cannot be opened, so nobody here can train it
        return False


# -- what run.json says -------------------------------------------------------


def text(value: object) -> str:
    """The value if it is a text, not too long; else nothing."""
    return value[:MOST_TEXT] if isinstance(value, str) else ""


def listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def inside(facts: object, *keys: str) -> Any:
    """What stands there in objects inside of objects, or None."""
    for key in keys:
        # Not Mapping, which takes long to be asked: hundreds of runs come here often.
        facts = facts.get(key) if isinstance(facts, dict) else None
    return facts


def number(value: object) -> float | None:
    """The value if it is a number that can be a time or a length of one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < LATEST_SECOND else None


def title_of(architecture: str) -> str:
    """What people call an architecture."""
    record = ARCHITECTURES.get(architecture)
    return record.title if record else architecture


def has_graph(facts: Mapping[str, Any]) -> bool:
    """Whether run.json says what graph the run came from."""
    nodes = inside(facts, "graph", "nodes")
    node = inside(facts, "graph", "node")
    return isinstance(nodes, dict) and isinstance(node, str) and node in nodes


def base_model(facts: Mapping[str, Any]) -> str:
    """The file's name of the nearest base model that the training node's model is made from."""
    nodes = inside(facts, "graph", "nodes")
    if not has_graph(facts):
        return ""
    files = listed(inside(facts, "graph", "files"))
    names = {text(inside(f, "name")) for f in files if inside(f, "folder") in MODELS}
    ahead, seen = [inside(nodes, facts["graph"]["node"], "inputs", "model")], set()
    while ahead:
        link = ahead.pop(0)
        if not (isinstance(link, list) and link and isinstance(link[0], str)) or link[0] in seen:
            continue
        seen.add(link[0])
        inputs = inside(nodes, link[0], "inputs")
        values = list(inputs.values()) if isinstance(inputs, dict) else []
        for value in values:
            if (name := text(value).replace("\\", "/")) in names and name:
                return name.rpartition("/")[2]
        ahead += values
    return ""


def planned_steps(facts: Mapping[str, Any], curve: Summary, steps: int) -> int:
    """How many steps the run is to have, as far as that is known."""
    asked, epochs = (inside(facts, "training", name) for name in ("steps", "epochs"))
    if number(epochs) or number(asked) is None:
        return max(curve.planned, steps)
    return int(asked)


def began(facts: Mapping[str, Any], told: Mapping[str, Any], files: list[File]) -> float | None:
    """When the training began, in seconds; by the oldest file where nothing says it."""
    said = number(facts.get("began")) or _as_number(told.get("ss_training_started_at"))
    return said or min((file.changed for file in files), default=None)


def seconds(facts: Mapping[str, Any], told: Mapping[str, Any]) -> float | None:
    """For how long it was trained."""
    said = number(facts.get("seconds"))
    return _as_number(told.get("ss_training_time")) if said is None else said


def _as_number(value: object) -> float | None:
    try:
        return number(float(value)) if isinstance(value, str) else None
    except ValueError:
        return None


def _told_by_result(
    folder: Path, facts: Mapping[str, Any], results: Mapping[int, File]
) -> dict[str, Any]:
    """The metadata of the longest result, where run.json of an earlier version says too little."""
    if not results or (number(facts.get("began")) and base_model(facts)):
        return {}
    return result_metadata(folder / results[max(results)].name)


def _missing(row: Mapping[str, Any], facts: Mapping[str, Any], content: Content) -> list[str]:
    """What a run should have and has not."""
    if not facts:
        return []
    problems = []
    if text(facts.get("method")) not in METHOD_CONFIGS:
        problems.append(f"{RUN_JSON} has no method that there is.")
    if text(facts.get("status")) not in STATES:
        problems.append(f"{RUN_JSON} does not say how the run went.")
    if row["state"] in (DONE, STOPPED) and not results_of(content):
        problems.append("Its results are no longer there.")
    return problems


# -- what files say -----------------------------------------------------------


def results_of(content: Content) -> dict[int, File]:
    """The newest result file of each length, by steps."""
    found: dict[int, tuple[int, File]] = {}
    for file in content.of("result"):
        if steps := result_steps(file.name):
            length, which = steps
            if length not in found or found[length][0] < which:
                found[length] = which, file
    return {length: file for length, (_, file) in sorted(found.items())}


def bytes_of(content: Content) -> dict[str, int]:
    """How much there is of each kind."""
    total = dict.fromkeys([*BYTES.values(), "other"], 0)
    for file in content.files:
        total[BYTES.get(file.kind, "other")] += file.num_bytes
    return total


def preview_place(file: File) -> tuple[int, int]:
    """Step and prompt of a preview, by its name."""
    found = PREVIEW.fullmatch(file.name.rpartition("/")[2])
    assert found is not None
    return int(found[1]), int(found[2])


def last_preview(content: Content, steps: int) -> dict[str, Any] | None:
    """What the first prompt gave last; of the steps there were, as in story.py."""
    places = {preview_place(file): file for file in content.of("preview")}
    within = [place for place in places if place[0] <= steps or not steps]
    if not within:
        return None
    last = max(step for step, _ in within)
    file = places[min(place for place in within if place[0] == last)]
    return {"file": file.name.rpartition("/")[2], "changed": file.changed}
