"""How long a step of a training will take, by what runs like it took that are on disk."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .names import RUN_JSON
from .reading import read_json, result_metadata, result_steps

LEAST_STEPS = 20  # of a run that says how long one takes: its time has the start in it too
# What two runs share of which one takes as long for a step as the other.
SAME_TIME = ("batch_size", "gradient_accumulation", "precision", "gradient_checkpointing")
# What of a graph makes no step longer: which pictures they are, what they are called, how fast.
OTHER_INPUTS = {
    "steps", "epochs", "seed", "learning_rate", "text_encoder_learning_rate", "token_learning_rate",
    "folder", "prompt", "captions", "token", "initializer", "preview", "held_out", "validate_every",
    "validation_dataset", "if_run_exists", "state_every", "keep_states", "old_states_gb",
    "log_with", "resume_from", "resume_step", "hand_out", "patience",
}  # fmt: skip


class Rate(NamedTuple):
    """Seconds a step, previews and the start included, as in the run of this name."""

    run: str
    seconds: float


def rate(parent: Path, facts: Mapping[str, Any]) -> Rate | None:
    """What a step takes by the newest run in `parent` that is like one with these facts.

    Args:
        facts: of a run, as run.json has them; see trainers.runs.folder.run_facts.

    Returns:
        None where no run like it was ended here.
    """
    wanted = _shape(json.loads(json.dumps(facts)))
    return _newest(parent, [lambda told: _shape(told) == wanted])[0]


def rates_of_graphs(
    parent: Path, trainings: Sequence[tuple[Mapping[str, Any], str]]
) -> list[Rate | None]:
    """The same of trainings that wait, of which nothing but their graphs is known.

    Args:
        trainings: each a graph in API form, and the training node's id.
    """

    def is_like(nodes: Mapping[str, Any], trainer: str) -> Callable[[Mapping[str, Any]], bool]:
        wanted = _work(nodes, trainer)
        return lambda told: _work(told["graph"]["nodes"], told["graph"]["node"]) == wanted

    return _newest(parent, [is_like(*training) for training in trainings])


def steps_of_graph(nodes: Mapping[str, Any], trainer: str) -> int | None:
    """For how long it will train; None where the graph alone does not say."""
    inputs = nodes[trainer]["inputs"]
    link = inputs.get("run_settings")
    epochs = nodes[link[0]]["inputs"].get("epochs", 0) if isinstance(link, list) else 0
    steps = inputs.get("steps")
    return steps if isinstance(steps, int) and epochs == 0 else None


def _newest(
    parent: Path, likes: Sequence[Callable[[Mapping[str, Any]], bool]]
) -> list[Rate | None]:
    """For each question the newest run that it says yes to, and that was long enough to tell."""
    found: list[Rate | None] = [None] * len(likes)
    for folder, told in _runs(parent):
        if None not in found:
            break
        for place, is_like in enumerate(likes):
            with contextlib.suppress(KeyError, TypeError):  # a run.json of another version
                if found[place] is None and is_like(told):
                    seconds = _step_seconds(folder, told)
                    found[place] = Rate(folder.name, seconds) if seconds else None
    return found


def _runs(parent: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders of runs and their run.json, the newest first."""
    files = []
    for file in parent.glob(f"*/{RUN_JSON}"):
        with contextlib.suppress(OSError):  # gone since
            files.append((file.stat().st_mtime, file))
    for _, file in sorted(files, reverse=True):
        with contextlib.suppress(OSError, ValueError):
            yield file.parent, read_json(file)


def _shape(facts: Mapping[str, Any]) -> list[Any]:
    training = [facts["training"][name] for name in SAME_TIME]
    place = facts["base_model"]["computes_in"], facts["dataset"]["resolution_px"]
    return [facts["method"], facts["architecture"], facts["own"], *place, *training]


def _work(nodes: Mapping[str, Any], node_id: str) -> dict[str, Any]:
    """What a node computes: its class, and its inputs down to the loaders."""
    node = nodes[node_id]
    found: dict[str, Any] = {"class_type": node["class_type"]}
    for name, value in node["inputs"].items():
        if name not in OTHER_INPUTS:
            is_link = isinstance(value, list) and len(value) == 2 and value[0] in nodes
            found[name] = [_work(nodes, value[0]), value[1]] if is_link else value
    return found


def _step_seconds(folder: Path, told: Mapping[str, Any]) -> float:
    """As the run says; 0 where it does not, or is too short to tell."""
    ended = {file: result_steps(file.name) for file in folder.glob("result-*.safetensors")}
    results = [(steps, file) for file, steps in ended.items() if steps]
    if not results or told.get("resumed"):  # another run made its first steps
        return 0.0
    (steps, _), file = max(results)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        seconds = told.get("seconds") or result_metadata(file)["ss_training_time"]
        return float(seconds) / steps if steps >= LEAST_STEPS else 0.0
    return 0.0
