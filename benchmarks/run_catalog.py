"""What it costs to list the runs on disk, and what pages that show them cost a training.

    python -m benchmarks.run_catalog [--runs N] [--steps N] [--rounds N] [--comfyui DIR] [--quick]

Makes 500 runs of 500 steps with two states and twenty previews each. Then lists them in this
process: for the first time of all, cold, as after a start of the host, warm, and warm with one run
changed; their files are in the system's cache. Then, in a real Chromium, where there is one: the
time from the first click on the tab "Training runs" after a start of the host to its rows, with
the runs listed before and not, and the frames while it is scrolled from end to end. Last, one host
on the CPU trains a LoRA of a thin SD1.5 at 64 px with ten previews, in turn with no page and with
ten clients that listen and ask as pages do whose tab is open, one of them with the run itself;
counted is the CPU time of the host's process but for the thread that trains, as in
benchmarks/pages.py.

Exit code 1 if the list takes more CPU time than 1 s for the first time, 0.5 s cold or 0.3 s warm,
ten pages cost more than 2 % of a training's CPU time, or the tab takes more than 1 s to open, the
first time as well, or 50 ms for a frame. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dev
from benchmarks.pages import Took, graph_of, run
from benchmarks.running import Limit, add_comfyui, checked, conclude, write_picture
from dev_setup import browser_path
from tests import checkpoints
from tests.browser import page
from tests.events import EventStream
from tests.graphs import Graph
from tests.host import Host
from tests.run_folders import make_run
from trainers.runs.catalog.listing import Catalog
from trainers.runs.catalog.remembered import RUNS_JSONL

ROUTE = "/personalize/runs"
PAGES = 10
EVENTS = ("personalize.runs", "personalize.training")  # after which a tab asks, see js/runs/tab.js
WAIT_SECONDS = 0.4  # for which it waits for more of them
NUM_PREVIEWS = 10  # of a training
SIZE_PX = 64
MOST_FIRST, MOST_COLD, MOST_WARM = 1.0, 0.5, 0.3  # seconds
MOST_SHARE = 2.0  # % of a training's time
MOST_OPENING, MOST_FRAME = 1.0, 50.0  # seconds, ms: 20 frames a second
FRAMES = 60
OLD_SECONDS = 3600  # ago all was written, so that nothing is looked at twice

# In a page: the milliseconds from a click on a button until rows are drawn, and of each frame in
# which the list is scrolled on.
OPEN = """async (button, frames) => {
  const frame = () => new Promise(requestAnimationFrame);
  const began = performance.now();
  button.click();
  while (!document.querySelector(".personalize-runs .row")) await frame();
  await frame();
  const opened = performance.now() - began;
  const list = document.querySelector(".personalize-runs .scrolled");
  const took = [];
  for (let number = 1; number <= frames; number++) {
    const before = performance.now();
    list.scrollTop = ((list.scrollHeight - list.clientHeight) * number) / frames;
    await frame();
    took.push(performance.now() - before);
  }
  const rows = list.querySelectorAll(".row").length;
  button.click();
  while (document.querySelector(".personalize-runs")) await frame();
  return { opened, took, rows };
}"""


def make_runs(parent: Path, count: int, steps: int) -> None:
    """So many runs, copies of one under names of their own."""
    previews = range(steps // 10, steps + 1, steps // 10)
    one = make_run(parent, "one", steps, states=[steps // 2, steps], previews=previews)
    for number in range(count):
        shutil.copytree(one, parent / f"lora-run{number}-{number:08x}")
    shutil.rmtree(one)
    age(parent)


def age(parent: Path) -> None:
    then = time.time() - OLD_SECONDS
    for path in [*parent.rglob("*"), parent]:
        os.utime(path, (then, then))


def seconds_of(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def listing(parent: Path, rounds: int) -> list[Limit]:
    """Prints what listing takes of the processor."""
    took: dict[str, list[float]] = {"first": [], "cold": [], "warm": [], "one changed": []}
    num_bytes = 0
    for _ in range(rounds):
        (parent / RUNS_JSONL).unlink(missing_ok=True)
        took["first"].append(seconds_of(Catalog(parent, remembers=True).listing))
        catalog = Catalog(parent, remembers=True)
        took["cold"].append(seconds_of(catalog.listing))
        catalog.forget()
        took["warm"].append(seconds_of(catalog.listing))
        changed = min(path for path in parent.iterdir() if path.is_dir())
        os.utime(changed / "run.json")
        catalog.forget()
        took["one changed"].append(seconds_of(catalog.listing))
        age(changed)
        num_bytes = len(catalog.listing())
    for name, found in took.items():
        print(f"  {name:12} {statistics.median(found):7.3f} s of CPU time "
              f"({min(found):.3f} to {max(found):.3f})", flush=True)  # fmt: skip
    print(f"  {num_bytes / 1e3:,.0f} kB as JSON")
    most = {"first": MOST_FIRST, "cold": MOST_COLD, "warm": MOST_WARM}
    return [
        Limit(f"s of CPU time to list, {name}", statistics.median(took[name]), True, limit)
        for name, limit in most.items()
    ]


class Listener(threading.Thread):
    """Hears of what pages are told, until it is told to stop."""

    def __init__(self, host: Host, name: str) -> None:
        super().__init__(daemon=True)
        self._stream = EventStream(host.url, name)
        self._is_stopped = False
        self.heard = 0.0  # when; 0 for what was answered

    def run(self) -> None:
        try:
            for kind, _ in self._stream:
                if kind in EVENTS:
                    self.heard = time.monotonic()
        except OSError:
            if not self._is_stopped:
                raise

    def stop(self) -> None:
        self._is_stopped = True
        self._stream.close()


class Asker(threading.Thread):
    """Asks as a page does whose tab is open.

    Attributes:
        asked: how many questions there were.
    """

    def __init__(self, host: Host, stop: threading.Event, name: str, has_run: bool) -> None:
        super().__init__(daemon=True)
        self._url, self._stopping, self._has_run = host.url + ROUTE, stop, has_run
        self._listener = Listener(host, name)
        self._tags: dict[str, str] = {}
        self._rows: list[dict[str, Any]] = []
        self.asked = 0

    def run(self) -> None:
        self._listener.start()
        self._look()
        while not self._stopping.wait(0.02):
            heard = self._listener.heard
            if heard and time.monotonic() - heard > WAIT_SECONDS:
                self._listener.heard = 0.0
                self._look()
        self._listener.stop()

    def _look(self) -> None:
        if said := self._get(""):
            self._rows = json.loads(said)["runs"]
        at_work = [row["run"] for row in self._rows if row["state"] == "training"]
        if self._has_run and at_work:
            self._get(f"/{at_work[0]}")

    def _get(self, path: str) -> bytes | None:
        """What is said; None if it was said before."""
        self.asked += 1
        tag = {"If-None-Match": self._tags.get(path, "")}
        try:
            with urllib.request.urlopen(urllib.request.Request(self._url + path, headers=tag),
                                        timeout=60) as reply:  # fmt: skip
                self._tags[path] = reply.headers["ETag"]
                return bytes(reply.read())
        except urllib.error.HTTPError as error:
            if error.code != 304:
                raise
            return None


def training(steps: int, seed: int) -> Graph:
    graph = graph_of(steps, seed)
    trainer = next(n for n in graph.values() if n["class_type"] == "PersonalizeTrainLora")
    trainer["inputs"]["preview"] = graph.add(
        "PersonalizePreview", prompts="a dog", every_steps=max(1, steps // NUM_PREVIEWS),
        width=SIZE_PX, height=SIZE_PX, steps=1, cfg=1.0, sampler_name="euler", scheduler="normal",
        seed=1,
    )[0]  # fmt: skip
    return graph


def watched(host: Host, steps: int, seed: int, pages: int) -> tuple[Took, int]:
    """What a training took while so many pages were open, and what they asked."""
    stop = threading.Event()
    askers = [Asker(host, stop, f"page-{n}", n == 0) for n in range(pages)]
    for asker in askers:
        asker.start()
    took = run(host, training(steps, seed), "page-0")
    stop.set()
    for asker in askers:
        asker.join(60)
    return took, sum(asker.asked for asker in askers)


def watching(host: Host, steps: int, rounds: int) -> list[Limit]:
    """Prints what ten pages cost a training."""
    host.get(ROUTE)
    run(host, training(20, 0), "warm-up")
    shares = []
    for number in range(rounds):
        without, _ = watched(host, steps, 2 * number + 1, 0)
        open_tabs, asked = watched(host, steps, 2 * number + 2, PAGES)
        shares.append(100 * (open_tabs.server - without.server) / without.cpu)
        for name, took in (("no page", without), (f"{PAGES} pages", open_tabs)):
            print(f"  round {number + 1}  {name:9} {took.wall:7.2f} s, CPU {took.cpu:7.2f} s, "
                  f"server {took.server:6.3f} s", flush=True)  # fmt: skip
        print(f"    {asked} questions", flush=True)
    share = statistics.median(shares)
    print(f"  {PAGES} pages take {share:.2f} % ({min(shares):.2f} to {max(shares):.2f})")
    return [Limit(f"% of a training's CPU time, {PAGES} open tabs", share, True, MOST_SHARE)]


def opening(host: Host, rounds: int) -> list[Limit]:
    """Prints how long the tab takes to show its rows after a start of the host, and to scroll."""
    first = []
    for listed in (False, True):
        host.kill()
        if not listed:
            (host.base / "output" / "personalize" / RUNS_JSONL).unlink(missing_ok=True)
        host.start()
        with page(host) as shown:
            button = shown.tab.get_by_role("button", name="Training runs").first
            found = [button.evaluate(OPEN, FRAMES) for _ in range(rounds)]
        opened = [one["opened"] / 1e3 for one in found]
        frames = [frame for one in found for frame in one["took"]]
        first.append(opened[0])
        print(f"  tab, runs {'listed before' if listed else 'never listed'}: {opened[0]:.3f} s to "
              f"open first, then {statistics.median(opened[1:] or opened):.3f}; frames of "
              f"{statistics.median(frames):.1f} ms while it scrolls (at most {max(frames):.1f}), "
              f"{found[-1]['rows']} rows at once", flush=True)  # fmt: skip
    return [
        Limit("s to open the tab first, never listed", first[0], True, MOST_OPENING),
        Limit("s to open the tab first, listed before", first[1], True, MOST_OPENING),
        Limit("ms of a frame of the tab", statistics.median(frames), True, MOST_FRAME),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_comfyui(parser)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--steps", type=int, default=500, help="of a run, and of the training")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="to see that it works")
    asked = checked(parser)
    count, steps, rounds = (40, 60, 1) if asked.quick else (asked.runs, asked.steps, asked.rounds)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        parent = Path(folder) / "personalize"
        make_runs(parent, count, steps)
        print(f"{count} runs of {steps} steps", flush=True)
        limits = listing(parent, rounds)
    base = checkpoints.cached("thin_sd15", dev.DEV / "checkpoints", "fp32")
    with Host(asked.comfyui, checkpoints={"thin.safetensors": base}) as host:
        write_picture(host.base / "input" / "dog", SIZE_PX)
        make_runs(host.base / "output" / "personalize", count, steps)
        if browser_path() is None:
            print("No Chromium, so the tab is not opened.")
        else:
            limits += opening(host, rounds)
        limits += watching(host, steps, rounds)
    return conclude(limits, asked.quick)


if __name__ == "__main__":
    sys.exit(main())
