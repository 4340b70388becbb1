"""The sidebar tab of training runs, in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser import RENDERERS, Page, page
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


def show(opened: Page) -> None:
    opened.tab.get_by_role("button", name="Training runs").first.click()
    opened.tab.wait_for_selector(f"{TAB} .row")
    opened.tab.fill(f"{TAB} input[type=search]", "tab_")


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
        show(opened)
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
