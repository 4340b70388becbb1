"""What of a graph made a run, as its run.json keeps it: so it can be run again without a page.

    "graph": {"node": id of the training node,
              "nodes": it and all that it is made from, in API form,
              "custom_nodes": folders of other packs that these are from,
              "files": [{"folder": "checkpoints", "name": "sd15.safetensors", "bytes": 4265146304}]}

None of it decides what the run is: that do the files' contents and the settings.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from comfy_execution.graph_utils import is_link

from ....trainers.data.listing import list_folder
from ....trainers.errors import DatasetError
from ..folders import dataset_folder, folder_names
from ..words import embeddings_in
from .base import GraphNode

host_nodes: Any = importlib.import_module("nodes")  # the host's, not ours
INPUT = "input"  # files of the input folder, beside the names of the host's folders of models
EMBEDDINGS = "embeddings"  # one of those
PACK = __name__.partition(".")[0].replace("\\", "/").rpartition("/")[2]
PARENT = "custom_nodes."  # of the packs' names, as the host gives them
FOLDER_NODE = "PersonalizeFolderDataset"


@dataclass(frozen=True)
class NeededFile:
    """A file that a graph needs.

    Attributes:
        folder: one of the host's folders of models, or INPUT.
        name: the path in it, with forward slashes.
    """

    folder: str
    name: str
    path: Path

    def as_dict(self) -> dict[str, Any]:
        return {"folder": self.folder, "name": self.name, "bytes": self.path.stat().st_size}


def record(node: GraphNode) -> dict[str, Any] | None:
    """What is kept of the graph; None where the host does not say what it was."""
    if node.node_id is None or node.node_id not in node.prompt:
        return None
    nodes = _upstream(node.prompt, node.node_id)
    return {
        "node": node.node_id,
        "nodes": nodes,
        "custom_nodes": _packs(nodes),
        "files": [file.as_dict() for file in needed_files(nodes)],
    }


def needed_files(nodes: Mapping[str, Mapping[str, Any]]) -> list[NeededFile]:
    """Models and pictures that the widgets of these nodes name, and embeddings that their prompts
    do, as far as they are there."""
    found = {
        file.path: file
        for node in nodes.values()
        for file in (*_files_of(node), *_in_prompts(node))
    }
    return sorted(found.values(), key=lambda file: (file.folder == INPUT, file.folder, file.name))


def path_of(folder: str, name: str) -> Path | None:
    """Where a needed file lies here, if it does."""
    if folder == INPUT:
        path = Path(folder_paths.get_input_directory()) / name
        return path if path.is_file() else None
    if folder not in folder_paths.folder_names_and_paths:
        return None
    found = folder_paths.get_full_path(folder, name)
    return Path(found) if found else None


def _upstream(prompt: Mapping[str, Any], target: str) -> dict[str, dict[str, Any]]:
    wanted, ahead = set(), [target]
    while ahead:
        key = ahead.pop()
        if key in prompt and key not in wanted:
            wanted.add(key)
            ahead += [value[0] for value in prompt[key]["inputs"].values() if is_link(value)]
    # The host writes into these nodes while it runs.
    return {
        key: {"class_type": node["class_type"], "inputs": node["inputs"]}
        for key, node in prompt.items()
        if key in wanted
    }


def _packs(nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    classes = (host_nodes.NODE_CLASS_MAPPINGS[node["class_type"]] for node in nodes.values())
    modules = (str(getattr(one, "RELATIVE_PYTHON_MODULE", "")) for one in classes)
    packs = {module.removeprefix(PARENT) for module in modules if module.startswith(PARENT)}
    return sorted(packs - {PACK})


def _files_of(node: Mapping[str, Any]) -> Iterator[NeededFile]:
    given = node["inputs"]
    if node["class_type"] == FOLDER_NODE:
        names = [given.get("folder"), *folder_names(str(given.get("control_folder") or ""))]
        for name in filter(None, names):
            yield from _pictures(str(name))
        return
    schema = host_nodes.NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES()
    for name, facts in {**schema.get("required", {}), **schema.get("optional", {})}.items():
        value, told = given.get(name), facts[1] if len(facts) > 1 else {}
        options = facts[0] if isinstance(facts[0], list) else told.get("options")
        if not isinstance(value, str) or not isinstance(options, list):
            continue
        if any(key.endswith("_upload") for key in told):
            yield from _uploaded(value)
        elif value in options:
            yield from _model(value, options)


def _in_prompts(node: Mapping[str, Any]) -> Iterator[NeededFile]:
    for text in filter(lambda value: isinstance(value, str), node["inputs"].values()):
        for name in embeddings_in(text):
            if path := path_of(EMBEDDINGS, name):
                yield NeededFile(EMBEDDINGS, name, path)


def _model(name: str, options: Iterable[Any]) -> Iterator[NeededFile]:
    """The file of that name in the folder whose files are what the widget offers."""
    offered = set(map(str, options))
    for folder in folder_paths.folder_names_and_paths:
        if folder in ("custom_nodes", "configs"):
            continue
        names = folder_paths.get_filename_list(folder)
        if name in names and offered.issuperset(names):
            if path := path_of(folder, name):
                yield NeededFile(folder, name.replace("\\", "/"), path)
            return


def _uploaded(name: str) -> Iterator[NeededFile]:
    root, path = Path(folder_paths.get_input_directory()), Path(name)
    if folder_paths.exists_annotated_filepath(name):
        path = Path(folder_paths.get_annotated_filepath(name))
    if path.is_file() and root in path.parents:
        yield NeededFile(INPUT, path.relative_to(root).as_posix(), path)


def _pictures(folder: str) -> Iterator[NeededFile]:
    try:
        listing = list_folder(dataset_folder(folder))
    except DatasetError:  # gone since it was trained
        return
    paths = [path for _, path in listing.metadata]
    for picture in listing.pictures:
        paths += [picture.path, *picture.beside.values()]
        paths += [path for several in picture.controls.values() for path in several]
    for path in paths:
        name = path.relative_to(listing.folder).as_posix()
        yield NeededFile(INPUT, f"{folder}/{name}", path)
