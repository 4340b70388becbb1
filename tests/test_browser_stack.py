"""Adapter Stack in a page: rows in use and one more are shown; a graph keeps all of them."""

from __future__ import annotations

import re

import pytest
import safetensors.torch
import torch

from tests.browser import RENDERERS, Page, page
from tests.host import Host

PLACED = """() => {
  const stack = LiteGraph.createNode("PersonalizeAdapterStack");
  const trainer = LiteGraph.createNode("PersonalizeTrainTextualInversion");
  stack.pos = [500, 80];
  trainer.pos = [100, 80];
  app.graph.add(stack);
  app.graph.add(trainer);
}"""
OURS = "app.graph.nodes.find((n) => n.comfyClass === 'PersonalizeAdapterStack')"
CHOSEN = f"""([name, value]) => {{
  const widget = {OURS}.widgets.find((w) => w.name === name);
  widget.value = value;
  widget.callback?.(value, app.canvas, {OURS});
}}"""
WIRED = f"""(name) => app.graph.nodes
  .find((n) => n.comfyClass === "PersonalizeTrainTextualInversion")
  .connect(1, {OURS}, {OURS}.inputs.findIndex((input) => input.name === name))"""
UNWIRED = f"""(name) =>
  void {OURS}.disconnectInput({OURS}.inputs.findIndex((input) => input.name === name))"""
# Nodes 2.0 writes names as text, the classic renderer draws what is not hidden.
SHOWN = f"""() => LiteGraph.vueNodesMode
  ? document.querySelector(`[data-node-id="${{{OURS}.id}}"]`)?.innerText ?? ""
  : {OURS}.widgets.filter((w) => {OURS}.isWidgetVisible(w)).map((w) => w.name).join("\\n")"""
QUEUED = f"async () => (await app.graphToPrompt()).output[{OURS}.id].inputs"


def until_rows(shown: Page, number: int) -> None:
    """Wait until the rows 1 to `number` are to be seen, and no other."""
    script = f"""(wanted) => {{
      const text = ({SHOWN})();
      const rows = [...text.matchAll(/\\blora_(\\d)/g)].map(([, row]) => Number(row));
      return Math.max(...rows) === wanted && rows.length === wanted;
    }}"""
    shown.until(script, number, timeout=10)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_rows_grow_with_what_is_chosen_and_wired(host: Host, renderer: str) -> None:
    file = "browser_stack.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, host.base / "models" / "loras" / file)
    with page(host, renderer) as shown:
        shown.run(PLACED)
        until_rows(shown, 1)
        shown.run(CHOSEN, ["lora_1", file])
        until_rows(shown, 2)
        shown.run(WIRED, "lora_2")
        until_rows(shown, 3)
        queued = shown.run(QUEUED)
        assert queued["lora_1"] == file
        assert isinstance(queued["lora_2"], list)
        assert queued["lora_8"] == "None"
        assert len([name for name in queued if re.fullmatch(r"\w+_\d", name)]) == 4 * 8
        shown.load(shown.run("() => JSON.parse(JSON.stringify(app.graph.serialize()))"))
        until_rows(shown, 3)
        assert shown.run(QUEUED)["lora_1"] == file
        shown.run(UNWIRED, "lora_2")
        until_rows(shown, 2)
        shown.run(CHOSEN, ["lora_1", "None"])
        until_rows(shown, 1)
        shown.run(CHOSEN, ["lora_8", file])  # of a graph that was made elsewhere
        until_rows(shown, 8)
        assert shown.complaints == []
