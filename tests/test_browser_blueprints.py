"""The blueprints: made of the shipped graphs, served by the host, and run as one node."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from docs.blueprints import BLUEPRINTS, FOLDER, Blueprint, build, written
from tests.browser import page
from tests.conftest import DEV_DIR
from tests.dataset_files import save
from tests.host import PACK_NAME, Host
from tests.test_workflows import number_of_values

PICTURES = DEV_DIR / "pictures"
SMALL: dict[str, Any] = {
    "checkpoint": "thin_sd15.safetensors", "folder": "blueprint", "steps": 2, "resolution": 64,
    "class_images": 2,
}  # fmt: skip
# What is small is set in the node, as people do; that sampling is short is no input of it.
FILLED = """(values) => {
  const [node] = app.graph.nodes;
  for (const widget of node.widgets) if (widget.name in values) {
    widget.value = values[widget.name];
    widget.callback?.(widget.value);
  }
  for (const inner of node.subgraph.nodes) if (!inner.type.startsWith("PersonalizeTrain"))
    for (const widget of inner.widgets ?? []) if (widget.name === "steps") widget.value = 1;
}"""
WIDGETS = "() => app.graph.nodes[0].widgets.map(({ name, value }) => [name, value])"
SHOWN = "() => app.nodeOutputs && Object.values(app.nodeOutputs).some((one) => one.images?.length)"
TRAINS_SECONDS = 180

each_blueprint = pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda one: one.name)


@each_blueprint
def test_blueprint_is_made_of_its_graph(blueprint: Blueprint) -> None:
    """Where it is not: python -m docs.blueprints"""
    assert (FOLDER / f"{blueprint.name}.json").read_text(encoding="utf-8") == written(blueprint)


def test_no_blueprint_is_left_over() -> None:
    assert {one.name for one in BLUEPRINTS} == {file.stem for file in FOLDER.glob("*.json")}


@each_blueprint
def test_ends_of_each_link_know_it(blueprint: Blueprint) -> None:
    [inside] = build(blueprint)["definitions"]["subgraphs"]
    nodes = {node["id"]: node for node in inside["nodes"]}
    for link in inside["links"]:
        origin, target = nodes.get(link["origin_id"]), nodes.get(link["target_id"])
        begin = (
            origin["outputs"][link["origin_slot"]]["links"]
            if origin
            else inside["inputs"][link["origin_slot"]]["linkIds"]
        )
        end = (
            [target["inputs"][link["target_slot"]]["link"]]
            if target
            else inside["outputs"][link["target_slot"]]["linkIds"]
        )
        assert link["id"] in begin
        assert link["id"] in end
    told = [one for node in nodes.values() for one in node["inputs"] if one["link"] is not None]
    outward = [link for link in inside["links"] if link["target_id"] == inside["outputNode"]["id"]]
    assert len(told) + len(outward) == len(inside["links"])


@each_blueprint
def test_host_serves_the_blueprint_and_has_its_nodes(blueprint: Blueprint, host: Host) -> None:
    listed = host.get("/global_subgraphs")
    ours = [key for key, one in listed.items() if one["info"]["node_pack"].endswith(PACK_NAME)]
    [key] = [key for key in ours if listed[key]["name"] == blueprint.name]
    info = host.object_info()
    [inside] = json.loads(host.get(f"/global_subgraphs/{key}")["data"])["definitions"]["subgraphs"]
    for node in inside["nodes"]:
        assert len(node["widgets_values"]) == number_of_values(info[node["type"]]), node["type"]
        outputs = [(one["name"], one["type"]) for one in node["outputs"]]
        known = info[node["type"]]
        assert outputs == list(zip(known["output_name"], known["output"], strict=True))


@each_blueprint
def test_dropped_blueprint_trains_and_shows_its_picture(blueprint: Blueprint, host: Host) -> None:
    for number in "12":
        save(host.base / "input" / "blueprint" / f"{number}.png", (64, 64))
    with page(host, "nodes 2.0") as shown:
        before = set(host.get("/history"))
        shown.run("() => app.extensionManager.command.execute("
                  "'Workspace.ToggleSidebarTab.node-library')")  # fmt: skip
        shown.tab.locator("input[placeholder*=earch]").first.fill(blueprint.name)
        shown.tab.get_by_text(blueprint.name).first.click()
        shown.tab.mouse.click(800, 150)
        shown.until("() => app.graph.nodes.length === 1")
        names = [name for name, _ in shown.run(WIDGETS)]
        assert names == list(blueprint.inputs)
        shown.run(FILLED, SMALL)
        shown.queue()
        shown.until(SHOWN, timeout=180)
        began = time.monotonic()  # what is shown first may be class images
        while not (done := set(host.get("/history")) - before):
            assert time.monotonic() - began < TRAINS_SECONDS
            shown.tab.wait_for_timeout(500)
        pictures = host.images(host.wait(*done))
        assert len(pictures) == 1 + ("class_images" in names)  # these on one sheet
        assert all(picture.stat().st_size > 0 for picture in pictures)
        if "lora" in blueprint.outputs:
            assert list((host.base / "output" / "loras").glob("blueprint_*.safetensors"))
        shown.picture(PICTURES / f"blueprint {blueprint.name}.png")
        assert shown.complaints == []
