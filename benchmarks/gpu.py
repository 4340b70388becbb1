"""What training costs on this machine's GPU; writes its rows into docs/performance.md.

    python -m benchmarks.gpu [--comfyui DIR] [--only WORD ...] [--steps N] [--report FILE]
    python -m benchmarks.gpu --cpu --quick      # thin models on the CPU, to see that it works
    python -m benchmarks.gpu --diffusers DIR --kohya DIR    # beside their scripts, in checkouts

Stable Diffusion 1.5, SDXL and Z-Image of full size with random weights, batch size 1 unless a row
says otherwise: this pack's nodes one after another in one ComfyUI as it comes; ComfyUI's own
TrainLoraNode in it; bare loops of diffusers and peft (bare_loop.py, bare_inversion.py), each in a
process of its own; training scripts of others (gpu_scripts.py). What is `deterministic` runs in a
second ComfyUI, whose cuBLAS is told so.

Seconds a step are the median after the warm-up, from the end of one to the end of the next; a step
ends with numbers that are asked of the device, so it has done all. Memory is torch's: the most that
tensors took while the training node ran, and the most that its allocator took from the device for
them (ComfyUI's is CUDA's own, the bare loop's is torch's: only tensors can be compared); a driver's
context and what ComfyUI streams beside torch are not in it. On a CPU it is what was resident.

The share of the card's rate is the floating-point operations of the bare loop's step
(FlopCounterMode, nothing computed twice), over the seconds of a step, as a part of what a large
matmul does in a second in the same precision. In fp32 torch convolves in TF32 but does not multiply
matrices in it, so the share is of a rate that convolutions may exceed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import dev
from benchmarks.gpu_cases import (
    BARE,
    CASES,
    DIFFUSERS,
    DREAMBOOTH,
    INVERSION,
    KOHYA,
    LORA,
    OWN_NODE,
    RECIPES,
    SCRIPTS,
    Case,
    chosen,
)
from benchmarks.gpu_page import Row, section, write
from benchmarks.gpu_scripts import LONGEST_SECONDS, diffusers_model, ended, failed, watched
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
from trainers.models.deterministic import WORKSPACE, WORKSPACES

PROBES = ROOT / "tests" / "probes"
PAGE = ROOT / "docs" / "performance.md"
THIN_PX = 64
REPEAT_STEPS = 60


class Bench:
    """The files to train on, a ComfyUI, and what was asked for.

    Attributes:
        checkouts: where others' scripts are, by kind.
    """

    def __init__(self, host: Host, folder: Path, asked: argparse.Namespace) -> None:
        self.host, self.steps, self.quick = host, asked.steps, asked.quick
        self.device = "cpu" if asked.cpu else "cuda"
        self.checkouts: dict[str, Path] = asked.checkouts
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
        """MODEL, CLIP and VAE; a file is half precision, as such models are spread."""
        if case.base in RECIPES:
            full, thin = RECIPES[case.base]
            return graph.made(thin if self.quick else full)
        name = f"{self.model(case)}.safetensors"
        if name not in self._offered:
            path = checkpoints.cached(self.model(case), dev.DEV / "checkpoints", "fp16")
            self._offered.add(self.host.add_model("checkpoints", path, name))
        return graph.load(name)

    def restart(self) -> None:
        """A host in which a case failed may be gone, still at work, or full."""
        self.host.kill()
        self.host.delete_large_files()
        self.host.start()


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
    on_cpu = bench.device == "cpu"

    def see(event: Event) -> None:
        if event.data.get("node") != trainer:
            return
        if event.kind == "executing":
            host.get("/probes/steps")  # counts from here on
            if on_cpu:
                host.reset_peak()
        elif event.kind == "progress" and event.data["max"] == bench.steps:  # not a preview's
            if not ticks or event.data["value"] > ticks[-1][0]:
                ticks.append((event.data["value"], time.perf_counter()))

    host.follow(graph, see, timeout=LONGEST_SECONDS)
    found = host.get("/probes/steps")
    host.free()
    host.delete_large_files()
    peak = host.peak_rss_bytes() if on_cpu else found["peak"]
    # ComfyUI's own node is none of ours, whose steps are seen; it tells of each.
    seconds = step_seconds(list(enumerate(found["ends"], 1)) or ticks)
    if not seconds:
        raise HostError("too few steps were seen", kind="no steps")
    median = statistics.median(seconds)
    return Row(case, bench.size_px(case), median, peak, found["reserved"], found["held"])


def bare(bench: Bench, case: Case) -> Row:
    command = [sys.executable, "-m"]
    if case.method == INVERSION:
        command += ["benchmarks.bare_inversion"]
    else:
        command += ["benchmarks.bare_loop", "--train", case.method]
    command += ["--model", bench.model(case), "--steps", str(bench.steps)]
    command += ["--size-px", str(bench.size_px(case)), "--precision", case.precision]
    command += ["--device", bench.device]
    done = ended(command, ROOT)
    if done.returncode:
        raise failed(done)
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = statistics.median(found["seconds"][WARM_UP_STEPS:])
    operations, rate = found["operations"], found["operations_per_second"]
    peak = found["peak_bytes"]
    return Row(case, bench.size_px(case), seconds, peak, operations=operations, rate=rate)


def script(bench: Bench, case: Case) -> Row:
    """Somebody else's script."""
    size_px, name, store = bench.size_px(case), bench.model(case), dev.DEV / "checkpoints"
    if case.kind == DIFFUSERS:
        model = diffusers_model(name, store, bench.host.comfyui)
    else:
        model = checkpoints.cached(name, store, "fp16")
    found = watched(
        case, bench.checkouts[case.kind], model, bench.picture(size_px), bench.host.comfyui,
        bench.device == "cpu", steps=bench.steps, size_px=size_px, rank=RANK,
    )  # fmt: skip
    median = statistics.median(found["seconds"][WARM_UP_STEPS - 1 :])
    return Row(case, size_px, median, found["peak_bytes"])


def measure(bench: Bench, cases: Sequence[Case], rows: list[Row], notes: list[str]) -> bool:
    """Adds the rows of all that ran, and a sentence for each that did not; whether all did."""
    succeeded = True
    ways = {BARE: bare} | dict.fromkeys(SCRIPTS, script)
    for case in cases:
        name = f"{case.base} {case.title} {bench.size_px(case)} px {case.precision}"
        began = time.perf_counter()
        try:
            row = ways.get(case.kind, in_host)(bench, case)
        except (HostError, OSError) as error:  # of a host that is gone
            succeeded = False
            notes.append(failure(name, error))
            if case.kind not in ways:
                bench.restart()
            continue
        rows.append(row)
        print(
            f"  {name:64}{row.seconds:8.4f} s/step{row.peak / 1e9:7.2f} GB"
            f"{row.held / 1e9:7.2f} after, {time.perf_counter() - began:4.0f} s in all",
            flush=True,
        )
    return succeeded


def failure(name: str, error: HostError | OSError) -> str:
    told = error.summary if isinstance(error, HostError) else str(error)
    print(f"  FAILED {name}\n{error!s:.3000}", flush=True)
    return f"Failed: {name}: {' '.join(told.split()):.300}"


def repeat(bench: Bench, deterministic: bool, notes: list[str]) -> bool:
    """Adds what `repeatability` finds, or why it found nothing; whether it did."""
    try:
        notes += repeatability(bench, deterministic)
    except (HostError, OSError) as error:
        notes.append(failure("training one LoRA thrice", error))
        return False
    return True


def repeatability(bench: Bench, deterministic: bool) -> list[str]:
    """How far a LoRA is from itself when it is trained again, and when it was cancelled midway."""
    first = trained_lora(bench, "first", deterministic)
    found = []
    kind = "A deterministic LoRA" if deterministic else "A LoRA"
    for what, name, cancelled in (
        ("trained again", "again", False),
        (f"cancelled midway of {REPEAT_STEPS} steps and gone on", "resumed", True),
    ):
        other = trained_lora(bench, name, deterministic, cancelled)
        away = max(float((first[k] - other[k]).norm() / first[k].norm()) for k in first)
        same = sum(torch.equal(first[k], other[k]) for k in first)
        found.append(
            f"{kind} of SD1.5 that was {what}: {same} of {len(first)} tensors are equal to the "
            f"bit, the largest relative difference is {away:.1e}."
        )
    return found


def trained_lora(
    bench: Bench, name: str, deterministic: bool, cancelled: bool = False
) -> dict[str, torch.Tensor]:
    """The tensors of one and the same LoRA; `cancelled` midway, and gone on with."""
    host = bench.host

    def graph_of(if_run_exists: str) -> tuple[Graph, str]:
        graph = Graph()
        sockets = trainer_of(
            bench, Case("LoRA", "sd15", LORA, 512), graph,
            steps=REPEAT_STEPS, seed=100, state_every=1, if_run_exists=if_run_exists,
            deterministic=deterministic,
        )  # fmt: skip
        lora, prefix = sockets[2], f"loras/{name}"
        graph.add("PersonalizeSaveLora", lora=lora, filename_prefix=prefix, format="kohya fp32")
        return graph, sockets[0][0]

    graph, trainer = graph_of("start anew")
    try:
        host.follow(
            graph,
            lambda event: stop_midway(host, event, trainer, cancelled),
            timeout=LONGEST_SECONDS,
        )
        if cancelled:
            raise HostError("it was done before Cancel came", kind="no cancel")
    except HostError as error:
        if error.kind != "interrupted":
            raise
        host.run(graph_of("use it")[0], timeout=LONGEST_SECONDS)
    (path,) = (host.base / "output/loras").glob(f"{name}_*.safetensors")
    host.free()
    return load_file(path)


def stop_midway(host: Host, event: Event, trainer: str, wanted: bool) -> None:
    at_trainer = event.kind == "progress" and event.data.get("node") == trainer
    if wanted and at_trainer and event.data["value"] >= REPEAT_STEPS // 2:
        host.interrupt()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_comfyui(parser)
    parser.add_argument("--steps", type=int, default=24, help=f"a row; {WARM_UP_STEPS} warm it up")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="cases that it names, in turn")
    parser.add_argument("--report", type=Path, help="where rows are written; the page on speed")
    parser.add_argument("--cpu", action="store_true", help="without a GPU")
    parser.add_argument("--quick", action="store_true", help="thin models, to see that it works")
    parser.add_argument("--host", default="", help="more for ComfyUI, as in --host='--fp16-unet'")
    parser.add_argument("--without-repeats", action="store_true", help="do not train one thrice")
    parser.add_argument("--diffusers", type=Path, metavar="DIR", help="a checkout of diffusers")
    parser.add_argument("--kohya", type=Path, metavar="DIR", help="a checkout of sd-scripts")
    asked = checked(parser)
    if not asked.cpu and not torch.cuda.is_available():
        parser.error("this machine has no GPU that torch can use; --cpu --quick tries it without")
    if asked.quick:
        asked.steps = 8
    if asked.steps < WARM_UP_STEPS + 2:
        parser.error(f"--steps {asked.steps}; at least {WARM_UP_STEPS + 2}")
    given = {DIFFUSERS: asked.diffusers, KOHYA: asked.kohya}
    asked.checkouts = {kind: path.resolve() for kind, path in given.items() if path is not None}
    return asked


@contextmanager
def bench_of(asked: argparse.Namespace, deterministic: bool) -> Iterator[Bench]:
    """A host of its own for what is deterministic, whose cuBLAS must know before it begins."""
    given = [*(["--cpu"] if asked.cpu else []), *asked.host.split()]
    told = {WORKSPACE: WORKSPACES[0]} if deterministic else {}
    with (
        tempfile.TemporaryDirectory() as scratch,
        Host(asked.comfyui, more_packs={"probes": PROBES}, args=given, environment=told) as host,
    ):
        yield Bench(host, Path(scratch), asked)


def main() -> int:
    asked = arguments()
    possible = [
        case
        for case in chosen(asked.only or [""], asked.quick, asked.cpu)
        if case.kind not in SCRIPTS or case.kind in asked.checkouts
    ]
    if not possible:
        sys.exit("no such case; others' scripts need a checkout, and kohya's no --quick")
    page = asked.report or (dev.DEV / "gpu-quick.md" if asked.quick else PAGE)
    stats: dict[str, Any] = {}
    rows: list[Row] = []
    notes: list[str] = []
    succeeded = True
    try:
        for deterministic in (False, True):
            cases = [c for c in possible if c.is_deterministic == deterministic]
            if not cases and asked.without_repeats:
                continue
            with bench_of(asked, deterministic) as bench:
                stats = stats or bench.host.get("/system_stats")
                succeeded &= measure(bench, cases, rows, notes)
                if not asked.without_repeats:
                    succeeded &= repeat(bench, deterministic, notes)
    finally:  # what was measured is not lost with what came after
        if rows or notes:
            rows.sort(key=lambda row: CASES.index(row.case))
            text = section(stats, rows, notes, asked.steps)
            write(page, text)
            print(f"\n{text}\nWritten to {page}.")
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
