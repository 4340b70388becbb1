"""What a file says is to be trained: a run.json, one written by hand, or a graph in API form."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..trainers.errors import RecipeError, SettingsError
from ..trainers.settings.field import settings_of
from ..trainers.settings.run import METHOD_CONFIGS, ON_OTHERS, WITHOUT, config_groups, run_config

Nodes = dict[str, dict[str, Any]]  # a graph in API form: class_type and inputs, by id

TRAINERS = {
    "lora": "PersonalizeTrainLora",
    "dreambooth": "PersonalizeTrainDreamBooth",
    "textual_inversion": "PersonalizeTrainTextualInversion",
}
METHODS = {node: method for method, node in TRAINERS.items()}
SETTINGS_NODES = {
    "optimizer_settings": "PersonalizeOptimizer",
    "loss_settings": "PersonalizeLoss",
    "run_settings": "PersonalizeRun",
    "memory_settings": "PersonalizeMemory",
}


@dataclass(frozen=True)
class Recipe:
    """Training nodes and all that is wired into them.

    Attributes:
        targets: ids of the nodes that are to train.
        packs: folders in custom_nodes whose nodes are needed.
        files: what the run needed, as nodes/host/runs/graph.py lists it; empty if unknown.
        facts: of the run that this was, as its run.json has them; None if it was none.
    """

    nodes: Nodes
    targets: tuple[str, ...]
    packs: tuple[str, ...] = ()
    files: tuple[Mapping[str, Any], ...] = ()
    facts: Mapping[str, Any] | None = None

    def method(self, target: str) -> str:
        return METHODS[self.nodes[target]["class_type"]]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        RecipeError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecipeError(
            f"'{path}' cannot be read: {error.strerror}.\nName the run.json of a run's folder, in "
            "output/personalize, or one of your own."
        ) from error
    except ValueError as error:
        raise RecipeError(
            f"'{path}' is not JSON: {error}.\nMend it, or take the run.json of a run's folder."
        ) from error
    if not isinstance(content, dict):
        raise RecipeError(
            f"'{path}' holds no object.\nAllowed: a run.json, or a graph by File > Export (API)."
        )
    return content


def recipe_of_graph(path: Path, content: Mapping[str, Any]) -> Recipe:
    """The training nodes of a graph in API form, without what follows from them."""
    nodes = {
        str(key): {"class_type": node["class_type"], "inputs": dict(node.get("inputs", {}))}
        for key, node in content.items()
    }
    found = [key for key, node in nodes.items() if node["class_type"] in METHODS]
    if not found:
        raise RecipeError(
            f"'{path}' is a graph without a training node.\nAllowed: one with "
            f"{', '.join(TRAINERS.values())}."
        )
    return Recipe(_upstream(nodes, found), tuple(found))


def recipe_of_run(path: Path, content: Mapping[str, Any]) -> Recipe:
    """The node that trained a run, with the settings that its run.json has now."""
    graph = content["graph"]
    try:
        nodes: Nodes = {
            key: {"class_type": node["class_type"], "inputs": dict(node["inputs"])}
            for key, node in graph["nodes"].items()
        }
        target, packs, files = graph["node"], graph["custom_nodes"], graph["files"]
        method = METHODS[nodes[target]["class_type"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"'{path}': graph is damaged ({type(error).__name__}: {error}).\nTake the run.json "
            "from the run's folder anew."
        ) from error
    if content.get("method") != method:
        raise RecipeError(
            f"'{path}': method is {content.get('method')!r}, but its graph trains {method!r}.\n"
            "Another method needs a node of its own: leave out graph and name base and dataset."
        )
    given = grouped_settings(path, method, content)
    put_all(nodes, target, method, check_settings(path, method, given))
    return Recipe(nodes, (target,), tuple(packs), tuple(files), content)


# -- settings -----------------------------------------------------------------


def grouped_settings(path: Path, method: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of settings, in groups as a run's own run.json has them."""
    found: dict[str, Any] = {}
    for group, kind in config_groups(method).items():
        given = content.get(group, {})
        if not isinstance(given, dict):
            raise RecipeError(f"'{path}': {group} is {given!r}.\nAllowed: settings by name.")
        check_names(path, given, settings_of(kind), f"in {group}")
        found |= given
    return found


def check_settings(path: Path, method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run, with the method's defaults where nothing is said.

    Raises:
        RecipeError: a value is not allowed, or two contradict each other.
    """
    try:
        config = run_config(method, values)
    except SettingsError as error:
        raise RecipeError(
            f"'{path}': {'; '.join(error.problems)}.\nChange them in the file, or with --set."
        ) from error
    groups = (dataclasses.asdict(getattr(config, group)) for group in config_groups(method))
    return {name: value for group in groups for name, value in group.items()}


def put_all(nodes: Nodes, target: str, method: str, values: Mapping[str, Any]) -> None:
    """Give the training node these settings, and none else."""
    inputs = nodes[target]["inputs"]
    without = WITHOUT.get(method, ())
    for place, names in ON_OTHERS.items():
        here = {n: values[n] for n in names if n in values and n not in without}
        inputs[place] = [add(nodes, SETTINGS_NODES[place], here), 0]
    elsewhere = {name for names in ON_OTHERS.values() for name in names}
    inputs.update({name: value for name, value in values.items() if name not in elsewhere})


def add(nodes: Nodes, class_type: str, inputs: Mapping[str, Any]) -> str:
    """The id of a new node."""
    key = next(key for n in range(1, 2 + len(nodes)) if (key := f"headless-{n}") not in nodes)
    nodes[key] = {"class_type": class_type, "inputs": dict(inputs)}
    return key


def check_names(path: Path, given: Iterable[str], known: Collection[str], where: str) -> None:
    """See that a file has only names that there are.

    Raises:
        RecipeError: with each that is unknown, and the one that was probably meant.
    """
    if unknown := [suggested(name, known) for name in given if name not in known]:
        raise RecipeError(
            f"'{path}' has unknown keys{where and ' ' + where}: {', '.join(unknown)}.\n"
            "`--help` lists all settings; leave out what is none."
        )


def suggested(name: str, known: Iterable[str]) -> str:
    """A name that there is none of, with the nearest one."""
    near = difflib.get_close_matches(name, list(known), 1, cutoff=0.5)
    return f"'{name}'" + (f" (did you mean '{near[0]}'?)" if near else "")


def check_method(path: Path, method: Any) -> str:
    """The method, if there is one of that name."""
    if method not in METHOD_CONFIGS:
        named = suggested(str(method), METHOD_CONFIGS)
        raise RecipeError(
            f"'{path}': there is no method {named}.\nAllowed: {', '.join(METHOD_CONFIGS)}."
        )
    return str(method)


# -- graphs -------------------------------------------------------------------


def is_link(value: Any) -> bool:
    """Whether an input takes another node's output."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _upstream(nodes: Nodes, targets: Iterable[str]) -> Nodes:
    """These nodes and all that their inputs come from."""
    wanted, ahead = set(), list(targets)
    while ahead:
        key = ahead.pop()
        if key not in wanted and key in nodes:
            wanted.add(key)
            ahead += [value[0] for value in nodes[key]["inputs"].values() if is_link(value)]
    return {key: node for key, node in nodes.items() if key in wanted}
