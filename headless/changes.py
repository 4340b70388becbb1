"""--set name=value: one setting of the trainings, or of the pictures they train on."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from ..trainers.errors import RecipeError, SettingsError
from ..trainers.runs.presets import settings_for
from ..trainers.settings.dataset import DatasetConfig
from ..trainers.settings.field import from_values, settings_of
from ..trainers.settings.run import ON_OTHERS, ON_TRAINER, config_groups, run_config
from .recipe import SETTINGS_NODES, Nodes, Recipe, add, is_link, suggested

FOLDER_NODE, BATCH_NODE = "PersonalizeFolderDataset", "PersonalizeImageDataset"
OF_PICTURES = ("folder", *settings_of(DatasetConfig))
TRUE, FALSE = ("true", "on", "yes", "1"), ("false", "off", "no", "0")


def changed(recipe: Recipe, asked: Iterable[str]) -> Recipe:
    """The recipe with `name=value` of each text.

    Raises:
        RecipeError: there is no such setting, or a value is not allowed.
    """
    pairs = dict(_pair(text) for text in asked)
    nodes: Nodes = {
        key: {**node, "inputs": dict(node["inputs"])} for key, node in recipe.nodes.items()
    }
    for target in recipe.targets:
        method = recipe.method(target)
        known = [*sorted(settings_for(method)), *OF_PICTURES]
        if unknown := [suggested(name, known) for name in pairs if name not in known]:
            raise RecipeError(
                f"--set: {method} has no setting {', '.join(unknown)}.\n`--help` lists all."
            )
        kinds = _kinds(method)
        for name, text in pairs.items():
            value = _value(name, text, kinds[name])
            if name in OF_PICTURES:
                _put_on_pictures(nodes, target, name, value)
            else:
                _put(nodes, target, method, name, value)
        _check(nodes, target, method)
    facts = recipe.facts
    if facts is not None and any(name in OF_PICTURES for name in pairs):
        facts = {name: fact for name, fact in facts.items() if name != "dataset"}
    return dataclasses.replace(recipe, nodes=nodes, facts=facts)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(f"--set got {text!r}.\nAllowed: name=value, such as learning_rate=5e-5.")
    return name.strip(), value.strip()


def _kinds(method: str) -> dict[str, Any]:
    groups = [*config_groups(method).values(), DatasetConfig]
    kinds = {n: kind for group in groups for n, kind in typing.get_type_hints(group).items()}
    return kinds | {"folder": str}


def _value(name: str, text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() not in (*TRUE, *FALSE):
            raise RecipeError(f"--set: {name} is {text!r}.\nAllowed: true or false.")
        return text.lower() in TRUE
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError as error:
        words = "a whole number" if kind is int else "a number"
        raise RecipeError(f"--set: {name} is {text!r}.\nAllowed: {words}.") from error


def _put(nodes: Nodes, target: str, method: str, name: str, value: Any) -> None:
    inputs = nodes[target]["inputs"]
    if name in ON_TRAINER[method]:
        inputs[name] = value
        return
    place = next(place for place, names in ON_OTHERS.items() if name in names)
    # A copy: the node may be another training's too.
    inputs[place] = [
        add(nodes, SETTINGS_NODES[place], {**_wired(nodes, inputs, place), name: value}),
        0,
    ]


def _wired(nodes: Nodes, inputs: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The settings on the node that is wired to a place."""
    link = inputs.get(place)
    if link is None:
        return {}
    node = nodes.get(link[0], {}) if is_link(link) else {}
    if node.get("class_type") != SETTINGS_NODES[place]:
        raise RecipeError(
            f"--set cannot change {place}: it comes from {node.get('class_type')!r}.\n"
            f"Wire it from {SETTINGS_NODES[place]} itself, or change it in the graph."
        )
    return dict(node["inputs"])


def _put_on_pictures(nodes: Nodes, target: str, name: str, value: Any) -> None:
    link = nodes[target]["inputs"].get("dataset")
    node = nodes.get(link[0], {}) if is_link(link) else {}
    allowed = node.get("class_type") == FOLDER_NODE
    allowed |= node.get("class_type") == BATCH_NODE and name != "folder"
    if not allowed:
        raise RecipeError(
            f"--set cannot change {name}: the pictures come from {node.get('class_type')!r}.\n"
            f"Allowed where they come from {FOLDER_NODE}."
        )
    nodes[link[0]]["inputs"][name] = value
    settings = node["inputs"].items()
    given = {n: v for n, v in settings if n in settings_of(DatasetConfig) and not is_link(v)}
    try:
        from_values(DatasetConfig, given)
    except SettingsError as error:
        raise RecipeError(f"--set: {'; '.join(error.problems)}.\nChoose another value.") from error


def _check(nodes: Nodes, target: str, method: str) -> None:
    """See that all settings go together, where none is known only when it runs."""
    own = nodes[target]["inputs"]
    values: dict[str, Any] = {}
    for place in ON_OTHERS:
        link = own.get(place)
        values |= nodes[link[0]]["inputs"] if is_link(link) and link[0] in nodes else {}
    values |= {name: own[name] for name in ON_TRAINER[method] if name in own}
    known = settings_for(method)
    values = {name: value for name, value in values.items() if name in known}
    if any(is_link(value) for value in values.values()):
        return
    try:
        run_config(method, values)
    except SettingsError as error:
        raise RecipeError(
            f"--set: {'; '.join(error.problems)}.\nChoose another value, or set the other one too."
        ) from error
