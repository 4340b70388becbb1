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
PRESSED = f"""() => {{
  const button = {OURS}.widgets.find((w) => w.name === "limits");
  button.callback(button.value, app.canvas, {OURS});
}}"""
SAVED = "() => JSON.parse(JSON.stringify(app.graph.serialize()))"
QUEUED = f"async () => (await app.graphToPrompt()).output[{OURS}.id].inputs"


def until_rows(shown: Page, number: int) -> None:
    """Wait until the rows 1 to `number` are to be seen, and no other."""
    script = f"""(wanted) => {{
      const text = ({SHOWN})();
      const rows = [...text.matchAll(/\\blora_(\\d)/g)].map(([, row]) => Number(row));
      return Math.max(...rows) === wanted && rows.length === wanted;
    }}"""
    shown.until(script, number, timeout=10)


def until_limits(shown: Page, rows: list[int]) -> None:
    """Wait until these rows show their limits, and no other."""
    script = f"""(wanted) => ["start", "end", "blocks"].every((name) => {{
      const found = [...({SHOWN})().matchAll(new RegExp(`\\\\b${{name}}_(\\\\d)`, "g"))];
      return found.map(([, row]) => row).join() === wanted.join();
    }})"""
    shown.until(script, rows, timeout=10)


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
        assert len([name for name in queued if re.fullmatch(r"\w+_\d", name)]) == 7 * 8
        shown.load(shown.run(SAVED))
        until_rows(shown, 3)
        assert shown.run(QUEUED)["lora_1"] == file
        shown.run(UNWIRED, "lora_2")
        until_rows(shown, 2)
        shown.run(CHOSEN, ["lora_1", "None"])
        until_rows(shown, 1)
        shown.run(CHOSEN, ["lora_8", file])  # of a graph that was made elsewhere
        until_rows(shown, 8)
        assert shown.complaints == []


@pytest.mark.parametrize("renderer", RENDERERS)
def test_limits_are_shown_where_they_are_set_or_asked_for(host: Host, renderer: str) -> None:
    files = [f"browser_stack_{n}.safetensors" for n in (1, 2)]
    for file in files:
        safetensors.torch.save_file({"a": torch.ones(1)}, host.base / "models" / "loras" / file)
    with page(host, renderer) as shown:
        shown.run(PLACED)
        shown.run(CHOSEN, ["lora_1", files[0]])
        shown.run(CHOSEN, ["lora_2", files[1]])
        until_rows(shown, 3)
        until_limits(shown, [])
        before = shown.run(QUEUED)
        shown.run(PRESSED)
        until_limits(shown, [1, 2])
        assert shown.run(QUEUED) == before
        shown.load(shown.run(SAVED))
        until_limits(shown, [1, 2])
        shown.run(CHOSEN, ["blocks_2", "OUTALL"])
        shown.run(PRESSED)
        until_limits(shown, [2])
        shown.load(shown.run(SAVED))
        until_limits(shown, [2])
        assert shown.run(QUEUED) == {**before, "blocks_2": "OUTALL"}
        assert shown.complaints == []
