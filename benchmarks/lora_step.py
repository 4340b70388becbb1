"""What one step of LoRA training costs, side by side: seconds and peak memory.

    python -m benchmarks.lora_step [--comfyui DIR] [--steps N] [--rounds N] [--only KIND ...]
                                   [--shared] [--quick]

On a Stable Diffusion 1.5 of full size with random weights, at 256 px and batch size 1, on the CPU:
this pack's Train LoRA in a real ComfyUI; ComfyUI's own TrainLoraNode; a bare loop of diffusers and
peft (bare_loop.py); and the time that the step's floating-point operations take at the rate of a
large matmul. Every run is a process of its own, and rounds go through all of them in turn, so
that what else the machine does hits all alike. Medians over all steps after the warm-up.
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
from collections.abc import Callable, Iterator, Sequence
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

RANK = 16
WARM_UP_STEPS = 2
OWN_NODE_STEPS = 5  # ComfyUI's node takes four times as long a step, or more
CHECKPOINT = "base.safetensors"
PRECISIONS = ("fp32", "bf16")
KINDS = ("ours", "bare", "comfyui")


@dataclass(frozen=True)
class Bench:
    """What all contenders train on, and how long."""

    comfyui: Path
    model: str  # as tests.checkpoints names it
    checkpoint: Path
    picture: Path
    thin: bool
    size_px: int
    steps: int
    shared: bool  # CPU seconds of one thread instead of the clock's


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
    """One line of the table."""

    title: str
    precision: str
    seconds: float
    peak_gb: float = math.nan


class Limit(NamedTuple):
    """A ratio that is promised: at most `bound`, or at least."""

    what: str
    ratio: float
    at_most: bool
    bound: float

    @property
    def kept(self) -> bool:
        return self.ratio <= self.bound if self.at_most else self.ratio >= self.bound


# -- contenders ---------------------------------------------------------------


def run_ours(bench: Bench, precision: str) -> Sample:
    graph = Graph()
    model, clip, vae = graph.load(CHECKPOINT)
    dataset = graph.dataset(bench.picture.parent.name, resolution=bench.size_px)
    settings = {"steps": bench.steps, "rank": RANK, "alpha": float(RANK), "precision": precision}
    trainer = graph.train(model, clip, vae, dataset, **settings)[0][0]
    return in_host(bench, graph, trainer, pack=ROOT)


def run_comfyui(bench: Bench, precision: str) -> Sample:
    """ComfyUI's own node as it comes, gradient checkpointing included; rank and dtype are ours."""
    graph = Graph()
    model, clip, vae = graph.load(CHECKPOINT)
    name = f"{bench.picture.parent.name}/{bench.picture.name}"
    pixels = graph.add("LoadImage", image=name)[0]
    latents = graph.add("VAEEncode", pixels=pixels, vae=vae)[0]
    positive = graph.add("CLIPTextEncode", clip=clip, text="a photo of sks dog")[0]
    lora = graph.add(
        "TrainLoraNode", model=model, latents=latents, positive=positive, batch_size=1,
        grad_accumulation_steps=1, steps=min(bench.steps, OWN_NODE_STEPS), learning_rate=1e-4,
        rank=RANK, optimizer="AdamW", loss_function="MSE", seed=0, training_dtype=precision,
        lora_dtype=precision, quantized_backward=False, algorithm="LoRA",
        gradient_checkpointing=True, checkpoint_depth=1, offloading=False,
        existing_lora="[None]", bucket_mode=False, bypass_mode=False,
    )[0]  # fmt: skip
    graph.add("SaveLoRA", lora=lora, prefix="loras/benchmark")
    return in_host(bench, graph, lora[0], pack=None)


def run_bare(bench: Bench, precision: str) -> Sample:
    command = [sys.executable, "-m", "benchmarks.bare_loop", "--precision", precision]
    command += ["--steps", str(bench.steps), "--rank", str(RANK), "--size-px", str(bench.size_px)]
    command += ["--thin"] * bench.thin + ["--cpu-time"] * bench.shared
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"The bare loop failed:\n{done.stderr}")
    measured = json.loads(done.stdout.splitlines()[-1])
    return Sample(
        measured["seconds"][WARM_UP_STEPS:],
        [measured["peak_bytes"]],
        [measured["operations"] / measured["operations_per_second"]],
    )


def in_host(bench: Bench, graph: Graph, trainer: str, pack: Path | None, *more: str) -> Sample:
    """Runs a graph in a fresh host; the steps and the peak are those of its node `trainer`.

    Args:
        more: arguments of the host.
    """
    ticks: list[tuple[int, float]] = []
    offered = {CHECKPOINT: bench.checkpoint}
    with Host(bench.comfyui, pack=pack, checkpoints=offered, args=("--cpu", *more)) as host:
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


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used so far, in all its threads (Linux; man 5 proc_pid_stat)."""
    numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


def step_seconds(ticks: list[tuple[int, float]]) -> list[float]:
    """Seconds a step from (steps done, time) after the warm-up; hosts skip some that are quick."""
    after = [tick for tick in ticks if tick[0] >= WARM_UP_STEPS]
    pairs = itertools.pairwise(after)
    return [(time_b - time_a) / (done_b - done_a) for (done_a, time_a), (done_b, time_b) in pairs]


CONTENDERS = [
    Contender("ours", "fp32", "Train LoRA", partial(run_ours, precision="fp32")),
    Contender("bare", "fp32", "bare loop", partial(run_bare, precision="fp32")),
    Contender("ours", "bf16", "Train LoRA", partial(run_ours, precision="bf16")),
    Contender("bare", "bf16", "bare loop", partial(run_bare, precision="bf16")),
    Contender("comfyui", "fp32", "ComfyUI's own node", partial(run_comfyui, precision="fp32")),
]

# -- report -------------------------------------------------------------------

Rows = dict[tuple[str, str], Row]


def rows_of(samples: dict[Contender, Sample]) -> Rows:
    """The table's lines by kind and precision."""
    rows: Rows = {}
    for (kind, precision, title, _), sample in samples.items():
        seconds = statistics.median(sample.seconds)
        rows[kind, precision] = Row(title, precision, seconds, max(sample.peaks_bytes) / 1e9)
        if sample.arithmetic_seconds:
            floor = min(sample.arithmetic_seconds)
            rows["arithmetic", precision] = Row("arithmetic alone", precision, floor)
    return rows


def table(rows: Rows) -> str:
    lines = ["                            s/step   x bare  x ComfyUI  peak GB   x bare  x ComfyUI"]
    for precision in PRECISIONS:
        for kind in ("ours", "comfyui", "bare", "arithmetic"):
            row = rows.get((kind, precision))
            if row is None:
                continue
            others = [rows.get(("bare", precision)), rows.get(("comfyui", "fp32"))]
            cells = [_ratio(row.seconds, other and other.seconds) for other in others]
            line = f"{row.title:19}{precision:6} {row.seconds:8.2f} {cells[0]:>8} {cells[1]:>10}"
            if not math.isnan(row.peak_gb):
                cells = [_ratio(row.peak_gb, other and other.peak_gb) for other in others]
                line += f" {row.peak_gb:8.1f} {cells[0]:>8} {cells[1]:>10}"
            lines.append(line)
    return "\n".join(lines)


def _ratio(value: float, other: float | None) -> str:
    return "-" if other is None else f"{value / other:.2f}"


def limits(rows: Rows) -> list[Limit]:
    """Those that the rows at hand can tell."""
    found = []
    for precision in PRECISIONS:
        if ("ours", precision) in rows and ("bare", precision) in rows:
            ratio = rows["ours", precision].seconds / rows["bare", precision].seconds
            found.append(Limit(f"time, Train LoRA / bare loop, {precision}", ratio, True, 1.10))
    if ("ours", "fp32") not in rows:
        return found
    ours = rows["ours", "fp32"]
    if own := rows.get(("comfyui", "fp32")):
        ratio = own.seconds / ours.seconds
        found.append(Limit("time, ComfyUI's own node / Train LoRA, fp32", ratio, False, 4.0))
        ratio = ours.peak_gb / own.peak_gb
        found.append(Limit("peak memory, Train LoRA / ComfyUI's own node, fp32", ratio, True, 0.6))
    if half := rows.get(("ours", "bf16")):
        ratio = ours.seconds / half.seconds
        found.append(Limit("time, Train LoRA fp32 / bf16", ratio, False, 2.0))
    return found


def verdict(limit: Limit) -> str:
    wanted = f"{'at most' if limit.at_most else 'at least'} {limit.bound:.2f}"
    return f"{limit.what:52} {limit.ratio:6.2f}  {wanted:13}  {'ok' if limit.kept else 'MISSED'}"


# -- running ------------------------------------------------------------------


def measure(bench: Bench, kinds: list[str], rounds: int) -> dict[Contender, Sample]:
    asked = [contender for contender in CONTENDERS if contender.kind in kinds]
    samples = {contender: Sample() for contender in asked}
    for number in range(rounds):
        for contender in asked:
            sample = contender.run(bench)
            samples[contender].add(sample)
            seconds = " ".join(f"{value:.2f}" for value in sample.seconds)
            title = f"{contender.title} {contender.precision}"
            print(f"  round {number + 1}  {title:25} {seconds} s/step", flush=True)
    return samples


def write_picture(folder: Path, size_px: int) -> Path:
    folder.mkdir()
    path = folder / "1.png"
    Image.effect_noise((size_px, size_px), 64).convert("RGB").save(path)
    return path


def parser_of(module_docstring: str | None) -> argparse.ArgumentParser:
    """The arguments that benchmarks of a step share; `checked` looks at what was given."""
    checkout = os.environ.get("PERSONALIZE_COMFYUI") or os.environ.get("COMFYUI_PATH")
    fetched = dev.DEV / f"ComfyUI-{dev.NEWEST}"
    parser = argparse.ArgumentParser(description=(module_docstring or "").split("\n")[0])
    parser.add_argument("--comfyui", type=Path, default=Path(checkout or fetched))
    parser.add_argument("--steps", type=int, default=10, help="a run; 2 of them are warm-up")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each contender")
    parser.add_argument(
        "--shared",
        action="store_true",
        help="for a machine that others use too: one thread, and its CPU time, not the clock's",
    )
    parser.add_argument("--quick", action="store_true", help="a thin model, to see that it works")
    return parser


def checked(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was given; ends the process with a message if it cannot be used."""
    asked = parser.parse_args()
    if not (asked.comfyui / "main.py").is_file():
        parser.error(f"{asked.comfyui} is no ComfyUI; `python dev.py test` fetches one")
    if asked.steps < WARM_UP_STEPS + 2:
        parser.error(f"--steps {asked.steps}; at least {WARM_UP_STEPS + 2}")
    return asked


@contextmanager
def bench_of(asked: argparse.Namespace) -> Iterator[tuple[Bench, int]]:
    """Model, picture and sizes to measure with, and the number of rounds."""
    name, size_px = ("thin_sd15", 64) if asked.quick else ("full_sd15", 256)
    steps, rounds = (5, 1) if asked.quick else (asked.steps, asked.rounds)
    print(f"{name}, {size_px} px, batch size 1, {steps} steps, {rounds} rounds")
    if asked.shared:
        os.environ["OMP_NUM_THREADS"] = "1"  # every contender inherits it
    checkpoint = checkpoints.cached(name, dev.DEV / "checkpoints")
    with tempfile.TemporaryDirectory() as scratch:
        picture = write_picture(Path(scratch) / "benchmark", size_px)
        yield (
            Bench(
                asked.comfyui, name, checkpoint, picture, asked.quick, size_px, steps, asked.shared
            ),
            rounds,
        )


def conclude(found: Sequence[Limit], quick: bool) -> int:
    """Print the verdicts; the exit code."""
    print("\n" + "\n".join(map(verdict, found)))
    if quick:
        print("The thin model only shows that this works; its figures say nothing.")
        return 0
    return 0 if all(limit.kept for limit in found) else 1


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="leave others out")
    asked = checked(parser)
    with bench_of(asked) as (bench, rounds):
        rows = rows_of(measure(bench, asked.only, rounds))
    print(f"\n{table(rows)}")
    return conclude(limits(rows), asked.quick)


if __name__ == "__main__":
    sys.exit(main())
