"""Adapter Stack and Compare in a page: rows in use and one more are shown, a graph keeps all."""

from __future__ import annotations

import re

import safetensors.torch
import torch

from tests.browser import Page
from tests.host import Host

PLACED = """() => {
  const stack = LiteGraph.createNode("PersonalizeAdapterStack");
  const trainer = LiteGraph.createNode("PersonalizeTrainTextualInversion");
  stack.pos = [500, 80];
  trainer.pos = [100, 80];
  app.graph.add(stack);
  app.graph.add(trainer);
}"""
COMPARE = """() => {
  const node = LiteGraph.createNode("PersonalizeCompare");
  node.pos = [100, 80];
  app.graph.add(node);
}"""
OURS = "app.graph.nodes.find((n) => n.widgets?.some((w) => w.name === 'lora_1'))"
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


def test_rows_grow_with_what_is_chosen_and_wired(opened: Page, host: Host) -> None:
    file = "browser_stack.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, host.base / "models" / "loras" / file)
    opened.run(PLACED)
    until_rows(opened, 1)
    opened.run(CHOSEN, ["lora_1", file])
    until_rows(opened, 2)
    opened.run(WIRED, "lora_2")
    until_rows(opened, 3)
    queued = opened.run(QUEUED)
    assert queued["lora_1"] == file
    assert isinstance(queued["lora_2"], list)
    assert queued["lora_8"] == "None"
    assert len([name for name in queued if re.fullmatch(r"\w+_\d", name)]) == 7 * 8
    opened.load(opened.run(SAVED))
    until_rows(opened, 3)
    assert opened.run(QUEUED)["lora_1"] == file
    opened.run(UNWIRED, "lora_2")
    until_rows(opened, 2)
    opened.run(CHOSEN, ["lora_1", "None"])
    until_rows(opened, 1)
    opened.run(CHOSEN, ["lora_8", file])  # of a graph that was made elsewhere
    until_rows(opened, 8)


def test_limits_are_shown_where_they_are_set_or_asked_for(opened: Page, host: Host) -> None:
    files = [f"browser_stack_{n}.safetensors" for n in (1, 2)]
    for file in files:
        safetensors.torch.save_file({"a": torch.ones(1)}, host.base / "models" / "loras" / file)
    opened.run(PLACED)
    opened.run(CHOSEN, ["lora_1", files[0]])
    opened.run(CHOSEN, ["lora_2", files[1]])
    until_rows(opened, 3)
    until_limits(opened, [])
    before = opened.run(QUEUED)
    opened.run(PRESSED)
    until_limits(opened, [1, 2])
    assert opened.run(QUEUED) == before
    opened.load(opened.run(SAVED))
    until_limits(opened, [1, 2])
    opened.run(CHOSEN, ["blocks_2", "OUTALL"])
    opened.run(PRESSED)
    until_limits(opened, [2])
    opened.load(opened.run(SAVED))
    until_limits(opened, [2])
    assert opened.run(QUEUED) == {**before, "blocks_2": "OUTALL"}


def test_rows_grow_and_room_for_the_sheet_stays(opened: Page, host: Host) -> None:
    file = "browser_compare.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, host.base / "models" / "loras" / file)
    opened.run(COMPARE)
    until_rows(opened, 1)
    opened.run(f"() => {OURS}.setSize([500, 1000])")
    opened.run(CHOSEN, ["lora_1", file])
    until_rows(opened, 2)
    opened.load(opened.run("() => JSON.parse(JSON.stringify(app.graph.serialize()))"))
    until_rows(opened, 2)
    assert opened.run(f"() => {OURS}.size[1]") == 1000
    queued = opened.run(f"async () => (await app.graphToPrompt()).output[{OURS}.id].inputs")
    assert queued["lora_1"] == file
    assert [queued[f"lora_{number}"] for number in range(2, 9)] == ["None"] * 7
    assert "run" not in queued
