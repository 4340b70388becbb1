"""Which settings fit the memory that is free: what `auto` chooses, and what a run that cannot fit
may change.

Nothing is computed here and no device is asked: whoever calls says what a plan comes to.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import PersonalizeError, SettingsError
from ..settings.memory import ALL, AUTO, DEVICE, HALF, NONE, RAM
from ..settings.run import RunConfig, config_groups
from ..settings.training import AS_IT_IS, INT8
from .memory import StepMemory

# On top of a plan. On an H200 plans were at most 2.5 % below what torch counted, workspaces of
# cuBLAS and cuDNN included (docs/performance.md); as much again for what an allocator loses between
# blocks, which torch does not count.
LOST_SHARE = 0.05
# Kernels, which CUDA puts into memory when they are first used. An estimate, measured on no card.
KERNELS_BYTES = 200_000_000
LOWER_PX = (768, 512)  # resolutions that models train at, beside their own


class NoPlanError(Exception):
    """A step cannot be pretended; the text says why, in one line."""


class Asked(NamedTuple):
    """What a plan is made for."""

    config: RunConfig
    resolution_px: int


Plan = Callable[[Asked], StepMemory]  # raises NoPlanError
Change = Callable[[Asked], Asked | None]  # None where it means nothing


class Fit(NamedTuple):
    """Settings, and what they take.

    Attributes:
        changed: the settings that are others than were asked for, in words.
    """

    asked: Asked
    memory: StepMemory
    needed_bytes: int
    changed: str = ""


class Room:
    """What a device has free for a training.

    Attributes:
        apart: whether RAM is another memory, so that something can wait there.
    """

    def __init__(self, free_bytes: int, device_type: str) -> None:
        self.free_bytes, self._beside = free_bytes, KERNELS_BYTES * (device_type == "cuda")
        self.apart = device_type != "cpu"

    def needed_bytes(self, planned_bytes: int) -> int:
        """What has to be free for what a plan adds up to."""
        return round(planned_bytes * (1 + LOST_SHARE)) + self._beside

    def holds(self, planned_bytes: int) -> bool:
        return self.needed_bytes(planned_bytes) <= self.free_bytes


# -- auto ---------------------------------------------------------------------


def without_auto(config: RunConfig) -> RunConfig:
    """What `auto` means where nobody knows how much memory that takes."""
    return next(choices(config))


def choices(config: RunConfig, apart: bool = True) -> Iterator[RunConfig]:
    """What `auto` may choose, the fastest first; the same settings where nothing is auto.

    Args:
        apart: as a Room has it.
    """
    memory = config.memory
    free = memory.checkpointing == AUTO and config.checkpointed == NONE
    places = (DEVICE, RAM) if apart else (DEVICE,)
    for place in places if memory.weights_in == AUTO else (memory.weights_in,):
        # With weights in RAM every block is computed again.
        for kept in (NONE, HALF, ALL) if free and place == DEVICE else (None,):
            changed = {"weights_in": place, **({"checkpointing": kept} if kept else {})}
            if (made := _with(config, changed)) is not None:
                settled = {"checkpointing": made.checkpointed}
                yield _with(made, settled) or made


def choose(asked: Asked, room: Room, plan: Plan) -> tuple[Fit, bool]:
    """The first of auto's choices that fits and True; else the one that takes the least.

    Raises:
        NoPlanError: not even the first can be told.
    """
    best: Fit | None = None
    for config in choices(asked.config, room.apart):
        tried = asked._replace(config=config)
        if best is not None and not room.holds(_least(best.memory, _touched(best.asked, tried))):
            continue
        try:
            found = _fit(tried, asked, room, plan)
        except NoPlanError:
            if best is None:
                raise
            continue
        if best is None or found.needed_bytes < best.needed_bytes:
            best = found
        if found.needed_bytes <= room.free_bytes:
            return found, True
    assert best is not None
    return best, False


# -- what else would fit ------------------------------------------------------

PARTS = ("frozen", "trained", "gradients", "states", "activations")


class Less(NamedTuple):
    """A setting that can take less memory.

    Attributes:
        values: each may take the place of those before it.
        parts: of a StepMemory, those that it can make smaller.
    """

    values: tuple[Any, ...]
    parts: tuple[str, ...]


# In the order of what they cost in time and quality.
LESS: Mapping[str, Less] = {
    "checkpointing": Less((NONE, HALF, ALL), ("activations",)),
    "weights_in": Less((DEVICE, RAM), ("frozen",)),
    "quantize_base": Less((AS_IT_IS, INT8), ("frozen",)),
    "activations_in": Less((DEVICE, RAM), ("activations",)),
    "weights": Less(("fp32", "bf16"), PARTS[1:]),
    "fused_backward": Less((False, True), ("gradients", "activations")),
    "optimizer": Less(("adamw", "adamw_8bit", "adafactor"), ("states", "activations")),
}
WITH = {"weights_in": {"checkpointing": ALL}}  # what has to go with it


def changes(asked: Asked, apart: bool = True) -> Iterator[Change]:
    """All that take less memory, the cheapest first.

    Args:
        apart: as a Room has it.
    """
    for name, (values, _) in LESS.items():
        if not apart and RAM in values:
            continue
        for place in range(1, len(values)):
            yield functools.partial(_set, name, values[place], values[:place])
    yield _one_at_once
    for lower_px in LOWER_PX:
        if lower_px < asked.resolution_px:
            yield functools.partial(_at, lower_px)


def _set(name: str, value: Any, before: tuple[Any, ...], asked: Asked) -> Asked | None:
    if _value(asked.config, name) not in before:
        return None
    made = _with(asked.config, {name: value, **WITH.get(name, {})})
    return None if made is None else asked._replace(config=made)


def _at(lower_px: int, asked: Asked) -> Asked:
    return asked._replace(resolution_px=lower_px)


def _one_at_once(asked: Asked) -> Asked | None:
    """Pictures one after another, summed into the same update where that can be."""
    training = asked.config.training
    if training.batch_size == 1:
        return None
    for summed in (training.gradient_accumulation * training.batch_size, 1):
        changed = {"batch_size": 1, "gradient_accumulation": summed}
        if (made := _with(asked.config, changed)) is not None:
            return asked._replace(config=made)
    return None


def cheapest(start: Fit, room: Room, plan: Plan) -> tuple[Fit, bool]:
    """The cheapest change of `start` that fits and True; else what takes the least.

    Each change is tried alone and then with all that are cheaper. What cannot fit by what a plan
    has told is not planned, but for all changes together, which say what the least is.
    """
    least: Fit = start
    made: tuple[Change, ...] = ()
    for change in changes(start.asked, room.apart):
        cheaper, made = made, (*made, change)
        if _changed(start.asked, made) == _changed(start.asked, cheaper):
            made = cheaper
            continue
        for tried in ((change,), made) if cheaper else (made,):
            if not _may_fit(tried, start, room):
                continue
            found = _try(tried, start, room, plan)
            if found is None and tried is made:  # one of them is not possible here
                tried = made = tuple(one for one in made if _try((one,), start, room, plan))
                found = _try(made, start, room, plan)
            if found and found.needed_bytes <= room.free_bytes:
                return _no_more_than_needed(
                    made if len(tried) > 1 else tried, found, room, start, plan
                ), True
            least = min(filter(None, (least, found)), key=lambda fit: fit.needed_bytes)
    found = _try(made, start, room, plan)
    return min(filter(None, (least, found)), key=lambda fit: fit.needed_bytes), False


def _changed(asked: Asked, made: tuple[Change, ...]) -> Asked:
    for change in made:
        asked = change(asked) or asked
    return asked


def _no_more_than_needed(
    made: tuple[Change, ...], found: Fit, room: Room, start: Fit, plan: Plan
) -> Fit:
    """What fits without those of several changes that it fits without, the costliest first."""
    for change in reversed(made[:-1]):
        fewer = tuple(one for one in made if one is not change)
        without = _try(fewer, start, room, plan) if _may_fit(fewer, start, room) else None
        if without and without.needed_bytes <= room.free_bytes:
            made, found = fewer, without
    return found


def _may_fit(made: tuple[Change, ...], start: Fit, room: Room) -> bool:
    """Whether these changes can make it fit, by what the plan of `start` has told."""
    touched = _touched(start.asked, _changed(start.asked, made))
    return room.holds(_least(start.memory, touched))


def _try(made: tuple[Change, ...], start: Fit, room: Room, plan: Plan) -> Fit | None:
    """What `start` comes to with these changes; None where nobody can tell."""
    try:
        return _fit(_changed(start.asked, made), start.asked, room, plan)
    except (NoPlanError, PersonalizeError):  # what the training would refuse is no way out
        return None


def _fit(tried: Asked, asked: Asked, room: Room, plan: Plan) -> Fit:
    memory = plan(tried)
    return Fit(tried, memory, room.needed_bytes(memory.needed), said(asked, tried))


def _least(memory: StepMemory, touched: set[str]) -> int:
    """What stays of a plan if all that a change touches went away."""
    kept: int = sum(getattr(memory, part) for part in PARTS if part not in touched)
    return kept - (0 if "frozen" in touched else memory.shared)


def _touched(before: Asked, after: Asked) -> set[str]:
    names = {name for name, _ in _differences(before.config, after.config)}
    touched = {part for name in names & LESS.keys() for part in LESS[name].parts}
    shown_less = after.resolution_px < before.resolution_px or "batch_size" in names
    return touched | ({"activations"} if shown_less else set())


# -- settings in words --------------------------------------------------------


def said(before: Asked, after: Asked) -> str:
    """The settings of `after` that do other things than those of `before`."""
    auto = {"weights_in": DEVICE, "checkpointing": before.config.checkpointed}
    listed = [
        f"{name} {value!r}" if isinstance(value, str) else f"{name} {_shown(value)}"
        for name, value in _differences(before.config, after.config)
        if value != auto.get(name)
    ]
    if after.resolution_px != before.resolution_px:
        listed.append(f"resolution {after.resolution_px}")
    return ", ".join(listed)


def _shown(value: Any) -> str:
    return "on" if value is True else str(value)


def _differences(before: RunConfig, after: RunConfig) -> Iterator[tuple[str, Any]]:
    for group in config_groups(before.method):
        old, new = getattr(before, group), getattr(after, group)
        for field in dataclasses.fields(new):
            value = getattr(new, field.name)
            if value != getattr(old, field.name):
                yield field.name, value


def _value(config: RunConfig, name: str) -> Any:
    groups = (getattr(config, group) for group in config_groups(config.method))
    return next((getattr(group, name) for group in groups if hasattr(group, name)), None)


def _with(config: RunConfig, values: Mapping[str, Any]) -> RunConfig | None:
    """The same with other settings; None where they contradict others, or there are no such."""
    changed = {}
    for group, kind in config_groups(config.method).items():
        names = {field.name for field in dataclasses.fields(kind)} & values.keys()
        changed[group] = {name: values[name] for name in names}
    if sum(map(len, changed.values())) < len(values):
        return None
    try:
        groups = {
            group: dataclasses.replace(getattr(config, group), **new)
            for group, new in changed.items()
            if new
        }
        return dataclasses.replace(config, **groups)
    except SettingsError:
        return None
