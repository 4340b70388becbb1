"""Compare in a page: rows in use and one more are shown, below them is room for the sheet."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from tests.browser import RENDERERS, Page, page
from tests.host import Host

PLACED = """() => {
  const node = LiteGraph.createNode("PersonalizeCompare");
  node.pos = [100, 80];
  app.graph.add(node);
}"""
OURS = "app.graph.nodes.find((n) => n.comfyClass === 'PersonalizeCompare')"
CHOSEN = f"""([name, value]) => {{
  const widget = {OURS}.widgets.find((w) => w.name === name);
  widget.value = value;
  widget.callback?.(value, app.canvas, {OURS});
}}"""
SHOWN = f"""() => LiteGraph.vueNodesMode
  ? document.querySelector(`[data-node-id="${{{OURS}.id}}"]`)?.innerText ?? ""
  : {OURS}.widgets.filter((w) => {OURS}.isWidgetVisible(w)).map((w) => w.name).join("\\n")"""


def until_rows(shown: Page, number: int) -> None:
    """Wait until the rows 1 to `number` are to be seen, and no other."""
    script = f"""(wanted) => {{
      const rows = [...({SHOWN})().matchAll(/\\blora_(\\d)/g)].map(([, row]) => Number(row));
      return Math.max(...rows) === wanted && rows.length === wanted;
    }}"""
    shown.until(script, number, timeout=10)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_rows_grow_and_room_for_the_sheet_stays(host: Host, renderer: str) -> None:
    file = "browser_compare.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, host.base / "models" / "loras" / file)
    with page(host, renderer) as shown:
        shown.run(PLACED)
        until_rows(shown, 1)
        shown.run(f"() => {OURS}.setSize([500, 1000])")
        shown.run(CHOSEN, ["lora_1", file])
        until_rows(shown, 2)
        shown.load(shown.run("() => JSON.parse(JSON.stringify(app.graph.serialize()))"))
        until_rows(shown, 2)
        assert shown.run(f"() => {OURS}.size[1]") == 1000
        queued = shown.run(f"async () => (await app.graphToPrompt()).output[{OURS}.id].inputs")
        assert queued["lora_1"] == file
        assert [queued[f"lora_{number}"] for number in range(2, 9)] == ["None"] * 7
        assert "run" not in queued
        assert shown.complaints == []
