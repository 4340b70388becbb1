"""Plot Loss in a page: a plot in its body, which pointer and keys read; the picture's palette."""

from __future__ import annotations

import json

import pytest

from tests.browser import RENDERERS, Page, page
from tests.host import Host
from tests.run_folders import rows

PLACED = """() => {
  const node = LiteGraph.createNode("PersonalizeLossPlot");
  app.graph.add(node);
}"""
THEMES = """async () => {
  const { output, workflow } = await app.graphToPrompt();
  return [Object.values(output)[0].inputs.theme, workflow.nodes[0].widgets_values];
}"""
SAVED_BEFORE = {
    "nodes": [{"id": 1, "type": "PersonalizeLossPlot", "pos": [0, 0], "widgets_values": []}],
    "links": [],
    "version": 0.4,
}


@pytest.mark.parametrize("renderer", RENDERERS)
def test_plot_is_as_dark_as_the_page(host: Host, renderer: str) -> None:
    with page(host, renderer) as shown:
        shown.run(PLACED)
        for palette in ("dark", "light", "solarized", "dark"):
            shown.set({"Comfy.ColorPalette": palette})
            theme = "light" if palette == "light" else "dark"
            assert shown.run(THEMES) == [theme, ["auto", ""]], palette
        shown.run("() => void (app.graph.nodes[0].widgets[0].value = 'light')")
        assert shown.run(THEMES) == ["light", ["light", ""]]
        shown.load(SAVED_BEFORE)  # when the node had no such widget
        assert shown.run(THEMES)[0] == "dark"
        assert shown.complaints == []


PLOT = ".personalize-plot"
WIRED = """(maps) => {
  const plot = LiteGraph.createNode("PersonalizeLossPlot");
  app.graph.add(plot);
  plot.pos = [320, 60];
  plot.widgets.find(({ name }) => name === "labels").value = "first\\n<b>second</b>";
  maps.forEach((text, place) => {
    const losses = LiteGraph.createNode("ProbeLosses");
    app.graph.add(losses);
    losses.pos = [20, 60 + 240 * place];
    losses.widgets[0].value = text;
    losses.connect(0, plot, place);
  });
  return app.loadGraphData({ ...app.graph.serialize(), id: crypto.randomUUID() });
}"""
VALUES = f"""() => [...document.querySelectorAll("{PLOT} tbody tr")].map((row) =>
  [...row.children].map((cell) => cell.textContent))"""
KEPT_MS = 2000  # until the page has kept the graph for its next visit
ZOOMED = "(s) => { Object.assign(app.canvas.ds, { scale: s }); app.canvas.setDirty(true, true); }"


def loss_map(steps: int, first: int, every: int) -> str:
    """A run that began with another one's state, whose held-out pictures were looked at."""
    found = rows(steps, validate_every=every)
    held = [[row["step"] + first - 1, row["validation"]] for row in found if "validation" in row]
    losses = [row["loss"] for row in found]
    return json.dumps({"loss": losses, "validation": held, "first_step": [first]})


def pointed(opened: Page, part: float) -> None:
    """Move the mouse to a place between the axes' ends, 0 to 1."""
    frame = opened.tab.locator(f"{PLOT} .plot").bounding_box()
    grid = opened.tab.locator(f"{PLOT} .grid").first.bounding_box()
    opened.tab.mouse.move(grid["x"] + part * grid["width"], frame["y"] + frame["height"] / 2)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_plot_in_the_body_is_read_by_pointer_and_keys(host: Host, renderer: str) -> None:
    with page(host, renderer) as shown:
        shown.run(WIRED, [loss_map(60, 1, 10), loss_map(40, 41, 0)])
        shown.queue()
        shown.tab.wait_for_selector(f"{PLOT} .smoothed")
        shown.settle()
        assert shown.tab.locator(f"{PLOT} .smoothed").count() == 2
        assert shown.tab.locator("[data-node-id] .image-preview").count() == 0
        assert shown.run("() => app.graph.nodes.every(({ imgs }) => !imgs?.length)")
        for scale in (1, 0.5):
            shown.run(ZOOMED, scale)
            shown.settle()
            pointed(shown, 0.5)  # of steps 1 to 80, from 0
            first, second = shown.run(VALUES)
            assert first[:2] + second[:2] == ["A: first", "40", "B: <b>second</b>", "41"], scale
            assert first[2] == f"{rows(60)[39]['loss']:.4g}"
            assert first[4].endswith(" at 40")
            assert second[4] == ""
        slider = shown.tab.locator(f"{PLOT} input[type=range]")
        slider.focus()
        shown.tab.keyboard.press("ArrowRight")
        assert [row[1] for row in shown.run(VALUES)] == ["41", "41"]
        assert "B: step 41: loss " in slider.get_attribute("aria-valuetext")
        before = shown.tab.locator(f"{PLOT} .smoothed").first.get_attribute("points")
        shown.tab.get_by_label("logarithmic loss").check()
        assert shown.tab.locator(f"{PLOT} .smoothed").first.get_attribute("points") != before
        values = shown.run(VALUES)
        shown.tab.wait_for_timeout(KEPT_MS)
        shown.open()
        shown.tab.wait_for_selector(f"{PLOT} .smoothed")
        assert [row[0] for row in shown.run(VALUES)] == [row[0] for row in values]
        assert shown.complaints == []
