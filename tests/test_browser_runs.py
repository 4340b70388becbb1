"""The sidebar tab of training runs, in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.browser import RENDERERS, Page, page
from tests.graphs import Graph
from tests.host import Host
from tests.readable import faults
from tests.run_folders import make_run

TAB, DIALOG = ".personalize-runs", "dialog.personalize-runs-dialog"
CONFIRM = "[role=dialog] button:has-text('Delete'), .p-dialog button:has-text('Delete')"
VALUES = """() => Object.fromEntries(app.graph.nodes.flatMap(
    (node) => (node.widgets ?? []).map(({ name, value }) => [name, value])))"""


@pytest.fixture(scope="module")
def runs(host: Host) -> list[Path]:
    """Two runs that differ in rank and steps, and one that is unfinished."""
    parent = host.base / "output" / "personalize"
    return [
        make_run(parent, "tab one", 60, states=[20, 40, 60], previews=[20, 60], validate_every=10,
                 rank=8),
        make_run(parent, "tab other", 40, previews=[40]),
        make_run(parent, "tab unfinished", 30, status="interrupted"),
    ]  # fmt: skip


def show(opened: Page, words: str) -> None:
    opened.tab.get_by_role("button", name="Training runs").first.click()
    opened.tab.wait_for_selector(f"{TAB} .row")
    opened.tab.fill(f"{TAB} input[type=search]", words)


def name(opened: Page, words: str) -> None:
    opened.tab.locator(f"{TAB} .name", has_text=words).click()
    opened.tab.wait_for_selector(f"{TAB} .detail .smoothed")


def speak_japanese(opened: Page) -> None:
    """Another language, without a reload; a tab that is opened then has it."""
    try:
        opened.set({"Comfy.Locale": "ja"})
        opened.tab.wait_for_timeout(1000)  # until the host has answered
        opened.tab.get_by_role("button", name="Training runs").first.dblclick()
        opened.tab.get_by_role("heading", name="学習の記録").wait_for()
    finally:
        opened.set({"Comfy.Locale": "en"})


@pytest.mark.parametrize("renderer", RENDERERS)
def test_run_is_found_opened_put_back_compared_deleted_and_restored(
    host: Host, runs: list[Path], renderer: str
) -> None:
    with page(host, renderer) as opened:
        show(opened, "tab_")
        assert opened.tab.locator(f"{TAB} .row").count() == 3
        assert faults(opened, TAB) == []
        opened.tab.fill(f"{TAB} input[type=search]", "tab_ unfinished")
        assert opened.tab.locator(f"{TAB} .row").count() == 1
        opened.tab.fill(f"{TAB} input[type=search]", "tab_")

        name(opened, "tab_one")
        text = opened.tab.inner_text(f"{TAB} .detail")
        assert "60 steps" in text
        assert "step 30, held out" in text, "the middle was the best"
        assert "rank" in opened.tab.inner_text(f"{TAB} table.changed")
        palettes = ("light", "dark") if renderer == RENDERERS[0] else ("dark", "light")
        assert faults(opened, TAB, palettes) == []
        opened.tab.get_by_role("button", name="put settings into the graph").click()
        opened.until("() => app.graph.nodes.some((n) => n.type === 'PersonalizeTrainLora')")
        values = opened.run(VALUES)
        assert (values["rank"], values["steps"]) == (8, 60)
        opened.tab.get_by_role("button", name="resume from step 40").click()
        opened.until("() => app.graph.nodes.some((n) => n.type === 'PersonalizeRun')")
        opened.until(
            f"(name) => {{ const set = ({VALUES})();"
            " return set.resume_from === name && set.resume_step === 40; }",
            runs[0].name,
        )

        opened.tab.click(f"{TAB} .back")
        for words in ("tab_one", "tab_other"):
            opened.tab.locator(f"{TAB} .row", has_text=words).locator(".pick").check()
        opened.tab.get_by_role("button", name="compare", exact=True).click()
        opened.tab.wait_for_selector(f"{DIALOG} .smoothed")
        assert opened.tab.locator(f"{DIALOG} .smoothed").count() == 2
        assert "rank" in opened.tab.inner_text(f"{DIALOG} tr.differs:has-text('rank')")
        edge = opened.tab.get_by_label("Edge between the left and the right picture")
        edge.focus()
        opened.tab.keyboard.press("ArrowRight")
        assert edge.input_value() == "51"
        assert faults(opened, DIALOG, palettes[1:]) == []  # over the page, which keeps its palette
        opened.tab.keyboard.press("Escape")
        assert opened.run("() => document.activeElement.textContent") == "compare"

        opened.tab.locator(f"{TAB} .row", has_text="tab_one").locator(".pick").uncheck()
        opened.tab.get_by_role("button", name="delete …").first.click()
        opened.tab.locator(CONFIRM).last.click()
        opened.until(f"() => document.querySelectorAll('{TAB} .row').length === 2")
        assert not runs[1].exists()
        opened.tab.get_by_role("button", name="undo", exact=True).click()
        opened.until(f"() => document.querySelectorAll('{TAB} .row').length === 3")
        assert runs[1].exists()
        speak_japanese(opened)
        assert opened.complaints == []


# -- with a training of its own ----------------------------------------------------------------

TRAINER = "app.graph.nodes.find((n) => n.type === 'PersonalizeTrainLora')"
WIDGETS = f"() => Object.fromEntries({TRAINER}.widgets.map(({{ name, value }}) => [name, value]))"
PLACES = "() => app.graph.nodes.map(({ id, pos: [x, y] }) => [String(id), x | 0, y | 0])"
WORKFLOWS = "() => app.extensionManager.workflow.openWorkflows.length"


def said(host: Host, run: str) -> list[str]:
    """The last status line of each node that handed out this run."""
    trainings = host.get("/personalize/trainings")["trainings"]
    return [one["text"] for one in trainings if one["run"] == run and not one["training"]]


def queue_until(opened: Page, done: Callable[[], object], seconds: float = 120) -> None:
    """Queue the graph that is shown and wait until it has come to this."""
    opened.queue()
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds, opened.host.log_tail()
        opened.tab.wait_for_timeout(200)


def put(opened: Page, **values: object) -> None:
    """Turn the training node's widgets, as one step of undo."""
    opened.run(
        f"""(values) => {{
          app.canvas.emitBeforeChange();
          for (const [name, value] of Object.entries(values)) {{
            const widget = {TRAINER}.widgets.find((one) => one.name === name);
            widget.value = value;
            widget.callback?.(value);
          }}
          app.canvas.emitAfterChange();
        }}""",
        values,
    )


def values_are(opened: Page, **values: object) -> None:
    opened.until(
        f"(values) => {{ const now = ({WIDGETS})();"
        " return Object.entries(values).every(([name, value]) => now[name] === value); }",
        values,
    )


@pytest.fixture(scope="module")
def dog(host: Host) -> str:
    folder = host.base / "input" / "tab_dog"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), (40, 90, 160)).save(folder / "0.png")
    return folder.name


def training(dog: str, seed: int) -> Graph:
    graph = Graph()
    trained = graph.train(*graph.load(), graph.dataset(dog), steps=4, seed=seed, state_every=2,
                          keep_states=4)  # fmt: skip
    graph.add("PersonalizeLossPlot", loss_map=trained[3], theme="dark")
    return graph


def ended(parent: Path, before: set[Path], steps: int) -> list[Path]:
    """Runs that were made since and ended after so many steps."""
    made = [one for one in set(parent.glob("*")) - before
            if (one / f"result-{steps:08}.safetensors").exists()]  # fmt: skip
    return [one for one in made if json.loads((one / "run.json").read_text())["status"] == "done"]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_run_is_taken_from_disk_by_its_settings_and_goes_on_from_its_middle(
    host: Host, dog: str, renderer: str
) -> None:
    parent = host.base / "output" / "personalize"
    before = set(parent.glob("*"))
    graph = training(dog, 91 + RENDERERS.index(renderer))
    with page(host, renderer) as opened:
        opened.run("(graph) => app.loadApiJson(graph, 'tab dog')", dict(graph))
        opened.until(f"() => {TRAINER}")
        opened.settle()
        queue_until(opened, lambda: ended(parent, before, 4))
        (run,) = ended(parent, before, 4)
        result = (run / "result-00000004.safetensors").stat().st_mtime_ns
        laid_out = sorted(opened.run(PLACES))

        show(opened, dog)
        opened.tab.locator(f"{TAB} [data-run='{run.name}'] .name").click()
        opened.tab.wait_for_selector(f"{TAB} .detail .smoothed")
        # The whole graph, beside what is open and not in its place.
        open_before = opened.run(WORKFLOWS)
        for number in (1, 2):
            opened.tab.get_by_role("button", name="open its whole graph").click()
            opened.until(f"(count) => ({WORKFLOWS})() === count", open_before + number)
            opened.until(f"() => {TRAINER}")
            assert sorted(opened.run(PLACES)) == laid_out
            put(opened, steps=99)  # what the second one must not overwrite

        # Settings put back, undone, put back; and taken from disk.
        put(opened, rank=8)
        opened.tab.get_by_role("button", name="put settings into the graph").click()
        values_are(opened, rank=4, steps=4)
        opened.tab.wait_for_timeout(500)
        opened.tab.keyboard.press("Control+z")
        values_are(opened, rank=8, steps=99)
        opened.tab.get_by_role("button", name="put settings into the graph").click()
        values_are(opened, rank=4, steps=4)
        other = Graph()
        empty = other.add("EmptyLatentImage", width=64, height=64, batch_size=1)[0]
        other.add("SaveLatent", samples=empty, filename_prefix="tab")
        host.run(other)  # so that ComfyUI forgets what it has
        queue_until(opened, lambda: any("taken from disk" in text for text in said(host, run.name)))
        assert (run / "result-00000004.safetensors").stat().st_mtime_ns == result

        # On from the middle.
        before = set(parent.glob("*"))
        opened.tab.get_by_role("button", name="resume from step 2").click()
        opened.until(f"() => ({VALUES})().resume_step === 2")
        put(opened, steps=6)
        queue_until(opened, lambda: ended(parent, before, 6))
        (further,) = ended(parent, before, 6)
        rows = [json.loads(row) for row in (further / "metrics.jsonl").read_text().splitlines()]
        assert json.loads((further / "run.json").read_text())["resumed"]["step"] == 2
        assert [row["step"] for row in rows] == [3, 4, 5, 6]
        opened.tab.click(f"{TAB} .back")
        opened.tab.wait_for_selector(f"{TAB} [data-run='{further.name}'][data-state=done]")
        assert "6 steps" in opened.tab.inner_text(f"{TAB} [data-run='{further.name}']")
        assert opened.complaints == []


@pytest.mark.parametrize("renderer", RENDERERS)
def test_run_is_named_pinned_made_smaller_thrown_away_and_restored(
    host: Host, renderer: str
) -> None:
    parent = host.base / "output" / "personalize"
    run = make_run(parent, f"tidy {RENDERERS.index(renderer)}", 40, states=[20, 40], previews=[40])
    label = run / "label.json"

    def told() -> dict[str, object]:
        return json.loads(label.read_text()) if label.exists() else {}

    def wait(done: Callable[[], object]) -> None:
        queue = time.monotonic()
        while not done():
            assert time.monotonic() - queue < 60
            opened.tab.wait_for_timeout(100)

    with page(host, renderer) as opened:
        show(opened, "tidy")
        name(opened, "tidy")
        opened.tab.get_by_label("Name").fill("<b>Best</b> dog")
        opened.tab.keyboard.press("Enter")
        wait(lambda: told().get("title") == "<b>Best</b> dog")
        opened.tab.get_by_label("Note").fill("good hands")
        opened.tab.get_by_label("Name").focus()
        wait(lambda: told().get("note") == "good hands")
        opened.tab.get_by_role("button", name="pin", exact=True).click()
        wait(lambda: told().get("pinned") is True)
        opened.tab.wait_for_selector(f"{TAB} button:text-is('pinned')")
        assert opened.tab.locator(f"{TAB} .detail button:has-text('delete …')").is_disabled()
        opened.tab.get_by_role("button", name="pinned", exact=True).click()
        wait(lambda: not told().get("pinned"))
        free = opened.tab.locator(f"{TAB} .detail button:has-text('free disk space')")
        opened.until("() => !document.querySelector('.detail button[aria-pressed=true]')")

        free.click()
        opened.tab.wait_for_selector(DIALOG)
        states = opened.tab.locator(f"{DIALOG} label", has_text="of states:")
        assert re.match(r"[\d.]+ (bytes|kB) of states", states.inner_text())
        states.locator("input").check()
        opened.tab.locator(f"{DIALOG} footer button", has_text="free").click()
        wait(lambda: not [*(run / "state").glob("*.pt")])
        assert len([*(run / "previews").iterdir()]) == 2, "previews were not asked for"
        opened.until(f"() => !document.querySelector('{TAB} .states')")

        opened.tab.click(f"{TAB} .back")
        opened.tab.fill(f"{TAB} input[type=search]", "best</b>")
        assert opened.tab.inner_text(f"{TAB} .name") == "<b>Best</b> dog"
        opened.tab.locator(f"{TAB} .pick").check()
        opened.tab.locator(f"{TAB} .bar button", has_text="delete").click()
        opened.tab.locator(CONFIRM).last.click()
        wait(lambda: not run.exists())
        opened.tab.locator(f"{TAB} .trash summary").click()
        opened.tab.get_by_role("button", name="restore <b>Best</b> dog").click()
        wait(run.exists)
        opened.tab.wait_for_selector(f"{TAB} .row")
        damaged(opened, run)
        assert opened.complaints == []
    shutil.rmtree(run)


def damaged(opened: Page, run: Path) -> None:
    """What can be shown of a damaged folder is, and what cannot is said; markup stays text."""
    told = json.loads((run / "run.json").read_text())
    told["dataset"]["name"] = "<img src=x onerror='window.hurt = 1'>"
    (run / "run.json").write_text(json.dumps(told))
    rows = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(rows[: len(rows) // 2])
    (run / "previews" / "step_00000020_0.png").write_bytes(b"no picture")
    opened.tab.locator(f"{TAB} .name").click()
    opened.tab.wait_for_selector(f"{TAB} .detail .problems")
    text = opened.tab.inner_text(f"{TAB} .detail")
    assert "1 of 21 lines of metrics.jsonl cannot be read" in text
    assert "1 preview cannot be read." in text
    assert "20 of 40 steps" in text
    assert "<img src=x onerror" in text
    (run / "run.json").write_text('{"method": ')
    opened.tab.click(f"{TAB} .back")
    opened.run("() => app.api.dispatchEvent(new CustomEvent('personalize.runs', { detail: {} }))")
    opened.tab.wait_for_selector(f"{TAB} [data-run='{run.name}'][data-state=damaged]")
    assert opened.run("() => window.hurt ?? null") is None
