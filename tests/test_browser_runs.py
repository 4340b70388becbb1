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


@pytest.mark.parametrize("renderer", RENDERERS)
def test_run_is_found_opened_put_back_compared_deleted_and_restored(
    host: Host, runs: list[Path], renderer: str
) -> None:
    with page(host, renderer) as opened:
        show(opened, "tab_")
        assert opened.tab.locator(f"{TAB} .row").count() == 3
        opened.tab.fill(f"{TAB} input[type=search]", "tab_ unfinished")
        assert opened.tab.locator(f"{TAB} .row").count() == 1
        opened.tab.fill(f"{TAB} input[type=search]", "tab_")

        name(opened, "tab_one")
        text = opened.tab.inner_text(f"{TAB} .detail")
        assert "60 steps" in text
        assert "step 30, held out" in text, "the middle was the best"
        assert "rank" in opened.tab.inner_text(f"{TAB} table.changed")
        opened.tab.get_by_role("button", name="put settings into the graph").click()
        opened.until(f"() => ({VALUES})().resume_step === 2")
        put(opened, steps=steps)

        def ended() -> list[Path]:
            new = set(parent.iterdir()) - before
            return [one for one in new if (one / f"result-{steps:08}.safetensors").exists()
                    and json.loads((one / "run.json").read_text())["status"] == "done"]  # fmt: skip

        queue_until(opened, ended)
        (further,) = ended()
        rows = [json.loads(row) for row in (further / "metrics.jsonl").read_text().splitlines()]
        assert json.loads((further / "run.json").read_text())["resumed"]["step"] == 2
        assert [row["step"] for row in rows][-1] == steps
        opened.tab.click(f"{TAB} .back")
        opened.tab.wait_for_selector(f"{TAB} [data-run='{further.name}'][data-state=done]")
        assert f"{steps} steps" in opened.tab.inner_text(f"{TAB} [data-run='{further.name}']")
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
        assert opened.complaints == []
    shutil.rmtree(run)
