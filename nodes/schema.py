"""A settings field becomes a node input: default, bounds, choices and tooltip are written once."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..trainers.settings.field import Setting, settings_of
from ..trainers.settings.run import METHOD_DEFAULTS, config_groups

MULTILINE = {"prompt", "prompts"}


def settings_inputs(
    method: str, first: tuple[str, ...], without: tuple[str, ...] = ()
) -> list[io.Input]:
    """An input for every setting of a training by `method`; those named in `first` come first.

    Args:
        without: settings that keep their defaults.
    """
    inputs: dict[str, io.Input] = {}
    groups = config_groups(method)
    for name in ("training", "own", "objective", "validation", "store"):
        inputs |= inputs_of(groups[name], defaults=METHOD_DEFAULTS[method])
    for name in without:
        del inputs[name]
    return [*(inputs.pop(name) for name in first), *inputs.values()]


def inputs_of(
    config_class: type[Any], only: tuple[str, ...] = (), defaults: Mapping[str, Any] | None = None
) -> dict[str, io.Input]:
    """One input per settings field, by name, in the order of the class.

    Args:
        config_class: a dataclass of trainers.settings.
        only: limits the result to these names.
        defaults: values that replace the class's own defaults.
    """
    types_by_name = typing.get_type_hints(config_class)
    chosen = defaults or {}
    return {
        name: _input(name, types_by_name[name], chosen.get(name, field.default), facts)
        for name, (field, facts) in settings_of(config_class).items()
        if not only or name in only
    }


def _input(name: str, kind: type, default: Any, facts: Setting) -> io.Input:
    tooltip = f"{facts.help} (Source: {facts.source}.)" if facts.source else facts.help
    shared: dict[str, Any] = {"default": default, "tooltip": tooltip}
    if facts.advanced:
        # Optional too, so that prompts stored before a setting existed stay valid.
        shared |= {"advanced": True, "optional": True}
    if facts.choices:
        return io.Combo.Input(name, options=list(facts.choices), **shared)
    if kind is bool:
        return io.Boolean.Input(name, **shared)
    if kind is str:
        return io.String.Input(name, multiline=name in MULTILINE, **shared)
    bounds = {"min": facts.min, "max": facts.max}
    if kind is int:
        # A seed that changed by itself would train again each time the graph is queued.
        control = io.ControlAfterGenerate.fixed if name == "seed" else None
        step = int(facts.step or 1)
        return io.Int.Input(name, step=step, control_after_generate=control, **bounds, **shared)
    return io.Float.Input(name, step=facts.step, round=False, **bounds, **shared)
