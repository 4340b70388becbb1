"""Makes the blueprints in subgraphs/ of shipped graphs: a graph as one node.

python -m docs.blueprints

Run it when one of those graphs has changed; a test compares. The host serves subgraphs/*.json of
each pack, and its front end lists them among the nodes.
"""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Places = tuple[tuple[str, str], ...]  # of a value: nodes, by title or class, and their widgets

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "subgraphs"
NAMES = uuid.UUID("0d5c1e0e-3c55-5a2f-9d0b-9c2a3f6d1b57")  # ids are made of names, to stay
INPUTS_ID, OUTPUTS_ID = -10, -20  # the edges of a subgraph, as front ends number them
INNER = "-1"  # among promoted widgets: one of an input
EDGE_PX, SLOT_PX, APART_PX = 120, 20, 60
NODE_PX = [400, 620]

SIZES = ("width", "height")
DATASET, LOADER = "PersonalizeFolderDataset", "CheckpointLoaderSimple"
PREVIEW, LATENT, CLASS_IMAGES = "PersonalizePreview", "EmptyLatentImage", "PersonalizeClassImages"
SAMPLE_PROMPT = "a photo of sks dog on a beach"


@dataclass(frozen=True)
class Blueprint:
    """What of a shipped graph becomes one node.

    Attributes:
        graph: the file's name in workflows/, without its suffix.
        without: nodes that are left out, by class; what stood at their ends is an input then.
        inputs: the node's, each with the widgets that it sets.
        outputs: the node's, each with the node and its output.
        texts: values of widgets that are other ones than the graph's, by input.
    """

    name: str
    graph: str
    description: str
    inputs: Mapping[str, Places]
    outputs: Mapping[str, tuple[str, str]]
    without: frozenset[str]
    texts: Mapping[str, str] = field(default_factory=lambda: {"sample_prompt": SAMPLE_PROMPT})


def _common_inputs(trainer: str, *more_sizes: str) -> dict[str, Places]:
    sized = (PREVIEW, LATENT, *more_sizes)
    sizes = tuple((node, side) for node in sized for side in SIZES)
    return {
        "checkpoint": ((LOADER, "ckpt_name"),),
        "folder": ((DATASET, "folder"),),
        "prompt": ((DATASET, "prompt"), (PREVIEW, "prompts")),
        "sample_prompt": (("Positive Prompt", "text"),),
        "steps": ((trainer, "steps"),),
        "learning_rate": ((trainer, "learning_rate"),),
        "resolution": ((DATASET, "resolution"), *sizes),
    }


LEFT_OUT = frozenset({"Note", "PrimitiveString", "StringConcatenate"})
LORA, DREAMBOOTH = "PersonalizeTrainLora", "PersonalizeTrainDreamBooth"
BLUEPRINTS = (
    Blueprint(
        name="Train a LoRA and sample",
        graph="1 LoRA of your subject (SD 1.5)",
        description="Trains a LoRA on a folder of pictures, keeps it in output/loras and samples "
        "with it. Set resolution to what the checkpoint was made for: 512 for SD 1.5, 1024 for "
        "SDXL.",
        inputs=_common_inputs(LORA),
        outputs={
            "image": ("VAEDecode", "IMAGE"),
            "model": (LORA, "model"),
            "clip": (LORA, "clip"),
            "vae": (LOADER, "VAE"),
            "lora": (LORA, "lora"),
            "loss_map": (LORA, "loss_map"),
            "run": (LORA, "run"),
        },
        without=LEFT_OUT,
    ),
    Blueprint(
        name="DreamBooth a subject",
        graph="3 DreamBooth of your subject (SD 1.5)",
        description="Makes class images, trains the whole model on a folder of pictures and "
        "samples with it. Set resolution to what the checkpoint was made for: 512 for SD 1.5, 1024 "
        "for SDXL. Wire model, clip and vae to Save Checkpoint to keep the model as a file.",
        inputs=_common_inputs(DREAMBOOTH, CLASS_IMAGES)
        | {"class_prompt": ((CLASS_IMAGES, "prompt"),), "class_images": ((CLASS_IMAGES, "count"),)},
        outputs={
            "image": ("VAEDecode", "IMAGE"),
            "model": (DREAMBOOTH, "model"),
            "clip": (DREAMBOOTH, "clip"),
            "vae": (LOADER, "VAE"),
            "loss_map": (DREAMBOOTH, "loss_map"),
            "run": (DREAMBOOTH, "run"),
        },
        without=LEFT_OUT | {"CheckpointSave"},
    ),
)


class Inside:
    """The nodes and links of a blueprint; its ends are wired one after another."""

    def __init__(self, blueprint: Blueprint) -> None:
        path = ROOT / "workflows" / f"{blueprint.graph}.json"
        graph = json.loads(path.read_text(encoding="utf-8"))
        kept = [node for node in graph["nodes"] if node["type"] not in blueprint.without]
        self.blueprint, self.groups = blueprint, graph["groups"]
        self.nodes: list[Json] = [_shown(node) for node in copy.deepcopy(kept)]
        ids = {node["id"] for node in self.nodes}
        ours = [link for link in graph["links"] if {link[1], link[3]} <= ids]
        self.links = [_link(*link) for link in ours]
        self._next = graph["last_link_id"] + 1
        self._relink()

    def node(self, name: str) -> Json:
        """The node of this title or class."""
        return next(node for node in self.nodes if name in (node.get("title"), node["type"]))

    def values(self, name: str) -> Any:
        """What an input's first widget holds, once all of its widgets hold the same."""
        places = self.blueprint.inputs[name]
        first = self.node(places[0][0])
        value = first["widgets_values"][_value_place(first, places[0][1])]
        value = self.blueprint.texts.get(name, value)
        for node_name, widget in places:
            node = self.node(node_name)
            node["widgets_values"][_value_place(node, widget)] = value
        return value

    def wire_input(self, slot: int, name: str) -> Json:
        """The subgraph's input of this name, linked to all that it sets."""
        found = []
        for node_name, widget in self.blueprint.inputs[name]:
            node = self.node(node_name)
            place = next(i for i, one in enumerate(node["inputs"]) if one["name"] == widget)
            kind = node["inputs"][place]["type"]
            found.append(self._add(INPUTS_ID, slot, node["id"], place, kind))
        return {"name": name, "type": self._type_of(found[0]), "linkIds": found}

    def wire_output(self, slot: int, name: str) -> Json:
        node_name, output = self.blueprint.outputs[name]
        node = self.node(node_name)
        place = next(i for i, one in enumerate(node["outputs"]) if one["name"] == output)
        kind = node["outputs"][place]["type"]
        link = self._add(node["id"], place, OUTPUTS_ID, slot, kind)
        return {"name": name, "type": kind, "linkIds": [link]}

    def _add(self, origin: int, origin_slot: int, target: int, target_slot: int, kind: str) -> int:
        link, self._next = self._next, self._next + 1
        self.links.append(_link(link, origin, origin_slot, target, target_slot, kind))
        self._relink()
        return link

    def _type_of(self, link: int) -> str:
        return str(next(one["type"] for one in self.links if one["id"] == link))

    def _relink(self) -> None:
        """Say at each end which links there are."""
        for node in self.nodes:
            for place, one in enumerate(node["inputs"]):
                ends = [k["id"] for k in self.links if _is_at(k, "target", node, place)]
                one["link"] = ends[0] if ends else None
            for place, one in enumerate(node["outputs"]):
                one["links"] = [k["id"] for k in self.links if _is_at(k, "origin", node, place)]


def _shown(node: Json) -> Json:
    """The node; one that shows a picture in the place of one that keeps it."""
    if node["type"] != "SaveImage":
        return node
    inputs = [one for one in node["inputs"] if one["name"] == "images"]
    properties = node["properties"] | {"Node name for S&R": "PreviewImage"}
    return node | {
        "type": "PreviewImage", "inputs": inputs, "widgets_values": [],
        "properties": properties,
    }  # fmt: skip


def _link(link: int, origin: int, slot: int, target: int, place: int, kind: str) -> Json:
    return {"id": link, "origin_id": origin, "origin_slot": slot, "target_id": target,
            "target_slot": place, "type": kind}  # fmt: skip


def _is_at(link: Mapping[str, Any], end: str, node: Mapping[str, Any], place: int) -> bool:
    return (link[f"{end}_id"], link[f"{end}_slot"]) == (node["id"], place)


def _value_place(node: Mapping[str, Any], widget: str) -> int:
    """Where a widget's value stands: a seed has one more after it for what a run does to it."""
    names: list[str] = []
    for name in (one["name"] for one in node["inputs"] if one.get("widget")):
        names += [name, "after"] if name == "seed" else [name]
    return names.index(widget)


def _slots(inside: Inside, inputs: list[Json], outputs: list[Json]) -> Iterator[Json]:
    """The two edges, with the positions of their slots."""
    boxes = [group["bounding"] for group in inside.groups]
    left, right = min(box[0] for box in boxes), max(box[0] + box[2] for box in boxes)
    top = min(box[1] for box in boxes) + APART_PX
    before, behind = left - APART_PX - EDGE_PX, right + APART_PX
    for edge, x, slots in ((INPUTS_ID, before, inputs), (OUTPUTS_ID, behind, outputs)):
        for number, slot in enumerate(slots, 1):
            name = f"{inside.blueprint.name} {edge} {slot['name']}"
            at = x + (EDGE_PX - SLOT_PX if edge == INPUTS_ID else SLOT_PX)
            slot |= {"id": str(uuid.uuid5(NAMES, name)), "pos": [at, top + SLOT_PX * number]}
        yield {"id": edge, "bounding": [x, top, EDGE_PX, SLOT_PX * (len(slots) + 2)]}


def _definition(inside: Inside, inputs: list[Json], outputs: list[Json]) -> Json:
    blueprint = inside.blueprint
    input_node, output_node = _slots(inside, inputs, outputs)
    counts = {"lastGroupId": len(inside.groups), "lastRerouteId": 0}
    counts["lastNodeId"] = max(node["id"] for node in inside.nodes)
    counts["lastLinkId"] = max(link["id"] for link in inside.links)
    return {
        "id": str(uuid.uuid5(NAMES, blueprint.name)), "version": 1, "state": counts,
        "revision": 0, "config": {}, "name": blueprint.name, "inputNode": input_node,
        "outputNode": output_node, "inputs": inputs, "outputs": outputs, "widgets": [],
        "nodes": inside.nodes, "groups": inside.groups, "links": inside.links, "extra": {},
        "category": "personalize", "description": blueprint.description,
    }  # fmt: skip


def build(blueprint: Blueprint) -> Json:
    """The blueprint as a graph with one node, as the host serves it."""
    inside = Inside(blueprint)
    values = {name: inside.values(name) for name in blueprint.inputs}
    inputs = [inside.wire_input(slot, name) for slot, name in enumerate(blueprint.inputs)]
    outputs = [inside.wire_output(slot, name) for slot, name in enumerate(blueprint.outputs)]
    definition = _definition(inside, inputs, outputs)
    sockets = [
        {"name": one["name"], "type": one["type"], "widget": {"name": one["name"]}, "link": None}
        for one in inputs
    ]
    node = {
        "id": 1, "type": definition["id"], "pos": [0, 0], "size": NODE_PX, "flags": {}, "order": 0,
        "mode": 0, "inputs": sockets,
        "outputs": [{"name": o["name"], "type": o["type"], "links": []} for o in outputs],
        "properties": {
            "proxyWidgets": [[INNER, name] for name in values], "cnr_id": "personalize",
        },
        "widgets_values": [*values.values()],
    }  # fmt: skip
    return {
        "id": str(uuid.uuid5(NAMES, f"graph of {blueprint.name}")), "revision": 0,
        "last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "groups": [],
        "definitions": {"subgraphs": [definition]}, "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


def written(blueprint: Blueprint) -> str:
    """The text of its file."""
    return json.dumps(build(blueprint), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for one in BLUEPRINTS:
        (FOLDER / f"{one.name}.json").write_text(written(one), encoding="utf-8")
