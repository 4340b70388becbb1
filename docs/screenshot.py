"""Takes the pictures of the shipped graphs: the template browser's, and the README's of the first.

    python -m pip install playwright    # and Chromium: --chromium names its program
    python -m docs.screenshot --comfyui DIR [--graph TITLE]
                              [--base FILE --images DIR --prompt TEXT --steps N --cfg N ...]

Without a base model a graph is shown as it opens. With one the first graph is run before, on those
pictures, so that its results are in the picture.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.host import ROOT, Host

FIRST = "Train a LoRA and sample"
PICTURE = ROOT / "docs" / "images" / "graph.png"
PICTURE_PX, TEMPLATE_PX = 2000, 1200  # widths
SCALE = 0.75  # page pixels for a unit of the graph; the screenshot has twice as many
EDGE_PX = 320  # of the page: its bars and buttons lie there and are cut off
MARGIN_PX = 16
RUN_SECONDS = 3600
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.VueNodes.Enabled": False,
}

READY = "() => Boolean(window.app?.canvas && LiteGraph.registered_node_types.PersonalizeTrainLora)"
LOAD = "graph => app.loadGraphData(graph)"
SET = """([type, name, value]) => {
    const node = app.graph.nodes.find(node => node.type === type)
    node.widgets.find(widget => widget.name === name).value = value
}"""
PLACE = """([scale, x, y]) => {
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [x, y]
    app.canvas.setDirty(true, true)
}"""


def open_graph(page: Page, host: Host, graph: dict[str, Any]) -> None:
    page.request.post(f"{host.url}/settings", data=SETTINGS)
    page.goto(host.url)
    page.wait_for_function(READY)
    page.wait_for_timeout(3000)  # the last graph is restored late
    page.evaluate(LOAD, graph)


def run_graph(page: Page, host: Host, asked: argparse.Namespace) -> None:
    """Fills in the asked model, pictures and words, and runs the graph to its end."""
    values = [
        ("CheckpointLoaderSimple", "ckpt_name", asked.base.name),
        ("PersonalizeFolderDataset", "folder", asked.images.resolve().name),
        ("PersonalizeFolderDataset", "prompt", asked.prompt),
        ("PersonalizeFolderDataset", "resolution", asked.resolution),
        ("PersonalizeTrainLora", "steps", asked.steps),
        ("PersonalizeTrainLora", "learning_rate", asked.learning_rate),
        ("CLIPTextEncode", "text", asked.prompt),  # the first is the positive one
        ("KSampler", "cfg", asked.cfg),
        ("EmptyLatentImage", "width", asked.resolution),
        ("EmptyLatentImage", "height", asked.resolution),
    ]
    for value in values:
        page.evaluate(SET, value)
    page.evaluate("() => app.queuePrompt(0)")
    deadline = time.monotonic() + RUN_SECONDS
    while not page.request.get(f"{host.url}/history").json():
        if time.monotonic() > deadline:
            raise TimeoutError(f"The graph ran for more than {RUN_SECONDS} s.")
        page.wait_for_timeout(500)
    page.wait_for_timeout(3000)  # the results are drawn


def photograph(page: Page, graph: dict[str, Any]) -> Image.Image:
    """The part of the page that the graph's groups fill."""
    boxes = [group["bounding"] for group in graph["groups"]]
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    width = SCALE * (max(box[0] + box[2] for box in boxes) - left)
    height = SCALE * (max(box[1] + box[3] for box in boxes) - top)
    page.set_viewport_size({"width": int(width) + 2 * EDGE_PX, "height": int(height) + 2 * EDGE_PX})
    page.evaluate(PLACE, [SCALE, EDGE_PX / SCALE - left, EDGE_PX / SCALE - top])
    page.wait_for_timeout(2000)
    corner = page.locator("#graph-canvas").bounding_box()
    clip = {
        "x": corner["x"] + EDGE_PX - MARGIN_PX,
        "y": corner["y"] + EDGE_PX - MARGIN_PX,
        "width": width + 2 * MARGIN_PX,
        "height": height + 2 * MARGIN_PX,
    }
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def prepare(host: Host, graph: dict[str, Any], asked: argparse.Namespace) -> None:
    """Gives the host what the graph names, so that no node is marked for missing it."""
    for node in graph["nodes"]:
        if node["type"] == "CheckpointLoaderSimple":
            (host.base / "models/checkpoints" / node["widgets_values"][0]).touch()
        if node["type"] == "PersonalizeFolderDataset":
            folder = host.base / "input" / node["widgets_values"][0]
            folder.mkdir(exist_ok=True)
            Image.new("RGB", (64, 64)).save(folder / "1.png")
    if asked.base:
        host.add_model("checkpoints", asked.base)
        host.add_input(asked.images, asked.images.resolve().name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--graph", default=FIRST, help="title of a graph in workflows/")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--prompt", default="a photo of a sks star")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--cfg", type=float, default=7.0)
    asked = parser.parse_args()
    if (asked.base is None) != (asked.images is None):
        parser.error("--base and --images go together")
    template = ROOT / "workflows" / f"{asked.graph}.json"
    graph = json.loads(template.read_text(encoding="utf-8"))
    host = Host(asked.comfyui)
    prepare(host, graph, asked)
    with host, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=asked.chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(device_scale_factor=2)
        open_graph(page, host, graph)
        if asked.base:
            run_graph(page, host, asked)
        picture = photograph(page, graph)
        browser.close()
    sizes_px = {template.with_suffix(".jpg"): TEMPLATE_PX}
    if asked.graph == FIRST:
        sizes_px[PICTURE] = PICTURE_PX
    for path, width in sizes_px.items():
        height = round(picture.height * width / picture.width)
        path.parent.mkdir(exist_ok=True)
        small = picture.resize((width, height), Image.Resampling.LANCZOS)
        small.save(path, quality=88, optimize=True)


if __name__ == "__main__":
    main()
