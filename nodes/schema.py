"""A settings field becomes a node input: default, bounds, choices and tooltip are written once."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..trainers.settings.field import Setting, settings_of
from ..trainers.settings.run import (
    METHOD_CONFIGS,
    METHOD_DEFAULTS,
    ON_OTHERS,
    ON_TRAINER,
    config_groups,
)

METHOD_NAMES = {
    "lora": "LoRA",
    "dreambooth": "DreamBooth",
    "textual_inversion": "Textual Inversion",
}
MULTILINE = {"instruction", "prompt", "prompts", "row_labels"}
# On nodes of their own, what one method or one choice alone asks for, and what is rarely touched:
# a front end that can folds it away.
FOLDED = (
    "text_encoder_stop_step", "train_token", "token_learning_rate", "ema_on_cpu",
    "ema_update_step_interval",
    "rank_stabilized", "norm_control", "initialization", "lokr_factor",
    "adapter_weights",
    "prior_samples", "logit_mean", "logit_std", "discrete_flow_shift", "keep_tokens",
    "caption_tag_dropout_rate", "enable_wildcard", "caption_variants", "deterministic",
    "resume_from", "resume_step",
)  # fmt: skip


def trainer_inputs(method: str) -> list[io.Input]:
    """The settings on the training node of a method."""
    inputs: dict[str, io.Input] = {}
    for group in config_groups(method).values():
        inputs |= inputs_of(group, defaults=METHOD_DEFAULTS[method], folded=False)
    return [inputs[name] for name in ON_TRAINER[method]]


def shared_inputs(place: str) -> list[io.Input]:
    """The settings on a node of their own, by the training nodes' input that takes them."""
    inputs: dict[str, io.Input] = {}
    methods: dict[str, list[str]] = {}
    for method in METHOD_CONFIGS:
        for name, group in config_groups(method).items():
            found = inputs_of(group, folded=False)
            inputs |= found
            for setting in found if name == "own" else ():
                methods.setdefault(setting, []).append(METHOD_NAMES[method])
    for name in FOLDED:
        inputs[name].advanced = True
    for name, having in methods.items():
        inputs[name].tooltip = f"{' and '.join(having)}: {inputs[name].tooltip}"
    return [inputs[name] for name in ON_OTHERS[place]]


def inputs_of(
    config_class: type[Any],
    only: tuple[str, ...] = (),
    defaults: Mapping[str, Any] | None = None,
    folded: bool = True,
) -> dict[str, io.Input]:
    """One input per settings field, by name, in the order of the class.

    Args:
        config_class: a dataclass of trainers.settings.
        only: limits the result to these names.
        defaults: values that replace the class's own defaults.
        folded: whether a front end that can may hide the advanced ones.
    """
    types_by_name = typing.get_type_hints(config_class)
    chosen = defaults or {}
    return {
        name: _input(name, types_by_name[name], chosen.get(name, field.default), facts, folded)
        for name, (field, facts) in settings_of(config_class).items()
        if not only or name in only
    }


def _input(name: str, kind: type, default: Any, facts: Setting, folded: bool) -> io.Input:
    tooltip = f"{facts.help} (Source: {facts.source}.)" if facts.source else facts.help
    shared: dict[str, Any] = {"default": default, "tooltip": tooltip}
    # Optional, so that prompts stored before a setting existed stay valid, and in the order given.
    if facts.advanced or not folded:
        shared |= {"optional": True, "advanced": folded or None}
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
