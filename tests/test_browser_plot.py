"""Plot Loss in a page: its plot follows the palette, the saved graph does not."""

from __future__ import annotations

import pytest

from tests.browser import RENDERERS, page
from tests.host import Host

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
