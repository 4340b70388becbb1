"""What it costs to list the runs on disk, and what pages that ask for the list cost a training.

    python -m benchmarks.run_catalog [--runs N] [--steps N] [--rounds N] [--comfyui DIR] [--quick]

Makes 500 runs of 500 steps with two states and twenty previews each. Then lists them in this
process: cold, as after a start of the host (their files are in the system's cache), warm, and warm
with one run changed. Then one host on the CPU trains a LoRA of a thin SD1.5 at 64 px, in turn with
no page and with ten that each ask for the list every two seconds; counted is the CPU time of the
host's process but for the thread that trains, as in benchmarks/pages.py. Last, in a real Chromium,
where there is one: the time from a click on the tab "Training runs" to its rows, and the frames
while it is scrolled from end to end.

Exit code 1 if the list takes more than 1 s of CPU time cold or 0.3 s warm, ten pages cost more
than 2 % of a training's CPU time, or the tab takes more than 1 s to open or 50 ms for a frame.
Linux only.
"""

from __future__ import annotations

import argparse
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

import dev
from benchmarks.pages import Took, graph_of, run
from benchmarks.running import Limit, add_comfyui, checked, conclude, write_picture
from dev_setup import browser_path
from tests import checkpoints
from tests.browser import page
from tests.host import Host
from tests.run_folders import make_run
from trainers.runs.catalog.listing import Catalog

ROUTE = "/personalize/runs"
PAGES, POLL_SECONDS = 10, 2.0
SIZE_PX = 64
MOST_COLD, MOST_WARM, MOST_SHARE = 1.0, 0.3, 2.0  # seconds, seconds, % of a training's time
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
    cold, warm, changed = [], [], []
    num_bytes = 0
    for _ in range(rounds):
        catalog = Catalog(parent)
        cold.append(seconds_of(catalog.listing))
        catalog.forget()
        warm.append(seconds_of(catalog.listing))
        first = min(path for path in parent.iterdir())
        os.utime(first / "run.json")
        catalog.forget()
        changed.append(seconds_of(catalog.listing))
        age(first)
        num_bytes = len(catalog.listing())
    for name, found in (("cold", cold), ("warm", warm), ("one changed", changed)):
        print(f"  {name:12} {statistics.median(found):7.3f} s of CPU time "
              f"({min(found):.3f} to {max(found):.3f})", flush=True)  # fmt: skip
    print(f"  {num_bytes / 1e3:,.0f} kB as JSON")
    return [
        Limit("s of CPU time to list, cold", statistics.median(cold), True, MOST_COLD),
        Limit("s of CPU time to list, warm", statistics.median(warm), True, MOST_WARM),
    ]


class Asker(threading.Thread):
    """Asks for the list as a page does, until it is told to stop."""

    def __init__(self, host: Host, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._url, self._stop_asking, self._tag = host.url + ROUTE, stop, ""

    def run(self) -> None:
        while not self._stop_asking.wait(POLL_SECONDS):
            asked = urllib.request.Request(self._url, headers={"If-None-Match": self._tag})
            try:
                with urllib.request.urlopen(asked, timeout=60) as reply:
                    reply.read()
                    self._tag = reply.headers["ETag"]
            except urllib.error.HTTPError as error:
                if error.code != 304:
                    raise


def polled(host: Host, steps: int, seed: int, pages: int) -> Took:
    """What a training took while so many pages asked."""
    stop = threading.Event()
    askers = [Asker(host, stop) for _ in range(pages)]
    for asker in askers:
        asker.start()
        time.sleep(POLL_SECONDS / PAGES / 2)
    took = run(host, graph_of(steps, seed), "page-0")
    stop.set()
    for asker in askers:
        asker.join(60)
    return took


def polling(host: Host, steps: int, rounds: int) -> list[Limit]:
    """Prints what ten pages cost a training."""
    host.get(ROUTE)
    run(host, graph_of(20, 0), "warm-up")
    shares = []
    for number in range(rounds):
        without = polled(host, steps, 2 * number + 1, 0)
        asked = polled(host, steps, 2 * number + 2, PAGES)
        shares.append(100 * (asked.server - without.server) / without.cpu)
        for name, took in (("no page", without), (f"{PAGES} pages", asked)):
            print(f"  round {number + 1}  {name:9} {took.wall:7.2f} s, CPU {took.cpu:7.2f} s, "
                  f"server {took.server:6.3f} s", flush=True)  # fmt: skip
    share = statistics.median(shares)
    print(f"  {PAGES} pages take {share:.2f} % ({min(shares):.2f} to {max(shares):.2f})")
    told = f"% of a training's CPU time, {PAGES} pages that list"
    return [Limit(told, share, True, MOST_SHARE)]


def opening(host: Host, rounds: int) -> list[Limit]:
    """Prints how long the tab takes to show its rows, and to scroll."""
    with page(host) as shown:
        button = shown.tab.get_by_role("button", name="Training runs").first
        found = [button.evaluate(OPEN, FRAMES) for _ in range(rounds)]
    opened = [one["opened"] / 1e3 for one in found]
    frames = [frame for one in found for frame in one["took"]]
    print(f"  tab: {statistics.median(opened):.3f} s to open ({min(opened):.3f} to "
          f"{max(opened):.3f}), frames of {statistics.median(frames):.1f} ms while it scrolls (at "
          f"most {max(frames):.1f}), {found[-1]['rows']} rows at once", flush=True)  # fmt: skip
    return [
        Limit("s to open the tab", statistics.median(opened), True, MOST_OPENING),
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
        limits += polling(host, steps, rounds)
    return conclude(limits, asked.quick)


if __name__ == "__main__":
    sys.exit(main())
