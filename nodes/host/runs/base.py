"""Where a training node's base comes from, as the graph says, known without loading it.

A run that is on disk needs no base model, unless what it learned is to be applied to it. So the
training nodes' model, clip and vae are lazy inputs, which ComfyUI evaluates only when the node asks
for them. What the files of a base hash to is remembered beside the runs, by path, size and time of
change, for the loaders below alone: what comes from any other node is not known before it is there.

ComfyUI keeps a node's outputs as long as its inputs stay the same, whatever is wired to them. So a
node that was served without its base says that it has changed once its base is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.cli_args
import folder_paths
import server

from ....trainers.errors import SaveError
from ....trainers.runs.files import write_whole
from ....trainers.runs.fingerprint import KnownFiles
from ..folders import runs_folder

# Loaders whose outputs depend on their widgets and one file alone: the widget, the file's folder.
LOADERS = {
    "CheckpointLoaderSimple": ("ckpt_name", "checkpoints"),
    "UNETLoader": ("unet_name", "diffusion_models"),
    "CLIPLoader": ("clip_name", "text_encoders"),
    "VAELoader": ("vae_name", "vae"),
}
SOCKETS = ("model", "clip", "vae")
# Arguments of the host that decide in which dtype and on which device weights are held.
HOLDING = ("fp8", "fp16", "fp32", "fp64", "bf16", "vram", "cpu", "device", "directml", "fast")
MOST_REMEMBERED = 50

_served_without: set[str] = set()  # ids of nodes


@dataclass(frozen=True)
class GraphNode:
    """A node in a graph, as it was queued.

    Attributes:
        prompt: the graph in API form; empty where the host did not say.
        graph_id: of the saved graph, as the front end gives it; None for prompts without one.
        heading: a line above all that its body says, such as which run of several this is.
        workflow: the saved graph as the front end sent it; None for prompts without one.
    """

    node_id: str | None
    prompt: Mapping[str, Any]
    graph_id: str | None = None
    heading: str = ""
    workflow: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, hidden: Any) -> GraphNode:
        """The node with these hidden inputs: unique_id, prompt and extra_pnginfo."""
        told = hidden.extra_pnginfo  # whatever a client has sent
        graph = told.get("workflow") if isinstance(told, dict) else None
        graph = graph if isinstance(graph, dict) else {}
        prompt = hidden.prompt or {}
        return cls(hidden.unique_id, prompt, graph.get("id"), workflow=graph or None)

    def is_wired(self, outputs: Collection[int]) -> bool:
        """Whether some node takes one of these outputs, given by their places."""
        links = [[self.node_id, place] for place in outputs]
        return any(
            value in links for node in self.prompt.values() for value in node["inputs"].values()
        )

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The node's own values and links."""
        inputs: Mapping[str, Any] = self.prompt.get(self.node_id or "", {}).get("inputs", {})
        return inputs

    def base_source(self) -> str | None:
        """A hash of all that decides model, clip and vae; None where the graph does not say."""
        loaders = [self._loader(self.inputs.get(socket)) for socket in SOCKETS]
        if None in loaders:
            return None
        arguments = vars(comfy.cli_args.args).items()
        held = {name: str(value) for name, value in arguments if any(w in name for w in HOLDING)}
        facts = json.dumps([loaders, held], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()

    def base_file(self) -> str:
        """The name of the file that the model comes from; nothing where the graph does not say."""
        link = self.inputs.get("model")
        node = self.prompt.get(link[0], {}) if isinstance(link, list) else {}
        widget, _ = LOADERS.get(node.get("class_type", ""), ("", ""))
        named = node.get("inputs", {}).get(widget)
        return re.split(r"[\\/]", named)[-1] if isinstance(named, str) else ""

    def _loader(self, link: Any) -> list[Any] | None:
        if not isinstance(link, list):
            return None
        node_id, output = link
        node = self.prompt.get(node_id, {})
        if node.get("class_type") not in LOADERS:
            return None
        widget, folder = LOADERS[node["class_type"]]
        inputs = node["inputs"]
        path = folder_paths.get_full_path(folder, str(inputs.get(widget)))
        if path is None or any(isinstance(value, list) for value in inputs.values()):
            return None
        facts = os.stat(path)
        return [node["class_type"], inputs, output, path, facts.st_size, facts.st_mtime_ns]


# -- what files hash to -------------------------------------------------------


def remember(source: str, base: Mapping[str, str]) -> None:
    """Keep what model, clip and vae from `source` hash to."""
    known = _known()
    if known.get(source) != base:
        known.pop(source, None)
        newest = dict([*known.items(), (source, dict(base))][-MOST_REMEMBERED:])
        with contextlib.suppress(SaveError):  # then they are loaded and hashed again
            write_whole(_path(), json.dumps(newest, indent=1).encode())


def remembered(node: GraphNode) -> dict[str, str] | None:
    """What `remember` was given for the source of a node's base."""
    return _known().get(node.base_source() or "")


@functools.cache
def known_files() -> KnownFiles:
    """What files hash to, such as pictures; remembered in the same place."""
    return KnownFiles(runs_folder() / "hashes.txt")


def _known() -> dict[str, dict[str, str]]:
    with contextlib.suppress(OSError, ValueError):
        known: dict[str, dict[str, str]] = json.loads(_path().read_text(encoding="utf-8"))
        return known
    return {}


def _path() -> Path:
    return runs_folder() / "bases.json"


# -- the host's cache ---------------------------------------------------------


def served_without_base(node: GraphNode) -> None:
    """Note that the node hands out nothing where its base would be."""
    _served_without.add(str(node.node_id))


def must_run_again(node_id: str | None, outputs: Collection[int]) -> bool:
    """Whether the graph now asks for what the node was served without."""
    return node_id in _served_without and bool(wired_now(node_id, outputs))


def wired_now(node_id: str | None, outputs: Collection[int]) -> list[int]:
    """Which of these outputs the graph that runs now asks for."""
    running, _ = server.PromptServer.instance.prompt_queue.get_current_queue()
    # (number, id, prompt, ...); the host asks before it runs the first node of a prompt.
    nodes = [GraphNode(node_id, item[2]) for item in running]
    return [place for place in outputs if any(node.is_wired((place,)) for node in nodes)]
