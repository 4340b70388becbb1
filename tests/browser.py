"""A page of ComfyUI in a real browser, used as people use it."""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from dev_setup import browser_path

from .host import Host

# No GPU is needed, and root may start it, as in containers.
ARGUMENTS = ["--no-sandbox", "--use-gl=swiftshader", "--enable-unsafe-swiftshader"]
RENDERERS = ("classic", "nodes 2.0")
WAIT_MS = 60_000
LATE_SECONDS = 10
SIZES = "() => app.graph.nodes.flatMap(({ size }) => [...size])"
# What the front end itself complains of in every page.
HARMLESS = (
    "Failed to load resource",  # 404 of a user's own files, on a fresh start
    "ComfyApp graph accessed before initialization",
    "Error loading fuse options",  # what comes with packages that are not installed for tests
    "Error loading core workflow templates",
    "Content Security Policy",  # it asks how large the default graph's missing models are
)
IN_THE_WAY = ".p-toast-message, .p-dialog-mask, dialog[open]"  # of the page for the next test
OURS = ("/personalize/", "/api/personalize/")  # the pack's routes, none of which may fail


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium without a window; skips the test where there is none."""
    from playwright.sync_api import sync_playwright

    path = browser_path()
    if path is None:
        pytest.skip("no Chromium: install one (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield running
        running.close()


class Page:
    """One tab with ComfyUI in it.

    Attributes:
        tab: Playwright's page.
        renderer: one of RENDERERS.
        complaints: what was written to the console as an error, but for HARMLESS; and failed
            requests to the pack's own routes.
    """

    def __init__(self, tab: Any, host: Host, renderer: str) -> None:
        self.tab, self.host, self.renderer = tab, host, renderer
        self._size = dict(tab.viewport_size)
        self.complaints: list[str] = []
        tab.set_default_timeout(WAIT_MS)
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on("console", self._listen)

    def _listen(self, message: Any) -> None:
        if message.type != "error":
            return
        address = message.location.get("url", "")
        if urllib.parse.urlsplit(address).path.startswith(OURS):
            self.complaints.append(f"{message.text} {address}")
        elif not any(words in message.text for words in HARMLESS):
            self.complaints.append(message.text)

    def forgive(self, *statuses: int) -> None:
        """Take off the failed requests that a test provokes; it may have no others."""
        asked = [f"status of {status} " for status in statuses]
        began = time.monotonic()  # a page asks for pictures when it comes to draw them
        while time.monotonic() - began < LATE_SECONDS and not all(
            any(words in one for one in self.complaints) for words in asked
        ):
            self.tab.wait_for_timeout(100)
        found = [one for one in self.complaints if any(words in one for words in asked)]
        assert all(any(words in one for one in found) for words in asked), self.complaints
        self.complaints = [one for one in self.complaints if one not in found]

    def open(self) -> None:
        """Load ComfyUI, or load it anew."""
        self.tab.goto(self.host.url)
        self.tab.wait_for_function("window.app?.graph && window.app.extensionManager?.setting")
        self.tab.wait_for_function("!document.querySelector('#splash-loader, .splash-screen')")

    def begin_anew(self) -> None:
        """An empty graph in a page that shows nothing of what was done before.

        To load the page takes ten times as long.
        """
        self.tab.unroute_all()
        self.tab.keyboard.press("Escape")  # a dialog that is left open
        self.tab.set_viewport_size(self._size)
        self.run("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
        self.until("() => app.graph.nodes.length === 0")
        self.run("() => app.extensionManager.toast.removeAll()")
        self.until(f"() => !document.querySelector({json.dumps(IN_THE_WAY)})")
        self.complaints = []

    def set(self, settings: Mapping[str, Any]) -> None:
        """Change the user's settings of ComfyUI."""
        for name, value in settings.items():
            self.run("([n, v]) => app.extensionManager.setting.set(n, v)", [name, value])

    def run(self, script: str, argument: Any = None) -> Any:
        """Evaluate JavaScript: what it gives, promises awaited."""
        return self.tab.evaluate(script, argument)

    def until(self, script: str, argument: Any = None, timeout: float = WAIT_MS / 1000) -> None:
        """Wait until JavaScript gives something true."""
        self.tab.wait_for_function(script, arg=argument, timeout=timeout * 1000)

    def load(self, graph: Mapping[str, Any]) -> None:
        """Open a saved graph in place of the one that is shown."""
        self.run("(graph) => app.loadGraphData(graph)", dict(graph))

    def settle(self, still_ms: int = 500) -> None:
        """Wait until nodes have kept their sizes for so long: Nodes 2.0 measures what it draws."""
        sizes, since = self.run(SIZES), time.monotonic()
        while time.monotonic() - since < still_ms / 1000:
            self.tab.wait_for_timeout(100)
            if (now := self.run(SIZES)) != sizes:
                sizes, since = now, time.monotonic()

    def queue(self) -> None:
        """As the button Run does."""
        self.run("() => void app.queuePrompt(0)")

    def picture(self, path: Path) -> None:
        """Keep what is on the screen as a PNG file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        time.sleep(0.5)  # what fades in or grows has done so
        self.tab.screenshot(path=str(path))


@contextmanager
def page(
    host: Host,
    renderer: str = "classic",
    palette: str = "dark",
    size: tuple[int, int] = (1440, 900),
) -> Iterator[Page]:
    """ComfyUI in a browser of its own, an empty graph in it.

    Args:
        renderer: one of RENDERERS.
        palette: "dark" or "light".
        size: of the screen, in pixels.
    """
    with browser() as running:
        width, height = size
        tab = running.new_page(viewport={"width": width, "height": height})
        opened = Page(tab, host, renderer)
        # By the server, since a page takes a renderer only while it loads. Without its own version
        # it would think of a first visit.
        settings = {
            "Comfy.InstalledVersion": metadata.version("comfyui_frontend_package"),
            "Comfy.TutorialCompleted": True,
            "Comfy.VueNodes.Enabled": renderer != "classic",
            "Comfy.ColorPalette": palette,
        }
        host.post("/settings", settings)
        opened.open()
        opened.run("() => app.graph.clear()")
        yield opened
