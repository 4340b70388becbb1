"""The pictures and captions in the body of Training Images (Folder), in a real browser."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Page
from tests.caption_models import blip
from tests.dataset_files import save
from tests.host import Host
from tests.readable import faults

FIGURES = ".personalize-captions figure"
BODY = ".personalize-captions"
CREATE = """([folder, kind, values]) => {
  const node = LiteGraph.createNode(kind);
  node.pos = [250, 80];
  app.graph.add(node);
  Object.assign(app.canvas.ds, { scale: 1, offset: [0, 0] });
  const widget = node.widgets.find((one) => one.name === "folder");
  widget.value = folder;
  widget.callback(folder);
  for (const one of node.widgets) if (one.name in values) one.value = values[one.name];
}"""
FOCUSED = "() => document.activeElement.ariaLabel || document.activeElement.textContent"
HOSTILE = {
    "<img src=x onerror=alert(1)>.png": "<img src=x onerror=window.hit=1> a <sks> dog",
    "x __init__ a*b*c #1 100%?.png": "# __a__ *b* `c` [d](javascript:window.hit=1)",
    "long.png": ("dog " * 2500)[:10_000].strip(),
    "right to left.png": "a dog\u200f \u05db\u05dc\u05d1 \u202e end",
}


def dog(host: Host, name: str) -> Path:
    folder = host.base / "input" / name
    save(folder / "a.png", (128, 64))
    save(folder / "b.png")
    for name in ("b.txt", "c.png", "metadata.jsonl"):
        (folder / name).unlink(missing_ok=True)
    (folder / "a.txt").write_text("a dog on a beach")
    return folder


def choose(
    opened: Page,
    folder: str,
    figures: int = 2,
    kind: str = "PersonalizeFolderDataset",
    **values: Any,
) -> None:
    opened.run(CREATE, [folder, kind, values])
    opened.until(f"(n) => document.querySelectorAll('{FIGURES}').length === n", figures)


def captions(opened: Page) -> list[str]:
    found: list[str] = opened.tab.locator(f"{FIGURES} .caption").all_inner_texts()
    return found


def edit(opened: Page, place: int, text: str, *keys: str) -> None:
    opened.tab.locator(f"{FIGURES} >> nth={place} >> .caption").click()
    opened.tab.locator(f"{FIGURES} textarea").fill(text)
    for key in keys:
        opened.tab.keyboard.press(key)


def closed(opened: Page) -> None:
    opened.until(f"() => !document.querySelector('{FIGURES} textarea')")


def heights(opened: Page) -> dict[str, Any]:
    found: dict[str, Any] = opened.run(
        "() => ({ node: app.graph._nodes[0].size[1],"
        "  grid: document.querySelector('.personalize-captions').offsetHeight })"
    )
    return found


def grown(opened: Page) -> dict[str, Any]:
    """The heights, once the node is taller and the grid with it."""
    before = heights(opened)
    opened.run("() => app.graph._nodes[0].setSize([500, app.graph._nodes[0].size[1] + 300])")
    opened.run("() => app.graph.setDirtyCanvas(true, true)")
    opened.until("(h) => document.querySelector('.personalize-captions').offsetHeight > h + 100",
                 before["grid"])  # fmt: skip
    return heights(opened)


def test_caption_is_edited_in_its_place_and_kept_as_the_height_is(opened: Page, host: Host) -> None:
    folder = dog(host, "edited")
    queued = len(host.get("/history"))
    choose(opened, "edited")
    assert captions(opened) == ["a dog on a beach", "the prompt: a photo of sks"]
    edit(opened, 1, "tags, of it\na new caption", "Delete", "r", "Control+Enter")
    closed(opened)
    opened.until(f"() => document.querySelectorAll('{FIGURES} .faint').length === 0")
    assert (folder / "b.txt").read_text() == "tags, of it\na new captionr\n"
    edit(opened, 0, "by leaving")
    opened.tab.locator(f"{FIGURES} >> nth=1 >> img").click()
    closed(opened)
    assert (folder / "a.txt").read_text() == "by leaving\n"
    edit(opened, 0, "taken back", "Escape")
    closed(opened)
    assert (folder / "a.txt").read_text() == "by leaving\n"
    assert len(host.get("/history")) == queued, "Ctrl+Enter queued the graph"
    assert opened.run("() => app.graph._nodes.length") == 1, "Delete took the node"
    tall = grown(opened)
    graph = opened.run("() => app.graph.serialize()")
    opened.open()
    opened.settle()  # the front end has opened what it remembers of the graph
    opened.load(graph)
    opened.until(f"() => document.querySelectorAll('{FIGURES}').length === 2")
    assert captions(opened) == ["by leaving", "tags, of it\na new captionr"]
    time.sleep(1)
    assert heights(opened)["node"] == pytest.approx(tall["node"], abs=2)
    edit(opened, 0, "", "Control+Enter")
    closed(opened)
    opened.until(f"() => document.querySelector('{FIGURES} .faint')")
    assert not (folder / "a.txt").exists()


def test_refusals_are_told_at_the_picture(opened: Page, host: Host) -> None:
    folder = dog(host, "refused")
    choose(opened, "refused")
    (folder / "a.txt").write_text("theirs")
    edit(opened, 0, "mine", "Control+Enter")
    error = opened.tab.locator(f"{FIGURES} .error")
    assert "Changed elsewhere to:\ntheirs" in error.inner_text()
    opened.tab.locator(f"{FIGURES} >> nth=1 >> img").click()
    assert (folder / "a.txt").read_text() == "theirs", "leaving decides nothing"
    opened.tab.locator(f"{FIGURES} textarea").press("Control+Enter")
    closed(opened)
    assert (folder / "a.txt").read_text() == "mine\n"
    (folder / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "of the metadata"}')
    edit(opened, 1, "in vain", "Control+Enter")
    assert "metadata.jsonl has a line for it" in error.inner_text()
    assert not (folder / "b.txt").exists()
    opened.forgive(409, 400)


def test_hostile_names_and_captions_are_text(opened: Page, host: Host) -> None:
    folder = host.base / "input" / "hostile"
    for name, caption in HOSTILE.items():
        save(folder / name)
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    choose(opened, "hostile", len(HOSTILE))
    shown = opened.run(
        f"() => Object.fromEntries([...document.querySelectorAll('{FIGURES}')].map("
        "(one) => [one.querySelector('img').title, one.querySelector('.caption').textContent]))"
    )
    assert shown == HOSTILE
    assert opened.run(f"() => document.querySelectorAll('{FIGURES} img').length") == len(HOSTILE)
    assert opened.run("() => window.hit") is None
    assert opened.tab.locator(f"{FIGURES} mark").inner_text() == "2,500 tokens"
    opened.tab.locator(f"{FIGURES} img").last.scroll_into_view_if_needed()
    opened.until(f"() => [...document.querySelectorAll('{FIGURES} img')].at(-1).naturalWidth")


def test_a_run_shows_its_summary_and_new_files(opened: Page, host: Host) -> None:
    folder = dog(host, "summed")
    choose(opened, "summed")
    save(folder / "c.png")
    for _ in range(2):  # the second is cached
        opened.queue()
        opened.until(f"() => document.querySelectorAll('{FIGURES}').length === 3")
        opened.until("() => document.querySelector('.personalize-captions p').innerText")
        text = opened.tab.locator(".personalize-captions p").first.inner_text().strip()
        assert text.startswith("note: the one caption from a file does not say 'sks'")
        assert text.endswith("captions: 2 of 3 from the prompt, 1 from .txt files")
        time.sleep(0.5)


def test_names_are_not_taken_for_markup_in_errors(opened: Page, host: Host) -> None:
    folder = host.base / "input" / "unread"
    names = ["x __init__ a*b*c.png", "<sks> [[x|y]] `z`.png", "www.x.org.png"]
    for name in names:
        save(folder / name).write_bytes(b"")
    choose(opened, "unread", 3)
    opened.queue()
    opened.until("() => document.body.innerText.includes('Remove them or save')")
    told = f"Dataset 'unread': 3 of 3 images cannot be read: {', '.join(sorted(names))}.\nRemove"
    spans = "[...document.querySelectorAll('.comfy-markdown-content, span')]"
    opened.until(f"(told) => {spans}.some((one) => one.innerText.startsWith(told))", told)
    opened.forgive(404)  # pictures that cannot be read have no thumbnails


def test_control_images_stand_in_the_corner_of_their_picture(opened: Page, host: Host) -> None:
    folder, before = dog(host, "edited"), host.base / "input" / "unedited"
    save(before / "a.png", (128, 64))
    save(before / "b.png")
    choose(opened, "edited")
    insets = f"[...document.querySelectorAll('{FIGURES} > div img')]"
    assert opened.run(f"() => {insets}.length") == 0
    opened.run(
        """() => {
          const node = app.graph._nodes[0];
          const widget = node.widgets.find((one) => one.name === "control_folder");
          widget.value = "unedited";
          widget.callback("unedited");
        }"""
    )
    opened.until(f"() => {insets}.filter((one) => one.naturalWidth === 69).length === 2")
    assert opened.run(f"() => {insets}.map((one) => one.title)") == [
        "control image: a.png", "control image: b.png"
    ]  # fmt: skip
    edit(opened, 0, "make it red", "Control+Enter")
    closed(opened)
    assert (folder / "a.txt").read_text() == "make it red\n"
    assert opened.run(f"() => {insets}.length") == 2


def press(opened: Page, name: str) -> None:
    opened.tab.locator(f"{BODY} button", has_text=name).click()


def test_large_view_goes_from_picture_to_picture(opened: Page, host: Host) -> None:
    folder = dog(host, "large")
    save(folder / "a.png", (640, 480))
    (folder / "b.txt").write_text("second")
    choose(opened, "large")
    press(opened, "large view")
    figures, field = opened.tab.locator(FIGURES), opened.tab.locator(f"{FIGURES} textarea")
    opened.until(f"() => document.querySelector('{FIGURES}.current img')?.naturalWidth > 300")
    assert [figures.nth(place).is_visible() for place in (0, 1)] == [True, False]
    figures.first.locator(".caption").focus()
    opened.tab.keyboard.press("Space")
    field.fill("the first")
    opened.tab.keyboard.press("Control+Enter")  # which goes on to the next
    opened.until(f"() => document.querySelector('{FIGURES} textarea')?.value === 'second'")
    assert (folder / "a.txt").read_text() == "the first\n"
    assert opened.tab.locator(f"{BODY} nav output").inner_text() == "2 of 2: b.png"
    field.fill("the second")
    opened.tab.keyboard.press("PageUp")
    opened.until(f"() => document.querySelector('{FIGURES} textarea')?.value === 'the first'")
    assert (folder / "b.txt").read_text() == "the second\n"
    opened.tab.keyboard.press("Escape")
    closed(opened)
    assert opened.run(FOCUSED) == "caption of a.png: the first", "where it was"
    opened.tab.get_by_label("Next picture").click()
    opened.until(f"() => document.querySelectorAll('{FIGURES}')[1].matches('.current')")
    assert opened.tab.get_by_label("Next picture").get_attribute("aria-disabled") == "true"
    opened.tab.get_by_label("Previous picture").focus()
    opened.tab.keyboard.press("ArrowLeft")
    opened.until(f"() => document.querySelectorAll('{FIGURES}')[0].matches('.current')")
    opened.tab.keyboard.press("Escape")
    opened.until(f"() => !document.querySelector('{FIGURES}.current')")
    assert all(figures.nth(place).is_visible() for place in (0, 1))
    assert opened.run(FOCUSED) == "large view"


def test_all_captions_are_edited_at_once_and_taken_back(opened: Page, host: Host) -> None:
    folder = dog(host, "together")
    (folder / "b.txt").write_text("A dog, a hotdog (1.5)")
    choose(opened, "together")
    press(opened, "edit all")
    assert faults(opened, BODY) == []
    told = opened.tab.locator(f"{BODY} form output")
    opened.tab.get_by_label("Find in all captions").fill("a dog")
    assert told.inner_text() == "found 1 time in 1 of 2 captions"
    opened.tab.get_by_label("Capitals").or_(
        opened.tab.locator(f"{BODY} button", has_text="Aa")
    ).first.click()
    assert told.inner_text() == "found 2 times in 2 of 2 captions"
    opened.tab.get_by_label("Replace with").fill("$& <b>")
    press(opened, "replace all")
    opened.until("() => document.querySelector('form output').innerText.startsWith('replaced')")
    assert captions(opened) == ["$& <b> on a beach", "$& <b>, a hotdog (1.5)"]
    assert (folder / "b.txt").read_text() == "$& <b>, a hotdog (1.5)\n"
    press(opened, "undo")
    opened.until("() => document.querySelector('form output').innerText.startsWith('taken back')")
    assert (folder / "a.txt").read_text() == "a dog on a beach\n"
    opened.tab.get_by_label("Trigger word").fill("a dog")
    press(opened, "put before all")
    told.filter(has_text="All captions have it already.").wait_for()
    opened.tab.get_by_label("Trigger word").fill("sks")
    press(opened, "put before all")
    opened.until("() => document.querySelector('form output').innerText.startsWith('put in 2')")
    (folder / "a.txt").write_text("by another")
    press(opened, "put after all")
    told.filter(has_text="The caption was changed elsewhere").wait_for()
    assert (folder / "b.txt").read_text() == "sks, A dog, a hotdog (1.5)\n", "all or none"
    opened.forgive(409)
    graph = opened.run("() => app.graph.serialize()")
    opened.open()
    opened.settle()  # the front end has opened what it remembers of the graph
    opened.load(graph)
    opened.until(f"() => document.querySelectorAll('{FIGURES}').length === 2")
    assert captions(opened) == ["by another", "sks, A dog, a hotdog (1.5)"]


def test_new_captions_are_looked_over_before_they_are_written(
    opened: Page, host: Host, tmp_path: Path
) -> None:
    folder = dog(host, "proposed")
    host.add_model("captioners/tests", blip(tmp_path / "blip"), "blip")
    opened.run("() => app.refreshComboInNodes()")  # which reads the list of models
    values = {"model": "captioners/tests/blip", "instruction": "a photo", "max_length": 6}
    choose(opened, "proposed", 2, "PersonalizeCaptionImages", **values, overwrite=True)
    opened.queue()
    opened.until(f"() => document.querySelectorAll('{FIGURES} .proposed').length === 2")
    said = captions(opened)
    assert all(text.startswith("a photo") for text in said)
    assert (folder / "a.txt").read_text() == "a dog on a beach", "nothing is written yet"
    opened.tab.locator(f"{FIGURES} .caption").first.click()
    opened.tab.locator(f"{FIGURES} >> nth=1 >> img").click()  # looked at and left
    closed(opened)
    assert (folder / "a.txt").read_text() == "a dog on a beach"
    edit(opened, 0, "of my own", "Control+Enter")
    closed(opened)
    press(opened, "write 1 new caption")
    opened.until(f"() => !document.querySelector('{FIGURES} .proposed')")
    assert captions(opened) == ["of my own", said[1]]
    assert (folder / "b.txt").read_text() == f"{said[1]}\n"
