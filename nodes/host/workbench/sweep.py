"""Runs of a grid of settings, one after another, each by the path of the training nodes.

So a run of a sweep is the run that a training node with its settings makes: one that is on disk is
taken from there, one that was interrupted goes on from its last state.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ....trainers.errors import (
    NonFiniteLossError,
    PersonalizeError,
    ProcessesError,
    SettingsError,
)
from ....trainers.optimizers.processes import joined
from ....trainers.runs.catalog.sweep import SweptRun, best_of, judged_by, swept_run
from ....trainers.settings.field import raise_problems, settings_of
from ....trainers.settings.memory import REFUSE
from ....trainers.settings.run import (
    ON_OTHERS,
    ON_TRAINER,
    WITHOUT,
    RunConfig,
    config_groups,
    run_config,
    together,
)
from ....trainers.settings.sweep import Cell, Grid, labelled
from ....trainers.settings.validation import BEST
from ..memory import check_interrupt, training_session
from ..runs.base import GraphNode
from ..runs.fitting import fitted
from ..runs.inputs import Sockets
from ..runs.pages import PAGES
from ..runs.run import Run, make_run, needs_base
from ..runs.training import run_training

log = logging.getLogger(__name__)

# The nodes that a run of a sweep would have in a graph of its own.
TRAINERS = {
    "lora": "PersonalizeTrainLora",
    "dreambooth": "PersonalizeTrainDreamBooth",
    "textual_inversion": "PersonalizeTrainTextualInversion",
}
SETTINGS_NODES = {
    "optimizer_settings": "PersonalizeOptimizer",
    "loss_settings": "PersonalizeLoss",
    "run_settings": "PersonalizeRun",
    "memory_settings": "PersonalizeMemory",
}
SOCKETS = tuple(field.name for field in dataclasses.fields(Sockets))


@dataclass(frozen=True)
class Planned:
    """A run of a sweep before it is trained.

    Attributes:
        node: the training node that it would have, in the sweep's place.
    """

    cell: Cell
    config: RunConfig
    sockets: Sockets
    node: GraphNode


@dataclass(frozen=True)
class Refused:
    """A run that cannot be trained, as is known before the first one begins."""

    cell: Cell
    error: PersonalizeError


def planned(
    grid: Grid, sockets: Sockets, given: Mapping[str, Any], node: GraphNode
) -> list[Planned | Refused]:
    """The runs of a grid.

    Args:
        given: what is wired into the sweep's settings inputs, by their names.
    """
    found: list[Planned | Refused] = []
    for number, cell in enumerate(grid.cells, 1):
        heading = f"run {number} of {len(grid.cells)}{': ' * bool(cell.label)}{cell.label}"
        # A training node's own widgets have their defaults, whatever is wired.
        values = together(cell.method, given) | dict(cell.values)
        try:
            config = run_config(cell.method, values)
        except SettingsError as error:
            found.append(Refused(cell, error))
            continue
        own = sockets
        if cell.method == "textual_inversion":  # whose node takes none
            own = dataclasses.replace(sockets, class_dataset=None)
        alone = dataclasses.replace(as_training(node, cell, config, values), heading=heading)
        found.append(Planned(cell, config, own, alone))
    return found


def as_training(
    node: GraphNode, cell: Cell, config: RunConfig, values: Mapping[str, Any]
) -> GraphNode:
    """The training node that would make a run, in a graph where it stands in the sweep's place.

    Args:
        values: the settings that are wired or in the grid.
    """
    if node.node_id is None or node.node_id not in node.prompt:
        return node
    prompt = dict(node.prompt)
    free = _free_ids(prompt)
    without = WITHOUT.get(cell.method, ())
    sockets = [s for s in SOCKETS if s != "class_dataset" or cell.method != "textual_inversion"]
    inputs = {name: node.inputs[name] for name in sockets if name in node.inputs}
    inputs |= {name: _flat(config)[name] for name in ON_TRAINER[cell.method]}
    for place, names in ON_OTHERS.items():
        if place in node.inputs:
            inputs[place] = node.inputs[place]
        standing = [n for n in names if n not in ON_TRAINER[cell.method] and n not in without]
        if any(name in cell.values for name in standing):
            key = next(free)
            here = {name: values[name] for name in standing if name in values}
            prompt[key] = {"class_type": SETTINGS_NODES[place], "inputs": here}
            inputs[place] = [key, 0]
    prompt[node.node_id] = {"class_type": TRAINERS[cell.method], "inputs": inputs}
    return dataclasses.replace(node, prompt=prompt)


def _free_ids(prompt: Mapping[str, Any]) -> Iterator[str]:
    number = max((int(key) for key in prompt if key.isdecimal()), default=0)
    while True:
        number += 1
        yield str(number)


def _flat(config: RunConfig) -> dict[str, Any]:
    groups = (getattr(config, group) for group in config_groups(config.method))
    return {name: getattr(group, name) for group in groups for name in settings_of(group)}


def sweep_needs_base(runs: list[Planned | Refused]) -> bool:
    """Whether some run is not on disk, so that model, clip and vae must be loaded."""
    return any(_needs_base(run) for run in runs if isinstance(run, Planned))


def _needs_base(run: Planned) -> bool:
    try:
        return needs_base(run.sockets, run.config, run.node, ())
    except PersonalizeError:
        return True  # it cannot be trained, which is noted when the sweep runs


def run_sweep(runs: list[Planned | Refused], node: GraphNode) -> list[SweptRun]:
    """Train what is not on disk, one after another.

    Stop and keep ends the run at work and goes on to the next; Cancel ends the sweep. A run that
    fails, or that cannot be trained, is noted, and the next one begins.

    Raises:
        PersonalizeError: no run came to a result.
        torch.cuda.OutOfMemoryError: the same, with advice.
    """
    checked = _checked(runs)
    found: list[SweptRun] = []
    failures: list[Exception] = []
    for run in checked:
        check_interrupt()
        error: Exception | None = run.error if isinstance(run, Refused) else None
        if isinstance(run, Planned):
            try:
                found.append(_trained(run))
            except ProcessesError:  # the next one would wait for a process that is gone
                raise
            except (PersonalizeError, torch.cuda.OutOfMemoryError) as raised:
                if joined().count > 1 and not isinstance(raised, NonFiniteLossError):
                    raise  # the other processes are in the middle of this run
                log.warning("Personalize: %s: %s", run.node.heading, raised)
                error = raised
        if error is not None:
            failures.append(error)
            found.append(SweptRun(run.cell, problem=str(error)))
    _note_failures(node, len(failures))
    if best_of(found) is None:
        PAGES.say(node, "no run came to a result")
        raise failures[0]
    PAGES.say(node, ending(found))
    return found


def ending(runs: list[SweptRun]) -> str:
    """What happened, for the person at the node."""
    best = best_of(runs)
    assert best is not None, "a sweep without a result has raised"
    by = judged_by(runs)
    loss = best.loss if best.validation is None or by != "held-out loss" else best.validation
    done = f"{len(runs)} run{'s' * (len(runs) > 1)} done"
    if failed := sum(not run.losses for run in runs):
        done = f"{len(runs) - failed} of {done}, {failed} failed: the table says why"
    name = f"{best.cell.label}, " if best.cell.label else ""
    return f"{done}\nbest by {by}: {name}{loss:.4g}, {best.run}"


# -- queued again -------------------------------------------------------------

_failures: dict[str, int] = {}  # how many there have been, by the node's id


def failures_before(node_id: str | None) -> int:
    """How many runs of this node have failed. ComfyUI would hand out the same table again; where
    some failed, they are to be tried again."""
    return _failures.get(str(node_id), 0)


def _note_failures(node: GraphNode, count: int) -> None:
    _failures[str(node.node_id)] = failures_before(node.node_id) + count


# -- one run ------------------------------------------------------------------


def _trained(run: Planned) -> SweptRun:
    outcome = run_training(run.sockets, run.config, run.node)
    steps = _last_step(outcome.loss_map)
    best = run.config.validation.hand_out == BEST
    return swept_run(run.cell, outcome.run.name, steps, outcome.loss_map, best)


def _last_step(loss_map: Mapping[str, Any]) -> int:
    first = (loss_map.get("first_step") or [1])[0]
    return int(first) + len(loss_map["loss"]) - 1


def _checked(runs: list[Planned | Refused]) -> list[Planned | Refused]:
    """See before the first run which can be trained, as far as that can be known.

    Raises:
        PersonalizeError: none can.
    """
    found: list[Planned | Refused] = []
    tight: list[tuple[int, Run]] = []
    with torch.inference_mode(False):
        for place, planned_run in enumerate(runs):
            found.append(planned_run)
            if isinstance(planned_run, Refused):
                continue
            try:
                run = make_run(planned_run.sockets, planned_run.config, planned_run.node)
                kept = run.kept_steps is not None and run.folder.has_result(run.kept_steps)
            except PersonalizeError as error:
                found[place] = Refused(planned_run.cell, error)
                continue
            if not kept and run.config.memory.memory_plan == REFUSE:
                tight.append((place, run))
        if tight:
            with training_session():
                for place, run in tight:
                    try:
                        fitted(run)
                    except PersonalizeError as error:
                        found[place] = Refused(runs[place].cell, error)
    _raise_if_none_can(found)
    return found


def _raise_if_none_can(runs: list[Planned | Refused]) -> None:
    refused = [run for run in runs if isinstance(run, Refused)]
    for run in refused:
        log.warning("Personalize: Sweep: %s: %s", run.cell.label or "the run", run.error)
    if len(refused) < len(runs):
        return
    errors = {run.cell.label: run.error for run in refused}
    if all(isinstance(error, SettingsError) for error in errors.values()):
        problems = {k: e.problems for k, e in errors.items() if isinstance(e, SettingsError)}
        raise_problems(labelled(problems, len(runs)))
    raise refused[0].error
