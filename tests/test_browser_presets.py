"""The dialog of presets, in a real browser."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.browser import Page
from tests.host import ROOT

TRAINER, OPTIMIZER = "PersonalizeTrainDreamBooth", "PersonalizeOptimizer"
FACE = json.loads((ROOT / "presets/dreambooth/Face (SDXL).json").read_text(encoding="utf-8"))
DIALOG, TOAST = "dialog.personalize-presets", ".p-toast-message"
MARKUP = "<img src=x onerror=alert(1)>"

classic_alone = pytest.mark.parametrize("tab", ["classic"], indirect=True)

MAKE = """(type) => {
    const node = LiteGraph.createNode(type);
    node.pos = [500, 100];
    app.graph.add(node);
    app.canvas.ds.scale = 0.7;
    app.canvas.ds.offset = [150, 40];
    app.canvas.setDirty(true, true);
}"""
WHERE = """(type) => {
    const node = app.canvas.graph.nodes.find((one) => one.type === type);
    const widget = node.widgets.find((one) => one.name === "presets");
    const { scale, offset } = app.canvas.ds;
    const frame = app.canvas.canvas.getBoundingClientRect();
    const [x, y] = [node.pos[0] + node.size[0] / 2, node.pos[1] + (widget.last_y ?? widget.y) + 10];
    return [frame.left + (x + offset[0]) * scale, frame.top + (y + offset[1]) * scale];
}"""
NODES = """() => app.canvas.graph.nodes.map((node) => ({
    type: node.type, id: node.id, box: [...node.pos, ...node.size],
    values: Object.fromEntries((node.widgets ?? []).map(({ name, value }) => [name, value])),
    from: node.inputs.map((_, slot) => node.getInputNode(slot)?.type).filter(Boolean),
}))"""


def press(opened: Page) -> None:
    """Click the node's button."""
    if opened.renderer == "classic":
        opened.tab.wait_for_timeout(500)  # drawn once, so that the button has a place
        opened.tab.mouse.click(*opened.run(WHERE, TRAINER))
    else:
        opened.tab.get_by_role("button", name="presets", exact=True).click()
    opened.tab.wait_for_selector(f"{DIALOG}[open]")


def nodes(opened: Page) -> dict[str, dict[str, Any]]:
    return {node["type"]: node for node in opened.run(NODES)}


def text(opened: Page) -> str:
    return str(opened.tab.inner_text(DIALOG))


def test_preset_shows_what_it_changes_and_does_it(opened: Page) -> None:
    opened.run(MAKE, TRAINER)
    press(opened)
    opened.tab.keyboard.press("ArrowDown")
    assert FACE["about"] in text(opened)
    assert FACE["source"] in text(opened)
    assert "learning_rate\t2e-6\t→\t1e-6" in text(opened)
    assert "Optimizer Settings, a new node beside this one" in text(opened)

    opened.tab.keyboard.press("Enter")
    opened.tab.wait_for_selector(TOAST)
    assert "steps 400 → 1200" in opened.tab.inner_text(TOAST)
    opened.tab.wait_for_timeout(500)  # Nodes 2.0 has measured the new node
    after = nodes(opened)
    values = after[TRAINER]["values"] | after[OPTIMIZER]["values"]
    assert {name: values.get(name, 0) for name in FACE["settings"]} == FACE["settings"]
    assert set(after) == {TRAINER, OPTIMIZER}, "epochs is as it was: no Run Settings"
    assert after[TRAINER]["from"] == [OPTIMIZER]
    assert apart(after[TRAINER]["box"], after[OPTIMIZER]["box"])

    press(opened)
    opened.tab.keyboard.press("ArrowDown")
    assert "All is set like this already" in text(opened)
    assert opened.tab.is_disabled(f"{DIALOG} [type=submit]")
    opened.tab.keyboard.press("Escape")
    opened.until(f"() => !document.querySelector({json.dumps(DIALOG)})")


def test_preset_is_one_step_of_undo(opened: Page) -> None:
    opened.run(MAKE, TRAINER)
    before = nodes(opened)
    press(opened)
    opened.tab.keyboard.press("ArrowDown")
    opened.tab.keyboard.press("Enter")
    opened.tab.wait_for_selector(TOAST)
    assert set(nodes(opened)) == {TRAINER, OPTIMIZER}
    opened.tab.wait_for_timeout(500)  # Nodes 2.0 has measured the new node
    opened.tab.mouse.click(60, 850)  # the front end looks for changes at each click
    opened.tab.keyboard.press("Control+z")
    opened.until("() => app.graph.nodes.length === 1")
    assert nodes(opened)[TRAINER]["values"] == before[TRAINER]["values"]


def apart(a: list[float], b: list[float]) -> bool:
    return a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0] or a[1] + a[3] < b[1] or b[1] + b[3] < a[1]


def test_preset_works_inside_a_subgraph(opened: Page) -> None:
    opened.run(MAKE, TRAINER)
    opened.run("""() => {
        const { subgraph } = app.graph.convertToSubgraph(new Set(app.graph.nodes));
        app.canvas.setGraph(subgraph);
        app.canvas.ds.scale = 0.7;
        app.canvas.ds.offset = [150, 40];
    }""")
    press(opened)
    opened.tab.keyboard.press("ArrowDown")
    opened.tab.keyboard.press("Enter")
    opened.tab.wait_for_selector(TOAST)
    inside = nodes(opened)
    assert set(inside) == {TRAINER, OPTIMIZER}
    assert inside[TRAINER]["from"] == [OPTIMIZER]
    assert inside[TRAINER]["values"]["weights"] == "bf16"
    assert opened.run("() => app.graph.rootGraph.nodes.length") == 1


@classic_alone
def test_button_is_not_saved_with_the_graph(opened: Page) -> None:
    opened.run(MAKE, TRAINER)
    saved = opened.run("() => app.graph.serialize().nodes[0].widgets_values")
    assert saved == [400, 2e-6, False, "fp32", False, 1, "auto", False, 0, "fixed"]


@classic_alone
def test_what_users_write_is_only_ever_text(opened: Page) -> None:
    setting = {"name": MARKUP, "value": MARKUP, "default": MARKUP, "input": None}
    facts = {"name": MARKUP, "models": [MARKUP], "about": MARKUP, "source": MARKUP}
    answer = {"presets": [facts | {"settings": [setting]}], "nodes": {}, "problems": [MARKUP]}
    opened.tab.route("**/personalize/presets*", lambda route: route.fulfill(json=answer))
    opened.run(MAKE, TRAINER)
    press(opened)
    opened.tab.click(f"{DIALOG} summary")
    assert text(opened).count(MARKUP) >= 5
    assert "One file in presets/ cannot be used" in text(opened)
    assert opened.tab.query_selector(f"{DIALOG} img") is None


@classic_alone
def test_server_that_has_no_answer_is_told(opened: Page) -> None:
    opened.tab.route("**/personalize/presets*", lambda route: route.fulfill(status=500))
    opened.run(MAKE, TRAINER)
    opened.tab.wait_for_timeout(500)
    opened.tab.mouse.click(*opened.run(WHERE, TRAINER))
    opened.tab.wait_for_selector(TOAST)
    assert "The server says 500." in opened.tab.inner_text(TOAST)
    opened.forgive(500)
