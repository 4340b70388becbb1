"""Takes the README's picture of the first graph, after it has run.

python -m docs.screenshot --comfyui DIR --base FILE --images DIR
                          [--prompt TEXT --more TEXT --targets LAYERS --resolution N
                               --steps N --learning-rate N --cfg N]
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser import Page, page
from tests.host import ROOT, Host

GRAPH = min((ROOT / "workflows").glob("*.json"))
PICTURE = ROOT / "docs" / "images" / "graph.png"
PICTURE_PX = 2000  # its width
SCALE = 0.9  # page pixels for a unit of the graph
EDGE_PX = 320  # of the page: its bars and buttons lie there and are cut off
MARGIN_PX = 16
RUN_SECONDS = 3600

SET = """([type, name, value]) => {
    const node = app.graph.nodes.find(node => node.type === type)
    const widget = node.widgets.find(widget => widget.name === name)
    widget.value = value
    widget.callback?.(value)
}"""
PLACE = """([scale, x, y]) => {
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = [x, y]
    app.canvas.setDirty(true, true)
}"""


def run_graph(opened: Page, asked: argparse.Namespace) -> None:
    """Fills in the asked model, pictures and words, and runs the graph to its end."""
    values = [
        ("PersonalizeFolderDataset", "folder", asked.images.resolve().name),
        ("PersonalizeFolderDataset", "resolution", asked.resolution),
        ("PersonalizePreview", "width", asked.resolution),
        ("PersonalizePreview", "height", asked.resolution),
        ("PersonalizeTrainLora", "steps", asked.steps),
        ("PersonalizeTrainLora", "learning_rate", asked.learning_rate),
        ("PrimitiveString", "value", asked.prompt),
        ("PersonalizeTrainLora", "targets", asked.targets),
        ("StringConcatenate", "string_b", asked.more),
        ("PersonalizePreview", "cfg", asked.cfg),
        ("KSampler", "cfg", asked.cfg),
        ("EmptyLatentImage", "width", asked.resolution),
        ("EmptyLatentImage", "height", asked.resolution),
    ]
    for value in values:
        opened.run(SET, value)
    opened.queue()
    deadline = time.monotonic() + RUN_SECONDS
    while not opened.host.get("/history"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"The graph ran for more than {RUN_SECONDS} s.")
        time.sleep(1)
    opened.tab.wait_for_timeout(15_000)  # the results are drawn, and toasts have gone


def photograph(opened: Page, graph: dict[str, Any]) -> Image.Image:
    """The part of the page that the graph's groups fill."""
    boxes = [group["bounding"] for group in graph["groups"]]
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    width = SCALE * (max(box[0] + box[2] for box in boxes) - left)
    height = SCALE * (max(box[1] + box[3] for box in boxes) - top)
    size = {"width": int(width) + 2 * EDGE_PX, "height": int(height) + 2 * EDGE_PX}
    opened.tab.set_viewport_size(size)
    opened.run(PLACE, [SCALE, EDGE_PX / SCALE - left, EDGE_PX / SCALE - top])
    opened.tab.wait_for_timeout(2000)
    corner = opened.tab.locator("#graph-canvas").bounding_box()
    clip = {
        "x": corner["x"] + EDGE_PX - MARGIN_PX,
        "y": corner["y"] + EDGE_PX - MARGIN_PX,
        "width": width + 2 * MARGIN_PX,
        "height": height + 2 * MARGIN_PX,
    }
    return Image.open(io.BytesIO(opened.tab.screenshot(clip=clip))).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--prompt", default="a photo of a sks star")
    parser.add_argument("--more", default=" on a beach", help="what the picture has beside it")
    parser.add_argument("--targets", default="attention")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--cfg", type=float, default=7.0)
    asked = parser.parse_args()
    graph = json.loads(GRAPH.read_text(encoding="utf-8"))
    (loader,) = (node for node in graph["nodes"] if node["type"] == "CheckpointLoaderSimple")
    host = Host(asked.comfyui, checkpoints={loader["widgets_values"][0]: asked.base})
    host.add_input(asked.images, asked.images.resolve().name)
    with host, page(host) as opened:
        opened.load(graph)
        run_graph(opened, asked)
        picture = photograph(opened, graph)
    height = round(picture.height * PICTURE_PX / picture.width)
    small = picture.resize((PICTURE_PX, height), Image.Resampling.LANCZOS)
    small.save(PICTURE, quality=88, optimize=True)


if __name__ == "__main__":
    main()
