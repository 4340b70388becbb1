"""The front-end's presets, in Node.js with a stand-in for the host's app."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.host import ROOT

APP = "export const app = { registerExtension: (extension) => (globalThis.extension = extension) };"
DRIVER = """
import "./extensions/personalize/presets.js";
const presets = {
  object: { steps: 400, train_text_encoder: false },
  face: { steps: 1200, train_text_encoder: true },
};
class Node {
  constructor() {
    this.widgets = [
      { name: "preset", value: "custom" },
      { name: "steps", value: 7, callback() { this.seen = true; } },
      { name: "train_text_encoder", value: false },
      { name: "seed", value: 3 },
    ];
    this.onNodeCreated?.();
  }
  setDirtyCanvas() {}
}
globalThis.extension.beforeRegisterNodeDef(class {}, { input: { required: {} } });
globalThis.extension.beforeRegisterNodeDef(
  Node, { input: { required: { preset: [["custom"], { presets }] } } },
);
const node = new Node();
const [preset, steps, text, seed] = node.widgets;
const states = [];
function set(widget, value) {
  widget.value = value;
  widget.callback(value);
  states.push(node.widgets.map((one) => one.value));
}
set(preset, "face");
set(text, true);
set(steps, 900);
set(preset, "object");
set(preset, "custom");
console.log(JSON.stringify({ states, seen: steps.seen }));
"""


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js")
    (tmp_path / "extensions" / "personalize").mkdir(parents=True)
    shutil.copy(ROOT / "js" / "presets.js", tmp_path / "extensions" / "personalize")
    for name, text in {"scripts/app.js": APP, "driver.js": DRIVER}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    done = subprocess.run([node, "driver.js"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    state: dict[str, Any] = json.loads(done.stdout)
    return state


def test_preset_fills_the_widgets_and_editing_makes_it_custom(found: dict[str, Any]) -> None:
    assert found["states"] == [
        ["face", 1200, True, 3],  # chosen
        ["face", 1200, True, 3],  # set to what it is
        ["custom", 900, True, 3],  # edited
        ["object", 400, False, 3],
        ["custom", 400, False, 3],  # custom changes nothing
    ]
    assert found["seen"] is True
