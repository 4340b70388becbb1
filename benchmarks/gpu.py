"""What training costs on this machine's GPU; writes its rows into docs/performance.md.

    python -m benchmarks.gpu [--comfyui DIR] [--only WORD ...] [--steps N] [--report FILE]
    python -m benchmarks.gpu --cpu --quick      # thin models on the CPU, to see that it works

Stable Diffusion 1.5 and SDXL of full size with random weights, batch size 1 unless a row says
otherwise: this pack's nodes one after another in one ComfyUI as it comes; ComfyUI's own
TrainLoraNode in it; bare loops of diffusers and peft (bare_loop.py), each in a process of its own.

Seconds a step are the median after the warm-up. Memory is torch's: the most that tensors took
while the training node ran, and the most that its allocator took from the device for them; a
driver's context and what ComfyUI streams beside torch are not in it. The share of the card's rate
is the floating-point operations of the bare loop's step (FlopCounterMode, nothing computed twice),
over the seconds of a step, as a part of what a large matmul does in a second.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

import dev
from benchmarks.gpu_cases import BARE, CASES, DREAMBOOTH, INVERSION, LORA, OWN_NODE, Case
from benchmarks.lora_step import RANK, own_node
from benchmarks.running import (
    MODELS,
    WARM_UP_STEPS,
    add_comfyui,
    checked,
    step_seconds,
    write_picture,
)
from tests import checkpoints
from tests.events import Event
from tests.graphs import Graph
from tests.host import ROOT, Host, HostError

PROBES = ROOT / "tests" / "probes"
PAGE = ROOT / "docs" / "performance.md"
PLACE = "\n## GPU\n"  # after which the rows go
THIN_PX = 64
REPEAT_STEPS = 60


class Row(NamedTuple):
    """What was measured of a case; memory in bytes.

    Attributes:
        held: what tensors still took after it.
        operations: of a step, from a bare loop.
        rate: operations a second of a large matmul, from a bare loop.
    """

    case: Case
    seconds: float
    peak: int
    reserved: int = 0
    held: int = 0
    operations: float = math.nan
    rate: float = math.nan


class Bench:
    """The files to train on, a ComfyUI, and how long a case is."""

    def __init__(self, host: Host, folder: Path, steps: int, quick: bool, device: str) -> None:
        self.host, self.steps, self.quick, self.device = host, steps, quick, device
        self._folder, self._offered = folder, set[str]()

    def size_px(self, case: Case) -> int:
        return THIN_PX if self.quick else case.size_px

    def model(self, case: Case) -> str:
        """As tests.checkpoints names it."""
        model = MODELS[case.base]
        return model.thin if self.quick else model.checkpoint

    def picture(self, size_px: int) -> Path:
        folder = self._folder / f"{size_px} px"
        path = folder / "1.png" if folder.exists() else write_picture(folder, size_px)
        if folder.name not in self._offered:
            self._offered.add(self.host.add_input(folder))
        return path

    def load(self, case: Case, graph: Graph) -> list[list[Any]]:
        """MODEL, CLIP and VAE; the file is half precision, as such models are spread."""
        name = f"{self.model(case)}.safetensors"
        if name not in self._offered:
            path = checkpoints.cached(self.model(case), dev.DEV / "checkpoints", "fp16")
            self._offered.add(self.host.add_model("checkpoints", path, name))
        return graph.load(name)


# -- runs ---------------------------------------------------------------------


def trainer_of(bench: Bench, case: Case, graph: Graph, **more: Any) -> list[list[Any]]:
    """Adds the training node of a case; its sockets."""
    picture = bench.picture(bench.size_px(case))
    base = bench.load(case, graph)
    if case.kind == OWN_NODE:
        return [[own_node(graph, base, picture, case.precision, bench.steps), 0]]
    dataset = graph.dataset(picture.parent.name, resolution=bench.size_px(case))
    settings = {"steps": bench.steps, "precision": case.precision, **case.settings, **more}
    settings["if_run_exists"] = settings.get("if_run_exists", "start anew")
    if case.kind == LORA:
        settings |= {"rank": RANK, "alpha": float(RANK)}
    add = {LORA: graph.train, DREAMBOOTH: graph.dreambooth, INVERSION: graph.invert}[case.kind]
    sockets = add(*base, dataset, **settings)
    if case.previews_every:
        size_px = bench.size_px(case)
        graph[sockets[0][0]]["inputs"]["preview"] = graph.add(
            "PersonalizePreview", prompts="a photo of sks dog", every_steps=case.previews_every,
            seed=1, width=size_px, height=size_px, steps=20, cfg=7.0, sampler_name="euler",
            scheduler="normal",
        )[0]  # fmt: skip
    return sockets


def in_host(bench: Bench, case: Case) -> Row:
    graph, host = Graph(), bench.host
    trainer = trainer_of(bench, case, graph)[0][0]
    ticks: list[tuple[int, float]] = []

    def see(event: Event) -> None:
        if event.data.get("node") != trainer:
            return
        if event.kind == "executing":
            host.get("/probes/memory")
        elif event.kind == "progress" and event.data["max"] == bench.steps:  # not a preview's
            if not ticks or event.data["value"] > ticks[-1][0]:
                ticks.append((event.data["value"], time.perf_counter()))

    host.follow(graph, see, timeout=3600)
    memory = host.get("/probes/memory")
    host.free()
    host.delete_large_files()
    seconds = step_seconds(ticks)
    return Row(case, statistics.median(seconds), memory["peak"], memory["reserved"], memory["held"])


def bare(bench: Bench, case: Case) -> Row:
    command = [sys.executable, "-m", "benchmarks.bare_loop", "--model", bench.model(case)]
    command += ["--steps", str(bench.steps), "--size-px", str(bench.size_px(case))]
    command += ["--precision", case.precision, "--device", bench.device]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        raise HostError(done.stderr.strip().splitlines()[-1], kind="bare loop")
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = statistics.median(found["seconds"][WARM_UP_STEPS:])
    operations, rate = found["operations"], found["operations_per_second"]
    return Row(case, seconds, found["peak_bytes"], operations=operations, rate=rate)


def measure(bench: Bench, cases: Sequence[Case]) -> tuple[list[Row], list[str]]:
    """The rows of all that ran, and a sentence for each that did not."""
    rows, failures = [], []
    for case in cases:
        name = f"{case.base} {case.title} {bench.size_px(case)} px {case.precision}"
        began = time.perf_counter()
        try:
            row = bare(bench, case) if case.kind == BARE else in_host(bench, case)
        except (HostError, statistics.StatisticsError) as error:
            told = error.summary if isinstance(error, HostError) else "too few steps were seen"
            failures.append(f"{name}: {' '.join(told.split()):.300}")
            print(f"  FAILED {failures[-1]}\n{error!s:.3000}", flush=True)
            continue
        rows.append(row)
        print(
            f"  {name:64}{row.seconds:8.4f} s/step{row.peak / 1e9:7.2f} GB"
            f"{row.held / 1e9:7.2f} after, {time.perf_counter() - began:4.0f} s in all",
            flush=True,
        )
    rows.sort(key=lambda row: CASES.index(row.case))
    return rows, failures


def repeatability(bench: Bench) -> list[str]:
    """How far a LoRA is from itself when it is trained again, and when it was cancelled midway."""
    first = trained_lora(bench, "first")
    found = []
    for what, name, cancelled in (
        ("trained again", "again", False),
        (f"cancelled after half of {REPEAT_STEPS} steps and gone on", "resumed", True),
    ):
        other = trained_lora(bench, name, cancelled)
        away = max(float((first[k] - other[k]).norm() / first[k].norm()) for k in first)
        same = sum(torch.equal(first[k], other[k]) for k in first)
        found.append(
            f"A LoRA of SD1.5 that was {what}: {same} of {len(first)} tensors are equal to the "
            f"bit, the largest relative difference is {away:.1e}."
        )
    return found


def trained_lora(bench: Bench, name: str, cancelled: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of one and the same LoRA; `cancelled` midway, and gone on with."""
    host = bench.host

    def graph_of(if_run_exists: str) -> tuple[Graph, str]:
        graph = Graph()
        sockets = trainer_of(
            bench, Case("LoRA", "sd15", LORA, 512), graph,
            steps=REPEAT_STEPS, seed=100, state_every=1, if_run_exists=if_run_exists,
        )  # fmt: skip
        lora, prefix = sockets[2], f"loras/{name}"
        graph.add("PersonalizeSaveLora", lora=lora, filename_prefix=prefix, format="kohya fp32")
        return graph, sockets[0][0]

    graph, trainer = graph_of("start anew")
    try:
        host.follow(graph, lambda event: stop_midway(host, event, trainer, cancelled), timeout=3600)
    except HostError as error:
        if error.kind != "interrupted":
            raise
        host.run(graph_of("use it")[0], timeout=3600)
    (path,) = (host.base / "output/loras").glob(f"{name}_*.safetensors")
    host.free()
    return load_file(path)


def stop_midway(host: Host, event: Event, trainer: str, wanted: bool) -> None:
    at_trainer = event.kind == "progress" and event.data.get("node") == trainer
    if wanted and at_trainer and event.data["value"] >= REPEAT_STEPS // 2:
        host.interrupt()


# -- report -------------------------------------------------------------------


def table(rows: Sequence[Row], quick: bool) -> str:
    lines = [
        "| training | px | precision | s/step | x bare | of the matmul | GB, tensors | GB, torch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    bares = {(r.case.base, r.case.size_px, r.case.precision): r for r in rows if r.rate == r.rate}
    for row in rows:
        case = row.case
        bare_row = bares.get((case.base, case.size_px, case.precision))
        ratio = share = ""
        if bare_row and case.kind in (LORA, OWN_NODE, BARE):
            batch = case.settings.get("batch_size", 1)
            ratio = f"{row.seconds / batch / bare_row.seconds:.2f}"
            done = bare_row.operations * batch / row.seconds
            share = f"{100 * done / bare_row.rate:.0f} %"
        reserved = f"{row.reserved / 1e9:.1f}" if row.reserved else ""
        size_px = THIN_PX if quick else case.size_px
        name = f"{case.base.upper().replace('SD15', 'SD1.5')} {case.title}"
        lines.append(
            f"| {name} | {size_px} | {case.precision} | {row.seconds:.3f} | {ratio} | {share} "
            f"| {row.peak / 1e9:.1f} | {reserved} |"
        )
    return "\n".join(lines)


def section(host: Host, rows: Sequence[Row], notes: Sequence[str], bench: Bench) -> str:
    """The rows with the day, the card and the versions that they were measured with."""
    stats = host.get("/system_stats")
    card = re.sub(r"^cuda:\d+ | : .*$", "", stats["devices"][0]["name"])
    day = datetime.date.today()
    system = stats["system"]
    rates = {r.case.precision: r.rate for r in rows if r.rate == r.rate}
    told = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in rates.items())
    lines = [
        f"### {card}, {day.day} {day:%B %Y}",
        "",
        f"torch {system['pytorch_version']}, ComfyUI {system['comfyui_version']}, "
        f"{bench.steps} steps a row; a large matmul: {told or 'not measured'}.",
        "",
        table(rows, bench.quick),
        *(["", *(f"- {note}" for note in notes)] if notes else []),
    ]
    return "\n".join(lines) + "\n"


def write(page: Path, text: str) -> None:
    """Puts a section in place of the one with its heading, or before the others of its kind."""
    heading = text.split("\n", 1)[0]
    before = page.read_text(encoding="utf-8") if page.exists() else f"# Performance\n{PLACE}"
    old = re.compile(rf"^{re.escape(heading)}\n.*?(?=^###? |\Z)", re.DOTALL | re.MULTILINE)
    before = old.sub("", before)
    first, place, rest = before.partition(PLACE)
    page.write_text(f"{first}{place}\n{text}\n{rest.lstrip()}".rstrip() + "\n", encoding="utf-8")


def chosen(words: Sequence[str]) -> list[Case]:
    """The cases whose name has one of the words, in the order of the words."""
    found: list[Case] = []
    for word in words:
        for case in CASES:
            if word in f"{case.base} {case.kind} {case.title} {case.precision}":
                found += [case] * (case not in found)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_comfyui(parser)
    parser.add_argument("--steps", type=int, default=24, help=f"a row; {WARM_UP_STEPS} warm it up")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="cases that it names, in turn")
    parser.add_argument("--report", type=Path, help="where rows are written; the page on speed")
    parser.add_argument("--cpu", action="store_true", help="without a GPU")
    parser.add_argument("--quick", action="store_true", help="thin models, to see that it works")
    parser.add_argument("--host", default="", help="more arguments for ComfyUI")
    parser.add_argument("--without-repeats", action="store_true", help="do not train one thrice")
    asked = checked(parser)
    if not asked.cpu and not torch.cuda.is_available():
        parser.error("this machine has no GPU that torch can use; --cpu --quick tries it without")
    steps = 8 if asked.quick else asked.steps
    page = asked.report or (dev.DEV / "gpu-quick.md" if asked.quick else PAGE)
    cases = chosen(asked.only or [""])
    arguments = [*(["--cpu"] if asked.cpu else []), *asked.host.split()]
    with (
        tempfile.TemporaryDirectory() as scratch,
        Host(asked.comfyui, more_packs={"probes": PROBES}, args=arguments) as host,
    ):
        device = "cpu" if asked.cpu else "cuda"
        bench = Bench(host, Path(scratch), steps, asked.quick, device)
        rows, notes = measure(bench, cases)
        failed = bool(notes)
        if not asked.without_repeats:
            notes += repeatability(bench)
        text = section(host, rows, notes, bench)
    write(page, text)
    print(f"\n{text}\nWritten to {page}.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
