"""What pages that are open cost a training, and what they get to draw.

    python -m benchmarks.pages [--steps N] [--rounds N] [--comfyui DIR] [--quick]

One host on the CPU trains a LoRA of a thin SD1.5 at 64 px again and again: with no page, with one
(a tab of a real Chromium, where there is one), and with ten clients that listen and ask as pages
do, all in turn. Ten tabs would measure what Chromium takes of the cores instead. Measured are the
clock's time of a run, the CPU time of the host's process, and of it that of its server, which is
all threads but the one that trains: its part is told from the rest even where a machine is noisy.
Then the messages that a client gets in a second, and how long a page draws 100,000 steps.

Exit code 1 if one page takes more than 1 % of a training's time in the server, ten more than 2 %,
more than five messages of a kind come in a second, or drawing takes more than 40 ms. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import threading
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import dev
from benchmarks.running import (
    Limit,
    add_comfyui,
    checked,
    conclude,
    write_picture,
)
from dev_setup import browser_path
from tests import checkpoints
from tests.browser import Page, page
from tests.events import EventStream
from tests.graphs import Graph
from tests.host import Host

PICTURES, SIZE_PX = 6, 64
POLL_SECONDS = 0.5  # between questions whether a run has ended; each costs the server as well
NO_PAGE, ONE_PAGE, TEN_PAGES = "no page", "1 page", "10 pages"
MOST = {ONE_PAGE: 0.01, TEN_PAGES: 0.02}  # of a training's time
MOST_A_SECOND = 5  # messages of a kind
OURS, HOSTS = "personalize.", ("progress", "progress_state")  # kinds of messages
LONG_STEPS = 100_000
DRAWINGS = 20
MOST_DRAWING_MS = 40  # a tenth of the time between two updates
TRAININGS = "/personalize/trainings"

# In a page: the milliseconds that its reply takes, and drawing it and a point for each step.
DRAW = """async ([url, drawings, numSteps]) => {
  const { makeCurve } = await import("/extensions/personalize/training/curve.js");
  const timed = async (act) => {
    const began = performance.now();
    const result = await act();
    return [performance.now() - began, result];
  };
  const box = document.createElement("div");
  Object.assign(box.style, { position: "fixed", top: 0, left: 0, width: "400px", height: "130px" });
  document.body.append(box);
  const [canvas, draw] = makeCurve();
  box.append(canvas);
  const [fetched, story] = await timed(async () => (await fetch(url)).json());
  const loss = [];
  for (let step = 1; step <= numSteps; step++) loss.push([step, 0.1 + 0.1 * Math.random()]);
  const drawn = { late: [], early: [] };
  for (let i = 0; i < drawings; i++) {
    for (const [name, shown] of Object.entries({ late: story, early: { loss, validation: [] } })) {
      const [took] = await timed(() => {
        draw(shown);
        canvas.getContext("2d").getImageData(0, 0, 1, 1); // or it is only noted down, to be done
      });
      drawn[name].push(took);
    }
  }
  box.remove();
  return { fetched, points: story.loss.length, ...drawn };
}"""


class Took(NamedTuple):
    """What a run took, in seconds.

    Attributes:
        wall: by the clock.
        cpu: of the host's process.
        server: of it all threads but the one that trains; they send, and read what is asked for.
    """

    wall: float
    cpu: float
    server: float


class Client(threading.Thread):
    """Listens as a page does, until the host has nothing left to do.

    Attributes:
        came: kind and time of each message.
    """

    def __init__(self, host: Host, name: str) -> None:
        super().__init__(daemon=True)
        self._host, self._stream = host, EventStream(host.url, name)
        self.came: list[tuple[str, float]] = []

    def run(self) -> None:
        self._host.get(TRAININGS)  # as a page that is loaded
        busy = False
        for kind, data in self._stream:
            self.came.append((kind, time.monotonic()))
            if kind == "personalize.training":
                self._host.get(f"{TRAININGS}/{urllib.parse.quote(data['run'])}")
            elif kind == "status":
                left = data["status"]["exec_info"]["queue_remaining"]
                if busy and not left:
                    break
                busy = left > 0
        self._stream.close()


# -- runs ---------------------------------------------------------------------


def graph_of(steps: int, seed: int) -> Graph:
    """A training as the shipped graphs have it, of a seed that was not trained before."""
    graph = Graph()
    trained = graph.train(*graph.load("thin.safetensors"), graph.dataset("dog"), steps=steps,
                          seed=seed)  # fmt: skip
    graph.add("PersonalizeLossPlot", loss_map=trained[3], theme="dark")
    return graph


def run(host: Host, graph: Graph, client_id: str) -> Took:
    """Runs a graph and measures it."""
    before = thread_seconds(host.pid)
    prompt = host.queue(graph, client_id)
    entry: dict[str, Any] = {}
    while not entry:
        time.sleep(POLL_SECONDS)
        entry = host.get(f"/history/{prompt}").get(prompt) or {}
    told = dict(entry["status"]["messages"])
    if "execution_success" not in told:
        raise SystemExit(f"A run failed:\n{host.log_tail()}")
    wall = told["execution_success"]["timestamp"] - told["execution_start"]["timestamp"]
    spent = [now - before.get(thread, 0) for thread, now in thread_seconds(host.pid).items()]
    return Took(wall / 1000, sum(spent), sum(spent) - max(spent))


def thread_seconds(pid: int) -> dict[str, float]:
    """CPU time of each thread of a process so far (Linux)."""
    folders = Path(f"/proc/{pid}/task").iterdir()
    return {f.name: int((f / "schedstat").read_text().split()[0]) / 1e9 for f in folders}


@contextmanager
def tab(host: Host, graph: Graph) -> Iterator[Page]:
    """A Chromium that shows the graph."""
    with page(host) as shown:
        shown.run("(prompt) => app.loadApiJson(prompt, 'benchmark')", dict(graph))
        shown.until("() => app.graph.nodes.length")
        yield shown
        words = shown.run("() => document.querySelector('.personalize-training')?.textContent")
        if "done: " not in str(words) or shown.complaints:
            raise SystemExit(f"The page did not follow: {words!r}, {shown.complaints}")


def with_pages(host: Host, kind: str, graph: Graph, seen: list[Client]) -> Took:
    """Runs a graph while so many pages are open; their clients are added to `seen`."""
    if kind == ONE_PAGE:
        with tab(host, graph) as shown:
            return run(host, graph, shown.run("() => app.api.clientId"))
    clients = [Client(host, f"page-{i}") for i in range(10 if kind == TEN_PAGES else 0)]
    for client in clients:
        client.start()
    took = run(host, graph, "page-0")
    for client in clients:
        client.join(60)
    seen += clients
    return took


def measure(host: Host, kinds: Sequence[str], steps: int, rounds: int) -> tuple[Any, list[Client]]:
    """What each run took, by kind; and the clients there were."""
    took: dict[str, list[Took]] = defaultdict(list)
    clients: list[Client] = []
    run(host, graph_of(20, 0), "warm-up")
    for number in range(rounds):
        turn = number % len(kinds)
        for kind in [*kinds[turn:], *kinds[:turn]]:
            seed = 1 + number * len(kinds) + kinds.index(kind)
            took[kind].append(with_pages(host, kind, graph_of(steps, seed), clients))
            one = took[kind][-1]
            print(f"  round {number + 1}  {kind:9} {one.wall:7.2f} s, CPU {one.cpu:7.2f} s, "
                  f"server {one.server:6.3f} s", flush=True)  # fmt: skip
    return took, clients


# -- report -------------------------------------------------------------------


def spread(values: Sequence[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):6.3f} ({min(values):.3f} to {max(values):.3f})"


def costs(took: dict[str, list[Took]], steps: int) -> list[Limit]:
    """Prints how runs with pages compare to those without in the same round."""
    without = took[NO_PAGE]
    print(f"\n{NO_PAGE}: {1000 * statistics.median(t.wall for t in without) / steps:.1f} ms a step")
    found = []
    for kind, runs in took.items():
        if kind == NO_PAGE:
            continue
        pairs = list(zip(runs, without, strict=True))
        print(f"{kind} / {NO_PAGE}, median of {len(pairs)} rounds (lowest to highest):")
        print(f"  clock            {spread([one.wall / other.wall for one, other in pairs])}")
        print(f"  CPU, process     {spread([one.cpu / other.cpu for one, other in pairs])}")
        shares = [(one.server - other.server) / other.cpu for one, other in pairs]
        print(f"  CPU, server, added, in % of the process's: {spread([100 * s for s in shares])}")
        share = 100 * statistics.median(shares)
        found.append(Limit(f"% of a training's CPU time, {kind}", share, True, 100 * MOST[kind]))
    return found


def messages(clients: Sequence[Client]) -> list[Limit]:
    """Prints what the client that queued a run gets of each kind, from the first step to the last.

    The others do not hear of the host's own progress.
    """
    most: dict[str, int] = defaultdict(int)
    rates: dict[str, list[float]] = defaultdict(list)
    for client in clients:
        steps = [at for kind, at in client.came if kind == "progress"]
        if not steps:
            continue
        for kind in {kind for kind, _ in client.came if kind.startswith(OURS)} | set(HOSTS):
            times = [at for k, at in client.came if k == kind and steps[0] <= at <= steps[-1]]
            rates[kind].append(len(times) / (steps[-1] - steps[0]))
            most[kind] = max(most[kind], most_in_a_second(times))
    print("\nmessages to the page that queued it, a second: median of the runs, most in any second")
    for kind, found in sorted(rates.items()):
        print(f"  {kind:26} {statistics.median(found):8.1f} {most[kind]:8}")
    return [Limit(f"messages in a second, {k}", m, True, MOST_A_SECOND) for k, m in most.items()]


def most_in_a_second(times: Sequence[float]) -> int:
    """The most of these times that lie within a second."""
    return max((sum(t < at + 1 for t in times[i:]) for i, at in enumerate(times)), default=0)


def drawing(host: Host) -> list[Limit]:
    """Prints in which time a page draws a long run: one that comes late, and one there all along.

    The late one gets means of so many steps each (trainers/runs/story.py), the other has a point
    for each step.
    """
    folder = next((host.base / "output" / "personalize").glob("lora-*")).with_name("lora-long")
    folder.mkdir()
    rows = (json.dumps({"step": step, "loss": 0.1 + step % 7 / 70, "learning_rate": 1e-4})
            for step in range(1, LONG_STEPS + 1))  # fmt: skip
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    with page(host) as shown:
        found = shown.run(DRAW, [f"{TRAININGS}/{folder.name}", DRAWINGS, LONG_STEPS])
    slowest = max(statistics.median(found[name]) for name in ("late", "early"))
    print(f"\n{LONG_STEPS:,} steps in a page, ms: {found['fetched']:.0f} to ask for them "
          f"({found['points']:,} points),\n"
          f"  to draw those {spread(found['late'])}, to draw every step {spread(found['early'])}",
          flush=True)  # fmt: skip
    return [Limit(f"ms to draw {LONG_STEPS:,} steps", slowest, True, MOST_DRAWING_MS)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_comfyui(parser)
    parser.add_argument("--steps", type=int, default=400, help="of a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="to see that it works")
    asked = checked(parser)
    steps, rounds = (60, 1) if asked.quick else (asked.steps, asked.rounds)
    os.environ["OMP_NUM_THREADS"] = "1"  # a model this small gains nothing from more
    has_browser = browser_path() is not None
    if not has_browser:
        print("No Chromium, so none of what a real page does.")
    kinds = [NO_PAGE, *[ONE_PAGE] * has_browser, TEN_PAGES]
    print(f"thin SD1.5, {SIZE_PX} px, {steps} steps, {rounds} rounds", flush=True)
    base = checkpoints.cached("thin_sd15", dev.DEV / "checkpoints", "fp32")
    with Host(asked.comfyui, checkpoints={"thin.safetensors": base}) as host:
        folder = host.base / "input" / "dog"
        picture = write_picture(folder, SIZE_PX)
        for number in range(2, PICTURES + 1):
            shutil.copyfile(picture, folder / f"{number}.png")
        took, clients = measure(host, kinds, steps, rounds)
        limits = [*costs(took, steps), *messages(clients)]
        if has_browser:
            limits += drawing(host)
    return conclude(limits, asked.quick)


if __name__ == "__main__":
    sys.exit(main())
