"""What a run on disk learned by one of its kept steps, for today's graph."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....trainers.errors import RunError, SettingsError
from ....trainers.methods.results import Embedding
from ....trainers.models.architectures import ARCHITECTURES, DENOISER
from ....trainers.runs.fingerprint import config_of
from ....trainers.runs.folder import Result, RunFolder
from ....trainers.runs.kept.resumed import TOKEN
from ....trainers.runs.kept.steps import chosen_step, kept_steps, result_at
from ....trainers.settings.run import RunConfig
from ..folders import find_run, runs_folder
from ..models.stored.identity import clip_fingerprint, model_fingerprint
from ..models.support import record_of
from ..models.tokenizer import embeddings_of, encoder_names
from ..models.weights import changed_weights, host_key, host_weights
from ..runs.base import GraphNode, wired_now
from .outcome import Outcome, captions_read, needed_tokens, outcome_of

log = logging.getLogger(__name__)

NO_RUN = "(none yet: train something)"
MODEL, CLIP, LORA, EMBEDDING = OUTPUTS = ("model", "clip", "lora", "embedding")
# What the runs of a method give; the loss and the folder come of all.
GIVEN: Mapping[str, tuple[str, ...]] = {
    "lora": (MODEL, CLIP, LORA),
    "dreambooth": (MODEL, CLIP),
    "textual_inversion": (MODEL, CLIP, EMBEDDING),
}
CHOOSE = "Choose a run of the list; a run that was made just now is in it after pressing R."


@dataclass(frozen=True)
class Loaded:
    """A run at one of its steps, and the base for what it learned.

    Attributes:
        model, clip: None where nothing made of them is asked for.
        steps: after how many of them it is.
    """

    config: RunConfig
    outcome: Outcome
    model: Any
    clip: Any
    steps: int


def run_names() -> list[str]:
    """Names of all runs on disk, those that were written last first."""
    found = []
    for file in runs_folder().glob("*/run.json"):
        with contextlib.suppress(OSError):  # deleted just now
            found.append((file.stat().st_mtime, file.parent.name))
    return [name for _, name in sorted(found, reverse=True)] or [NO_RUN]


def problem_with(run: str, step: str) -> str | None:
    """Why this cannot be loaded, to be told before anything runs; or None."""
    try:
        chosen_step(_found(run), step)
    except RunError as error:
        return str(error)
    return None


def facts_now(node_id: str | None, run: str | None) -> list[Any]:
    """What decides whether a run must be read again: what is kept of it, and what is asked for.

    Args:
        run: None where it is wired: then it is read again when any run has a new result.
    """
    if run is None:
        return [_results(), wired_now(node_id, range(len(OUTPUTS)))]
    with contextlib.suppress(RunError):
        folder = _found(run)
        kept = [*folder.path.glob("result-*.safetensors"), *folder.path.glob("state/*.pt")]
        told = sorted([file.name, file.stat().st_mtime_ns] for file in kept)
        return [folder.fingerprint, told, wired_now(node_id, range(len(OUTPUTS)))]
    return []


def _results() -> list[Any]:
    """What all runs have kept of results."""
    found = []
    for file in runs_folder().glob("*/result-*.safetensors"):
        with contextlib.suppress(OSError):  # deleted just now
            found.append([file.parent.name, file.name, file.stat().st_mtime_ns])
    return sorted(found)


def sockets_asked(run: str, node: GraphNode) -> list[str]:
    """Which of model and clip are needed for what is wired, by the names of the inputs.

    Raises:
        RunError: an output is wired that runs of this method do not have, or whose base is not.
    """
    method, name = _told(_found(run)).method, run.strip()
    wired = [output for place, output in enumerate(OUTPUTS) if node.is_wired((place,))]
    if none := [output for output in wired if output not in GIVEN[method]]:
        raise RunError(
            f"Output {' and '.join(none)} of Load Run is wired, but '{name}' is a run of {method}; "
            f"allowed of such runs: {', '.join(GIVEN[method])}, loss_map and run.\nTake that wire "
            "away, or choose another run."
        )
    needed = [output for output in wired if output in (MODEL, CLIP)]
    if missing := [socket for socket in needed if not isinstance(node.inputs.get(socket), list)]:
        which = " and ".join(missing)
        raise RunError(
            f"Output {which} of Load Run is wired, but its input {which} is not; allowed: the base "
            f"that '{name}' was trained on.\nWire {which} of Load Checkpoint into it."
        )
    return needed


def load_run(run: str, step: str, node: GraphNode, model: Any, clip: Any) -> Loaded:
    """The run at that step.

    Args:
        model, clip: what is wired, if it was evaluated.

    Raises:
        PersonalizeError: there is no such run or step, or it does not fit the base.
    """
    needed = sockets_asked(run, node)
    model, clip = (m if s in needed else None for s, m in ((MODEL, model), (CLIP, clip)))
    _check_sockets(needed, model, clip)
    folder = _found(run)
    config, facts = _told(folder), folder.facts
    _check_base(folder, facts, model, clip)
    result = result_at(folder, chosen_step(folder, step))
    if config.changes_weights:
        result = _of_base(result, model, clip)
    encoders = tuple(facts["base_model"]["text_encoders"].split())
    tokens = _needed(config, facts, result, clip)
    outcome = outcome_of(folder, result, encoders, tokens)
    return Loaded(config, outcome, model, clip, result.steps)


def described(loaded: Loaded) -> str:
    """A line for the node's body."""
    folder = RunFolder.at(loaded.outcome.run)
    kept = ", ".join(map(str, kept_steps(folder))) if folder else "none"
    return f"{loaded.outcome.run.name}: step {loaded.steps}; kept: {kept}"


def _found(run: str) -> RunFolder:
    return find_run(run, "run", CHOOSE)


def _told(folder: RunFolder) -> RunConfig:
    try:
        return config_of(folder.facts)
    except (SettingsError, KeyError, TypeError) as error:
        raise RunError(
            f"run: run.json of '{folder.path.name}' is damaged ({error}); allowed: as a training "
            "wrote it.\nTake that file from a copy, or choose another run."
        ) from error


def _check_sockets(needed: Sequence[str], model: Any, clip: Any) -> None:
    given = {MODEL: model, CLIP: clip}
    if empty := [socket for socket in needed if given[socket] is None]:
        raise RunError(
            f"Input {' and '.join(empty)} of Load Run is empty: the checkpoint has none.\nWire "
            "that of a checkpoint which has it, or of Load CLIP."
        )


def _check_base(folder: RunFolder, facts: Mapping[str, Any], model: Any, clip: Any) -> None:
    """Refuse a base of another kind; warn of one with other weights or without a learned token."""
    name, was = folder.path.name, ARCHITECTURES[facts["architecture"]]
    if model is not None and (now := record_of(model)).name != was.name:
        raise RunError(
            f"run: '{name}' was trained on {was.title}, but input 'model' is {now.title}; allowed: "
            "the kind of base that it was trained on.\nWire that, or choose another run."
        )
    base = facts["base_model"]
    encoders = base["text_encoders"]
    if clip is not None and (found := " ".join(encoder_names(clip))) != encoders:
        raise RunError(
            f"run: '{name}' was trained with the text encoders {encoders}, but input 'clip' has "
            f"{found or 'none that takes tokens'}; allowed: the same.\nWire the clip that it was "
            "trained with, or choose another run."
        )
    other = []
    if model is not None and facts["method"] != "textual_inversion":
        other += [MODEL] * (model_fingerprint(model) != base["model"])
    if clip is not None:
        other += [CLIP] * (clip_fingerprint(clip, was, ()) != base["clip"])
    if other:
        log.warning(
            "Personalize: Load Run: %s differ%s from what '%s' was trained on, in weights or what "
            "is patched onto them; what it gives is not quite what was trained.",
            " and ".join(other), "s" * (len(other) == 1), name,
        )  # fmt: skip
    known = {embedding.token for embedding in embeddings_of(clip)} if clip is not None else set()
    lacking = [key.removeprefix(TOKEN) for key in base if key.startswith(TOKEN)]
    lacking = [token for token in lacking if token not in known]
    if clip is not None and lacking and not facts["own"].get("train_token"):
        log.warning(
            "Personalize: Load Run: '%s' was trained with the learned token %s, which clip does "
            "not know; wire clip through Apply Embedding.", name, " and ".join(lacking),
        )  # fmt: skip


def _of_base(result: Result, model: Any, clip: Any) -> Result:
    """Trained weights as those of the base that they change, as far as it is there."""
    held = host_weights(model, clip)
    of = {key: tensor for key, tensor in result.tensors.items() if host_key(key) in held}
    wanted = [
        key
        for key in result.tensors
        if (model if key.startswith(f"{DENOISER}.") else clip) is not None
    ]
    foreign = [k for k in wanted if k not in of or held[host_key(k)].shape != of[k].shape]
    if foreign:
        raise RunError(
            f"run: {len(foreign)} of {len(wanted)} trained weights do not fit the base, such as "
            f"{foreign[0]}; allowed: the base that the run was trained on.\nWire that."
        )
    changed = changed_weights(model, clip, of)
    return Result(result.steps, changed, result.metadata, result.tokens, result.metrics)


def _needed(
    config: RunConfig, facts: Mapping[str, Any], result: Result, clip: Any
) -> tuple[Embedding, ...]:
    """The learned tokens that the captions have, and what clip lacks of those that were trained."""
    names = ("dataset", "class_dataset")
    datasets = [(facts.get(name) or {"pictures": []})["pictures"] for name in names]
    captions = [[picture["caption"] for picture in pictures] for pictures in datasets]
    found = needed_tokens(clip, result.tokens, captions_read(config, *captions))
    known = {e.token for e in (*found, *(embeddings_of(clip) if clip is not None else ()))}
    trained = (Embedding(t, rows, {}) for t, rows in result.tokens.items() if t not in known)
    return (*found, *trained)
