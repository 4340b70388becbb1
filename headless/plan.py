"""What a training would do, told without training: for --dry-run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..trainers.runs.catalog.times import rate
from ..trainers.settings.field import settings_of
from ..trainers.settings.memory import AUTO, REFUSE, MemoryConfig
from ..trainers.settings.run import METHOD_DEFAULTS, config_groups

if TYPE_CHECKING:  # it names the host, which is there by the time that a run is
    from ..nodes.host.runs.run import Run
    from ..trainers.models.memory import StepMemory

GB = 1e9
MOST_PICTURES = 50


def plan(run: Run) -> Iterator[str]:
    """The run in lines: what it trains, on what, for how long, and what is there of it."""
    config, facts = run.config, run.facts
    yield f"{config.method} on {run.architecture.title}, {facts['base_model']['computes_in']}"
    yield from _datasets(facts)
    other = [f"{name} {value}" for name, value in _other_than_default(config)]
    yield f"settings: {', '.join(other) or 'all as the method has them'}"
    loop, steps = config.training, run.asked_steps
    batch = loop.batch_size * loop.gradient_accumulation
    passes = steps * batch / max(1, sum(p.repeats for p in run.sockets.dataset.pictures))
    yield (
        f"{steps} steps of {_counted(batch, 'picture')} ({loop.batch_size} at once, "
        f"{loop.gradient_accumulation} times): each picture about {passes:.1f} times"
    )
    kept = run.kept_steps
    memory = None
    if kept is None or not run.folder.has_result(kept):
        memory, lines = _memory(run)
        yield from lines
    yield f"time: {_time(run, memory)}"
    yield f"folder: {run.folder.path}, {_what_is_there(run)}"


def _datasets(facts: Mapping[str, Any]) -> Iterator[str]:
    for name in ("dataset", "class_dataset", "validation_dataset"):
        if not (listing := facts[name]):
            continue
        pictures = listing["pictures"]
        yield f"{name} '{listing['name']}': {_counted(len(pictures), 'picture')}"
        for picture in pictures[:MOST_PICTURES]:
            width, height = picture["bucket_px"]
            yield f"    {picture['name']}  {width}x{height}  {picture['caption']!r}"
        if len(pictures) > MOST_PICTURES:
            yield f"    and {len(pictures) - MOST_PICTURES} more"


def _other_than_default(config: Any) -> Iterator[tuple[str, Any]]:
    own = METHOD_DEFAULTS[config.method]
    for group, kind in config_groups(config.method).items():
        for name, (field, _) in settings_of(kind).items():
            value = getattr(getattr(config, group), name)
            if value != own.get(name, field.default):
                yield name, value


def _what_is_there(run: Run) -> str:
    kept = run.kept_steps
    if kept is not None and run.folder.has_result(kept):
        return f"which has the result of {kept} steps already: nothing would be trained"
    states = [step for step in run.folder.state_steps if step <= run.asked_steps]
    if run.kept_steps is not None and states:
        return f"which goes on from step {states[-1]}"
    return "which would be new"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


def _memory(run: Run) -> tuple[StepMemory | None, list[str]]:
    """What the largest step will hold, in a line each; the first is None where nobody can tell."""
    from ..nodes.host.memory import device, make_room
    from ..nodes.host.runs.fitting import choice, is_planned
    from ..trainers.models.fitting import NoPlanError

    if run.sockets.without_base:
        return None, []
    make_room()  # as the training would
    try:
        chosen = choice(run)
    except NoPlanError as error:
        return None, [
            "memory: not known, since this model cannot be gone through without its numbers "
            f"({error})"
        ]
    memory = chosen.fit.memory
    rows = {
        "frozen weights": memory.frozen,
        "trained weights": memory.trained,
        "gradients": memory.gradients,
        "optimizer states and averages": memory.states,
        "activations": memory.activations,
        "together": memory.peak,
    }
    where = ", were it all in one process" if run.processes.shard else ""
    lines = [f"memory of the largest step on {device()}{where}, in GB:"]
    lines += [f"    {name:30} {size / GB:8.2f}" for name, size in rows.items()]
    if memory.shared:
        lines[1] += f", of which {memory.shared / GB:.2f} are there already"
    lines.append(f"    {'free now':30} {chosen.room.free_bytes / GB:8.2f}")
    lines.append(f"{chosen.needs}, some for drivers and libraries included")
    if taken := ", ".join(_taken(run.config.memory, chosen.fit.asked.config.memory)):
        lines.append(f"auto takes {taken}")
    if not chosen.fits:
        refused = is_planned(run) and run.config.memory.memory_plan == REFUSE
        verdict = "would be refused" if refused else "would be tried all the same"
        lines.append(f"That is more than is free: the run {verdict}. {chosen.remedy()}")
    return memory, lines


def _taken(asked: MemoryConfig, found: MemoryConfig) -> Iterator[str]:
    """What was left to auto, and what it became."""
    for field in dataclasses.fields(asked):
        value = getattr(found, field.name)
        if getattr(asked, field.name) == AUTO != value:
            yield f"{field.name} {value!r}"


def _time(run: Run, memory: StepMemory | None) -> str:
    found = rate(run.folder.path.parent, run.facts)
    if found is None:
        work = f"; a step is {memory.flops / 1e12:.3g} TFLOP of arithmetic" if memory else ""
        return f"not known before a run like it was made here{work}"
    minutes, rest = divmod(round(found.seconds * run.asked_steps), 60)
    return f"about {minutes}:{rest:02} min, at {found.seconds:.2f} s a step as in {found.run}"
