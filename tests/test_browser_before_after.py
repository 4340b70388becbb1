"""Before and After in a page: the slider by keys and by hand, pair by pair, and after a reload."""

from __future__ import annotations

import io
import uuid

import numpy as np
import pytest
from PIL import Image

from demo.checkpoint import DEMO_CHECKPOINT
from tests.browser import Page
from tests.host import Host

BODY = ".personalize-pairs"
CUT_PX = 8  # more than the edge and the rounded corners take
EDGE = "Edge between before and after"
OURS = "app.graph.nodes.find((n) => n.comfyClass === 'PersonalizeBeforeAfter')"
CREATE = """async ([file, values, id]) => {
  const add = (kind, pos) => {
    const node = LiteGraph.createNode(kind);
    node.pos = pos;
    app.graph.add(node);
    return node;
  };
  const loader = add("CheckpointLoaderSimple", [80, 80]);
  loader.widgets[0].value = file;
  const ours = add("PersonalizeBeforeAfter", [420, 40]);
  ["model", "clip", "vae"].forEach((name, slot) => {
    loader.connect(slot, ours, ours.inputs.findIndex((input) => input.name === name));
  });
  loader.connect(1, ours, ours.inputs.findIndex(({ name }) => name === "trained_clip"));
  for (const one of ours.widgets) if (one.name in values) one.value = values[one.name];
  await app.loadGraphData({ ...app.graph.serialize(), id });
  Object.assign(app.canvas.ds, { scale: 1, offset: [0, 0] });
}"""
VALUES = {
    "prompt": "a photo of a red circle", "base_prompt": "<img src=x onerror=window.hit=1>",
    "count": 2, "width": 64, "height": 64, "steps": 2, "seed": 61,
}  # fmt: skip


LOADED = f"""() => [...document.querySelectorAll("{BODY} img")]
  .every((one) => one.complete && one.naturalWidth === 64)"""

FILES = f"""() => [...document.querySelectorAll("{BODY} img")]
  .map((one) => new URL(one.src).searchParams.get("filename"))"""
GROWN = f"""(width) =>
  document.querySelector("{BODY} .stack").getBoundingClientRect().width > 1.2 * width"""


def shown(opened: Page) -> np.ndarray:
    """The pixels of the pictures as the screen has them, without the edge at their sides."""
    data = opened.tab.screenshot(clip=box(opened))
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))[CUT_PX:-CUT_PX, CUT_PX:-CUT_PX]


def unlike(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of two pictures that a browser may have scaled in two ways."""
    ours, theirs = (
        np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BOX), dtype=int)
        for pixels in (one, other)
    )
    return int(abs(ours - theirs).max())


def box(opened: Page) -> dict[str, float]:
    """Where the pictures are on the screen."""
    found: dict[str, float] = opened.tab.locator(f"{BODY} .stack").bounding_box()
    return found


def ready(opened: Page, words: str) -> None:
    opened.tab.locator(f"{BODY} output", has_text=words).wait_for()
    opened.until(LOADED)
    opened.settle()


def drag(opened: Page, to: float) -> None:
    """Move the edge to this part of the width."""
    where = box(opened)
    top = where["y"] + where["height"] / 2
    opened.tab.mouse.move(where["x"] + 20, top)
    opened.tab.mouse.down()
    opened.tab.mouse.move(where["x"] + to * where["width"], top, steps=4)
    opened.tab.mouse.up()


def check_edge(opened: Page) -> np.ndarray:
    """With the edge at its ends the one or the other is shown, between them a part of each.

    What is before comes back.
    """
    edge = opened.tab.get_by_label(EDGE)
    edge.focus()
    for key, value in (("End", "100"), ("ArrowLeft", "99"), ("End", "100")):
        opened.tab.keyboard.press(key)
        assert edge.input_value() == value
    before = shown(opened)
    opened.tab.keyboard.press("Home")
    after = shown(opened)
    assert unlike(before, after) > 20

    place = opened.run(f"() => [...{OURS}.pos]")
    drag(opened, 0.25)
    assert float(edge.input_value()) == pytest.approx(25, abs=1)
    assert opened.run(f"() => [...{OURS}.pos]") == place, "the node stays where it is"
    both = shown(opened)
    middle = round(float(edge.input_value()) / 100 * box(opened)["width"]) - CUT_PX
    for part, shows, other in (
        (np.s_[:, : middle - CUT_PX], before, after),
        (np.s_[:, middle + CUT_PX :], after, before),
    ):
        assert unlike(both[part], shows[part]) < 10
        assert unlike(both[part], other[part]) > 20
    return before


def test_slider_shows_the_one_and_the_other(opened: Page, host: Host) -> None:
    seed = 61 + 10 * host.get("/settings")["Comfy.VueNodes.Enabled"]
    opened.run(CREATE, [DEMO_CHECKPOINT, VALUES | {"seed": seed}, str(uuid.uuid4())])
    opened.tab.get_by_text("once the graph has run").wait_for()
    opened.settle()
    height = opened.run(f"() => {OURS}.size[1]")
    opened.queue()
    ready(opened, f"1 of 2, seed {seed}")
    assert opened.run(f"() => {OURS}.size[1]") > height, "there is room for the pictures"
    text = opened.tab.inner_text(BODY)
    assert f"before: {VALUES['base_prompt']}" in text
    assert f"after: {VALUES['prompt']}" in text
    assert opened.tab.locator(f"{BODY} .names small").all_inner_texts() == ["before", "after"]
    before = check_edge(opened)

    back, on = (opened.tab.get_by_role("button", name=name) for name in ("previous", "next"))
    assert back.get_attribute("aria-disabled") == "true"
    on.press("Enter")
    ready(opened, f"2 of 2, seed {seed + 1}")
    assert on.get_attribute("aria-disabled") == "true"
    opened.tab.get_by_label(EDGE).press("End")
    assert unlike(shown(opened), before) > 20
    back.press("Enter")
    ready(opened, f"1 of 2, seed {seed}")
    files = opened.run(FILES)

    opened.open()  # it opens the same graph again
    ready(opened, f"1 of 2, seed {seed}")
    assert opened.run(FILES) == files
    width = box(opened)["width"]
    opened.run(f"() => ({OURS}.setSize([700, 1200]), app.canvas.setDirty(true, true))")
    opened.until(GROWN, width)
    assert opened.run("() => window.hit") is None


def test_pictures_that_are_gone_are_told(opened: Page) -> None:
    values = VALUES | {"count": 1, "steps": 1}
    opened.run(CREATE, [DEMO_CHECKPOINT, values, str(uuid.uuid4())])
    gone = {"filename": "gone.png", "subfolder": "", "type": "temp"}
    pair = {"files": [gone, gone], "prompts": ["a", "a"], "seed": "1"}
    opened.run(f"(pairs) => {OURS}.onExecuted({{ before_after: pairs }})", [pair])
    opened.tab.get_by_text("no longer there: run the graph again").wait_for()
    assert opened.tab.locator(f"{BODY} .stack").is_hidden()
