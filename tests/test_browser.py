"""What a person sees of a training, in a real browser: from dropped pictures to the closing line.

Every state is kept as pictures, light on a large screen and dark on a small one, for people to look
at: .dev/pictures.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from demo.checkpoint import DEMO_CHECKPOINT
from demo.world import write_subject
from tests.browser import RENDERERS, Page
from tests.conftest import DEV_DIR
from tests.dataset_files import save
from tests.host import ROOT, Host
from tests.readable import faults

PICTURES = DEV_DIR / "pictures"
GRAPHS = sorted((ROOT / "workflows").glob("*.json"))
SCREENS = ((1440, 900), (1920, 1080))
READABLE = 0.6  # below this scale the classic renderer draws no text
SLOW_SECONDS = 300.0  # a few steps on a machine with much else to do

# The body of the training node, as text and as an element.
BODY = "document.querySelector('.personalize-training')"
SET = """([type, values]) => {
  const node = app.graph.nodes.find((one) => one.comfyClass === type);
  for (const [name, value] of Object.entries(values)) {
    const widget = node.widgets.find((one) => one.name === name);
    widget.value = value;
    widget.callback?.(value);
  }
}"""
DROP = """([type, files]) => {
  const node = app.graph.nodes.find((one) => one.comfyClass === type);
  const [x, y] = app.canvas.convertOffsetToCanvas([node.pos[0] + 100, node.pos[1] + 8]);
  const place = app.canvas.canvas.getBoundingClientRect();
  const dataTransfer = new DataTransfer();
  for (const [name, text] of files) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    dataTransfer.items.add(new File([bytes], name));
  }
  const where = { clientX: place.x + x, clientY: place.y + y, bubbles: true, cancelable: true };
  for (const kind of ["dragover", "drop"]) {
    app.canvas.canvas.dispatchEvent(new DragEvent(kind, { ...where, dataTransfer }));
  }
}"""


def keep(
    opened: Page,
    name: str,
    palettes: Sequence[str] = ("light", "dark"),
    screens: Sequence[tuple[int, int]] = SCREENS,
) -> None:
    """Pictures of what is shown: light on the large screen, dark on the small one."""
    renderer = opened.run("() => app.extensionManager.setting.get('Comfy.VueNodes.Enabled')")
    for palette, (width, height) in zip(palettes, reversed(screens), strict=True):
        opened.set({"Comfy.ColorPalette": palette})  # the last one stays
        opened.tab.set_viewport_size({"width": width, "height": height})
        style = "nodes-2" if renderer else "classic"
        opened.picture(PICTURES / f"{name} {style} {palette} {width}.png")


def graph_of(number: int) -> dict[str, Any]:
    graph: dict[str, Any] = json.loads(GRAPHS[number].read_text(encoding="utf-8"))
    graph["id"] = str(uuid.uuid4())  # or it would show what an earlier test trained in it
    return graph


def set_values(opened: Page, node: str, **values: Any) -> None:
    opened.run(SET, [node, values])


def small(opened: Page, steps: int, **values: Any) -> None:
    """The first graph, on the demo's base model, for as many steps."""
    opened.load(graph_of(0))
    set_values(opened, "CheckpointLoaderSimple", ckpt_name=DEMO_CHECKPOINT)
    set_values(opened, "PersonalizeFolderDataset", resolution=64)
    set_values(opened, "PersonalizePreview", width=64, height=64, steps=4, every_steps=5)
    set_values(opened, "PersonalizeTrainLora", steps=steps, precision="fp32", **values)
    set_values(opened, "EmptyLatentImage", width=64, height=64)
    set_values(opened, "KSampler", steps=2)


# A slow page may show the end of a short step in the same frame.
LISTEN = f"""() => {{
  window.heard = [];
  new MutationObserver(() => window.heard.push({BODY}.innerText))
    .observe({BODY}, {{ childList: true, characterData: true, subtree: true }});
}}"""


def said(opened: Page, words: str, timeout: float = SLOW_SECONDS) -> str:
    """What the line in the training node's body says, once it has these words."""
    opened.until(f"(words) => {BODY}?.innerText.includes(words)", words, timeout)
    text: str = opened.run(f"() => {BODY}.innerText")
    return text


def stopped(opened: Page) -> str:
    """What the body says once its button has ended the training, which it has said it will."""
    opened.run(LISTEN)
    opened.tab.locator(".personalize-training button").click()
    text = said(opened, "stopped at step")
    assert "stopping ..." in opened.run("() => window.heard.join('\\n')")
    return text


def num_frames(opened: Page) -> int:
    num: int = opened.run(f"() => {BODY}.querySelectorAll('img').length")
    return num


def test_from_dropped_pictures_to_the_closing_line(
    opened: Page, host: Host, tmp_path: Path
) -> None:
    number = RENDERERS.index(opened.renderer)
    name = f"mine-{number}"
    small(opened, steps=5000, seed=700 + number)
    keep(opened, "1 opened")

    write_subject("star", tmp_path, "sks star")
    pictures = sorted(tmp_path.glob("*.png"))[:5]
    files = [(file.name, base64.b64encode(file.read_bytes()).decode()) for file in pictures]
    opened.run(DROP, ["PersonalizeFolderDataset", files])
    dialog = opened.tab.get_by_role("dialog")
    dialog.locator("input").fill(name)
    dialog.locator("input").press("Enter")
    folder = host.base / "input" / name
    opened.until("() => document.querySelectorAll('.personalize-captions figure').length === 5")
    assert sorted(file.name for file in folder.iterdir()) == [file.name for file in pictures]

    caption = opened.tab.locator(".personalize-captions .caption").first
    caption.click()
    editor = opened.tab.locator(".personalize-captions textarea")
    editor.fill("a photo of sks star at night")
    editor.press("Control+Enter")
    editor.wait_for(state="detached")
    assert "at night" in (folder / pictures[0].with_suffix(".txt").name).read_text()
    keep(opened, "2 pictures")

    opened.queue()
    said(opened, "step 6/5000")
    opened.until(f"() => {BODY}.querySelectorAll('img').length >= 1")
    before = num_frames(opened)
    drawn = opened.run(f"() => {BODY}.querySelector('canvas').toDataURL()")
    opened.until(f"(drawn) => {BODY}.querySelector('canvas').toDataURL() !== drawn", drawn)
    keep(opened, "3 trains")
    opened.until(f"(n) => {BODY}.querySelectorAll('img').length > n", before, SLOW_SECONDS)

    opened.open()  # in mid-run; it opens the same graph again
    said(opened, "/5000")
    opened.until(f"(n) => {BODY}.querySelectorAll('img').length > n", before)
    keep(opened, "4 loaded anew")
    text = stopped(opened)
    assert re.search(rf"of 5000 and kept; run again hands it out, loss \d.*{name}", text)
    opened.until("() => !app.extensionManager.queue?.isExecuting", timeout=SLOW_SECONDS)
    frames = num_frames(opened)
    assert frames > before
    assert faults(opened, ".personalize-training") == []
    keep(opened, "5 stopped")

    (picture,) = (host.base / "output").glob(f"{name}_*.png")  # of the trained subject
    opened.open()
    said(opened, "stopped at step")
    opened.until(f"(n) => {BODY}.querySelectorAll('img').length === n", frames)
    node = "app.graph.nodes.find((one) => one.comfyClass?.startsWith('PersonalizeTrain'))"
    height, asked = opened.run(f"() => [{node}.size[1], {node}.computeSize()[1]]")
    assert height == pytest.approx(asked, abs=(2, 40)[number])  # Nodes 2.0 measures for itself


def test_templates_are_in_the_order_of_a_beginner(opened: Page) -> None:
    opened.tab.locator(".templates-tab-button").click()
    opened.tab.get_by_text("personalize", exact=True).first.click()
    cards = opened.tab.locator("h3, .template-card, [data-testid^=template-workflow]")
    opened.tab.get_by_text(GRAPHS[0].stem).first.wait_for()
    keep(opened, "0 templates")
    text = "\n".join(cards.all_inner_texts())
    shown = [text.find(graph.stem[:24]) for graph in GRAPHS]
    assert shown == sorted(shown)
    assert shown[0] >= 0
    opened.tab.get_by_text(GRAPHS[0].stem).first.click()
    opened.until("(n) => app.graph.nodes.length === n", len(graph_of(0)["nodes"]))
    opened.until(f"() => app.canvas.ds.scale >= {READABLE}")


def test_error_shows_at_the_node_and_in_a_toast(
    opened: Page, host: Host, checkpoint_files: Mapping[str, Path], tmp_path: Path
) -> None:
    weights = safetensors.torch.load_file(checkpoint_files[DEMO_CHECKPOINT])
    weights["model.diffusion_model.out.2.bias"][:] = torch.nan
    safetensors.torch.save_file(weights, tmp_path / "diverging_demo.safetensors")
    save(host.base / "input" / "failing" / "a.png")
    small(opened, steps=5)
    name = host.add_model("checkpoints", tmp_path / "diverging_demo.safetensors")
    opened.run("() => app.refreshComboInNodes()")
    set_values(opened, "CheckpointLoaderSimple", ckpt_name=name)
    set_values(opened, "PersonalizeFolderDataset", folder="failing")
    opened.queue()
    sentence = "the loss is nan at step 1"
    said(opened, sentence)
    toasts = opened.tab.locator(".p-toast-message")
    toasts.filter(has_text=sentence).first.wait_for()
    keep(opened, "6 error")


def test_hostile_prompts_and_folders_are_text(opened: Page, host: Host) -> None:
    number = RENDERERS.index(opened.renderer)
    name = "<b onclick=hit()>&amp; \u05d0\u05d1 \u202e .."
    save(host.base / "input" / name / "a.png")
    prompts = ["<img src=x onerror=window.hit=1>", "<sks> \u202e **a** `b`", "dog " * 2500]
    small(opened, steps=2, seed=800 + number)
    opened.run(
        "() => app.graph.nodes.find((n) => n.type === 'PersonalizePreview')"
        ".disconnectInput('prompts')"
    )
    opened.run("() => app.refreshComboInNodes()")
    set_values(opened, "PersonalizePreview", prompts="\n".join(prompts), every_steps=1)
    set_values(opened, "PersonalizeFolderDataset", folder=name)
    opened.queue()
    said(opened, "done: 2 steps")
    opened.until(f"() => {BODY}.querySelectorAll('img').length === 6")
    titles = f"() => [...{BODY}.querySelectorAll('div[title]')].map((one) => one.title)"
    assert opened.run(titles) == [prompt.strip() for prompt in prompts]
    shown = f"() => [...{BODY}.querySelectorAll('img')].every((one) => one.naturalWidth === 64)"
    opened.until(shown)
    assert opened.run("() => window.hit") is None
    keep(opened, "7 hostile")


@pytest.mark.parametrize("number", range(len(GRAPHS)), ids=lambda number: GRAPHS[number].stem)
def test_graph_opens_readable_with_its_training_in_view(opened: Page, number: int) -> None:
    graph = graph_of(number)
    for width, height in SCREENS:
        opened.tab.set_viewport_size({"width": width, "height": height})
        opened.load(graph)
        opened.until("(n) => app.graph.nodes.length === n", len(graph["nodes"]))
        opened.settle()
        opened.run("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        opened.tab.wait_for_timeout(500)  # it glides there
        assert opened.run("() => app.canvas.ds.scale") >= READABLE
        left, top, right, bottom = opened.run(TRAINING_PX)
        assert left >= 60
        assert top >= 40
        assert right <= width
        assert bottom <= height
    keep(opened, f"graph {GRAPHS[number].stem}", ["dark"], SCREENS[1:])
    assert not opened.run(OVERLAPS), "nodes as tall as what is in them"


# Where the group with the (first) training node is on the screen.
TRAINING_PX = """() => {
  const group = app.graph.groups.find(({ title }) => /train|learn/i.test(title));
  const [x, y, w, h] = group._bounding ?? group.bounding;
  const place = app.canvas.canvas.getBoundingClientRect();
  const at = (point) => app.canvas.convertOffsetToCanvas(point);
  const [left, top] = at([x, y]), [right, bottom] = at([x + w, y + h]);
  return [place.x + left, place.y + top, place.x + right, place.y + bottom];
}"""
OVERLAPS = """() => {
  const boxes = app.graph.nodes.map(({ pos, size, title }) =>
    [pos[0], pos[1] - 30, pos[0] + size[0], pos[1] + size[1], title]);
  const meet = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  return boxes.flatMap((a, i) =>
    boxes.slice(0, i).filter((b) => meet(a, b)).map((b) => `${a[4]} / ${b[4]}`));
}"""
