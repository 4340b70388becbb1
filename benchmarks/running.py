"""What the benchmarks of a step share: the models, runs in turn, a host that is watched, verdicts.

Every run is a process of its own, and rounds go through all contenders in turn, so that what else
the machine does hits all alike. Medians over all steps after the warm-up. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

import dev
from tests import checkpoints
from tests.events import Event
from tests.graphs import Graph
from tests.host import ROOT, Host

WARM_UP_STEPS = 2
CHECKPOINT = "base.safetensors"
BEFORE = "before"  # the kind, and the title, of what another checkout does
SLACK = 1.05  # of another checkout's time and memory: as much as measuring the same twice differs


class Model(NamedTuple):
    """A base model to measure with.

    Attributes:
        checkpoint: as tests.checkpoints names it.
        thin: its small brother, for --quick.
        precisions: in which it is trained.
        stored_in: the dtype of its file.
        host_arguments: so that a host on a CPU holds it as its file does, where it must.
    """

    checkpoint: str
    thin: str
    size_px: int
    precisions: tuple[str, ...] = ("fp32", "bf16")
    stored_in: str = "fp32"
    host_arguments: tuple[str, ...] = ()


MODELS = {
    "sd15": Model("full_sd15", "thin_sd15", 256),
    # In fp32 its weights alone would take 10 GB.
    "sdxl": Model("full_sdxl", "thin_sdxl", 512, ("bf16",), "bf16", ("--bf16-unet",)),
}


@dataclass(frozen=True)
class Bench:
    """What all contenders train on, and how long."""

    comfyui: Path
    model: str  # as tests.checkpoints names it
    checkpoint: Path
    picture: Path
    size_px: int
    steps: int
    rounds: int
    shared: bool  # CPU seconds of one thread instead of the clock's
    host_arguments: tuple[str, ...]


@dataclass
class Sample:
    """What was measured of one contender, over one run or all of them."""

    seconds: list[float] = field(default_factory=list)
    peaks_bytes: list[int] = field(default_factory=list)
    arithmetic_seconds: list[float] = field(default_factory=list)

    def add(self, other: Sample) -> None:
        self.seconds += other.seconds
        self.peaks_bytes += other.peaks_bytes
        self.arithmetic_seconds += other.arithmetic_seconds


class Contender(NamedTuple):
    kind: str
    precision: str
    title: str
    run: Callable[[Bench], Sample]


class Row(NamedTuple):
    """One line of a table."""

    title: str
    precision: str
    seconds: float
    peak_gb: float = math.nan


Rows = dict[tuple[str, str], Row]  # by kind and precision


class Limit(NamedTuple):
    """A ratio that is promised: at most `bound`, or at least."""

    what: str
    ratio: float
    at_most: bool
    bound: float

    @property
    def kept(self) -> bool:
        return self.ratio <= self.bound if self.at_most else self.ratio >= self.bound


# -- runs ---------------------------------------------------------------------


def measure(bench: Bench, contenders: Sequence[Contender]) -> Rows:
    """All contenders in turn, as often as there are rounds."""
    samples = {contender: Sample() for contender in contenders}
    for number in range(bench.rounds):
        for contender in contenders:
            sample = contender.run(bench)
            samples[contender].add(sample)
            seconds = " ".join(f"{value:.2f}" for value in sample.seconds)
            title = f"{contender.title} {contender.precision}"
            print(f"  round {number + 1}  {title:36} {seconds} s/step", flush=True)
    return rows_of(samples)


def rows_of(samples: Mapping[Contender, Sample]) -> Rows:
    rows: Rows = {}
    for (kind, precision, title, _), sample in samples.items():
        seconds = statistics.median(sample.seconds)
        rows[kind, precision] = Row(title, precision, seconds, max(sample.peaks_bytes) / 1e9)
        if sample.arithmetic_seconds:
            floor = min(sample.arithmetic_seconds)
            rows["arithmetic", precision] = Row("arithmetic alone", precision, floor)
    return rows


def in_host(bench: Bench, graph: Graph, trainer: str, pack: Path | None) -> Sample:
    """Runs a graph in a fresh host; the steps and the peak are those of its node `trainer`."""
    ticks: list[tuple[int, float]] = []
    offered = {CHECKPOINT: bench.checkpoint}
    arguments = ("--cpu", *bench.host_arguments)
    with Host(bench.comfyui, pack=pack, checkpoints=offered, args=arguments) as host:
        host.add_input(bench.picture.parent)
        clock = partial(cpu_seconds, host.pid) if bench.shared else time.perf_counter

        def see(event: Event) -> None:
            if event.data.get("node") != trainer:
                return
            if event.kind == "executing":
                host.reset_peak()
            elif event.kind == "progress":
                ticks.append((event.data["value"], clock()))

        host.follow(graph, see, timeout=3600)
        return Sample(step_seconds(ticks), [host.peak_rss_bytes()])


def in_process(module: str, bench: Bench, *arguments: object) -> Sample:
    """Runs a bare loop, which prints what it measured."""
    command = [sys.executable, "-m", module, "--model", bench.model]
    command += ["--steps", str(bench.steps), "--size-px", str(bench.size_px)]
    command += ["--cpu-time"] * bench.shared + [str(argument) for argument in arguments]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"The bare loop failed:\n{done.stderr}")
    measured = json.loads(done.stdout.splitlines()[-1])
    sample = Sample(measured["seconds"][WARM_UP_STEPS:], [measured["peak_bytes"]])
    if "operations" in measured:
        sample.arithmetic_seconds = [measured["operations"] / measured["operations_per_second"]]
    return sample


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used so far, in all its threads (Linux; man 5 proc_pid_stat)."""
    numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


def step_seconds(ticks: list[tuple[int, float]]) -> list[float]:
    """Seconds a step from (steps done, time) after the warm-up; hosts skip some that are quick."""
    after = [tick for tick in ticks if tick[0] >= WARM_UP_STEPS]
    pairs = itertools.pairwise(after)
    return [(time_b - time_a) / (done_b - done_a) for (done_a, time_a), (done_b, time_b) in pairs]


# -- verdicts -----------------------------------------------------------------


def as_good_as(what: str, ours: Row, others: Row, slack: float = SLACK) -> list[Limit]:
    """That `ours` takes no more time and memory than another, but for `slack`."""
    return [
        Limit(f"time, {what}", ours.seconds / others.seconds, True, slack),
        Limit(f"peak memory, {what}", ours.peak_gb / others.peak_gb, True, slack),
    ]


def verdict(limit: Limit) -> str:
    wanted = f"{'at most' if limit.at_most else 'at least'} {limit.bound:.2f}"
    return f"{limit.what:52} {limit.ratio:6.2f}  {wanted:13}  {'ok' if limit.kept else 'MISSED'}"


def conclude(found: Sequence[Limit], quick: bool) -> int:
    """Print the verdicts; the exit code."""
    print("\n" + "\n".join(map(verdict, found)))
    if quick:
        print("The thin model only shows that this works; its figures say nothing.")
        return 0
    return 0 if all(limit.kept for limit in found) else 1


# -- arguments ----------------------------------------------------------------


def parser_of(module_docstring: str | None) -> argparse.ArgumentParser:
    """The arguments that benchmarks of a step share; `checked` looks at what was given."""
    parser = argparse.ArgumentParser(description=(module_docstring or "").split("\n")[0])
    add_comfyui(parser)
    parser.add_argument("--steps", type=int, default=10, help="a run; 2 of them are warm-up")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each contender")
    parser.add_argument(
        "--shared",
        action="store_true",
        help="for a machine that others use too: one thread, and its CPU time, not the clock's",
    )
    add_against(parser)
    parser.add_argument("--quick", action="store_true", help="a thin model, to see that it works")
    return parser


def add_comfyui(parser: argparse.ArgumentParser) -> None:
    checkout = os.environ.get("PERSONALIZE_COMFYUI") or os.environ.get("COMFYUI_PATH")
    fetched = dev.DEV / f"ComfyUI-{dev.NEWEST}"
    parser.add_argument("--comfyui", type=Path, default=Path(checkout or fetched))


def add_against(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--against",
        type=Path,
        metavar="DIR",
        help="another checkout of this pack, which runs in turn with this one",
    )


def checked(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was given; ends the process with a message if it cannot be used."""
    asked = parser.parse_args()
    comfyui = getattr(asked, "comfyui", None)
    if comfyui is not None and not (comfyui / "main.py").is_file():
        parser.error(f"{comfyui} is no ComfyUI; `python dev.py test` fetches one")
    against = getattr(asked, "against", None)
    if against is not None:
        asked.against = against.resolve()  # other processes run in other folders
        if not (against / "nodes").is_dir() or not (against / "trainers").is_dir():
            parser.error(f"{against} is no checkout of this pack")
    return asked


@contextmanager
def bench_of(asked: argparse.Namespace, model: Model) -> Iterator[Bench]:
    """Model, picture and sizes to measure with."""
    name, size_px = (model.thin, 64) if asked.quick else (model.checkpoint, model.size_px)
    # A node tells of a step every 0.4 s at most, and thin models make several in that time.
    steps, rounds = (24, 1) if asked.quick else (asked.steps, asked.rounds)
    if steps < WARM_UP_STEPS + 2:
        raise SystemExit(f"--steps {steps}; at least {WARM_UP_STEPS + 2}")
    print(f"{name}, {size_px} px, batch size 1, {steps} steps, {rounds} rounds", flush=True)
    if asked.shared:
        os.environ["OMP_NUM_THREADS"] = "1"  # every contender inherits it
    checkpoint = checkpoints.cached(name, dev.DEV / "checkpoints", model.stored_in)
    with tempfile.TemporaryDirectory() as scratch:
        picture = write_picture(Path(scratch) / "benchmark", size_px)
        yield Bench(
            asked.comfyui,
            name,
            checkpoint,
            picture,
            size_px,
            steps,
            rounds,
            asked.shared,
            model.host_arguments,
        )


def write_picture(folder: Path, size_px: int) -> Path:
    folder.mkdir()
    path = folder / "1.png"
    Image.effect_noise((size_px, size_px), 64).convert("RGB").save(path)
    return path
