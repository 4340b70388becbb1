"""What a second process gives, and what it costs: one run on one process and on two.

    python -m benchmarks.scaling [--model sd15] [--only METHOD ...] [--rounds N] [--quick]
    python -m benchmarks.scaling --paper

The headless command, on the CPU with one thread a process, in three ways: one process with batches
of B pictures, one with 2 B, and two with B each. The third makes the same update as the second, so
the second beside the third is the speed-up at equal global batch; the first beside the third, at
equal batches for each process, is what is left of a step's speed. Bytes are counted where they are
exchanged, see counted.py. Cores that others use make seconds long, so it is the shortest step that
counts, of all rounds; bytes do not depend on the machine. --paper tells what they mean on links
that are not here.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

import dev
from benchmarks.running import CHECKPOINT, MODELS, WARM_UP_STEPS, add_comfyui, checked
from tests import checkpoints
from tests.host import ROOT

SECONDS = 3600  # for all trainings of one start
ALONE = {"train_text_encoder": False}  # the denoiser
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", ALONE),
    "dreambooth": ("dreambooth", ALONE),
    "fused": (
        "dreambooth",
        {"fused_backward": True, "weights": "bf16", "optimizer": "adafactor"} | ALONE,
    ),
    "inversion": ("textual_inversion", {"token": "<sks>", "initializer": "dog", "vectors": 4}),
}
TITLES = {
    "lora": "LoRA, rank 16",
    "dreambooth": "DreamBooth",
    "fused": "DreamBooth, bf16 weights, fused, adafactor",
    "inversion": "Textual Inversion, 4 vectors",
}
RATIOS = (
    "speed-up, equal global batch",
    "efficiency, equal global batch",
    "efficiency, equal batch a process",
)


class Way(NamedTuple):
    """How many processes train, with how many pictures in a batch of each."""

    processes: int
    batch_size: int


class Figures(NamedTuple):
    """Of one training in one way, over all rounds and processes.

    Attributes:
        seconds: of the shortest step; all processes wait for each other.
        cpu_seconds: of the shortest step, of one process.
        exchanged_bytes, calls: given to collectives in a step, by one process.
    """

    trained_bytes: int
    seconds: float
    cpu_seconds: float
    exchanged_bytes: int
    calls: int


# -- measuring ----------------------------------------------------------------


def prepare(folder: Path, checkpoint: Path, size_px: int, pictures: int) -> None:
    """What a ComfyUI's folders hold: the base model, and pictures of one shape."""
    for name in ("models/checkpoints", "input/benchmark"):
        (folder / name).mkdir(parents=True)
    (folder / "models/checkpoints" / CHECKPOINT).symlink_to(checkpoint)
    for number in range(pictures):
        noise = Image.effect_noise((size_px, size_px), 64 + number).convert("RGB")
        noise.save(folder / "input/benchmark" / f"{number}.png")


def recipe(method: str, batch_size: int, steps: int, size_px: int) -> dict[str, Any]:
    """A run.json by hand."""
    name, settings = METHODS[method]
    caption = "a photo of <sks>" if name == "textual_inversion" else "a photo of sks dog"
    return {
        "method": name,
        "base": {"checkpoint": CHECKPOINT},
        "dataset": {"folder": "benchmark", "prompt": caption, "resolution": size_px},
        "steps": steps,
        "batch_size": batch_size,
        "precision": "fp32",
        "keep_states": 0,
        **settings,
    }


def trained(
    folder: Path, comfyui: Path, num_processes: int, recipes: Sequence[Mapping[str, Any]]
) -> list[list[dict[str, Any]]]:
    """What each process counted of each training; see counted.py."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        files = [Path(output, f"{number}.json") for number in range(len(recipes))]
        for file, content in zip(files, recipes, strict=True):
            file.write_text(json.dumps(content))
        counted = Path(output, "counted")
        command = [sys.executable, "-m"]
        if num_processes > 1:
            command += ["torch.distributed.run", "--standalone"]
            command += [f"--nproc-per-node={num_processes}", "-m"]
        command += ["benchmarks.counted", counted, *files, "--comfyui", comfyui, "--", "--cpu"]
        command += ["--base-directory", folder, "--output-directory", output]
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False,
            timeout=SECONDS, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"The training failed:\n{done.stdout}\n{done.stderr}")
        told = [Path(f"{counted}.{rank}").read_text() for rank in range(num_processes)]
    rows = [[json.loads(line) for line in text.splitlines()] for text in told]
    return [list(of_all) for of_all in zip(*rows, strict=True)]


def figures(rows: Sequence[Mapping[str, Any]]) -> Figures:
    """Of one training, from what each process counted in each round."""

    def shortest(name: str) -> float:
        return min(min(row[name][WARM_UP_STEPS:]) for row in rows)

    def usual(name: str) -> int:
        return int(statistics.median([n for row in rows for n in row[name][WARM_UP_STEPS:]]))

    return Figures(
        rows[0]["trained_bytes"], shortest("seconds"), shortest("cpu_seconds"), usual("bytes"),
        usual("calls"),
    )  # fmt: skip


def measure(asked: argparse.Namespace) -> dict[str, dict[Way, Figures]]:
    """All trainings in all ways, in rounds."""
    model, (steps, rounds) = MODELS[asked.model or "sd15"], (asked.steps, asked.rounds)
    name = model.checkpoint if asked.model else model.thin
    if asked.quick:
        name, steps, rounds = model.thin, WARM_UP_STEPS + 2, 1
    one, two = asked.batch_size, 2 * asked.batch_size
    print(f"{name}, {asked.size_px} px, fp32, {steps} steps, {rounds} round(s)", flush=True)
    checkpoint = checkpoints.cached(name, dev.DEV / "checkpoints", model.stored_in)
    found: dict[tuple[str, Way], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, checkpoint.resolve(), asked.size_px, two)
        for number in range(rounds):
            for processes, sizes in ((1, (one, two)), (2, (one,))):
                asked_for = [(m, Way(processes, size)) for m in asked.only for size in sizes]
                recipes = [recipe(m, way[1], steps, asked.size_px) for m, way in asked_for]
                rows = trained(folder, asked.comfyui, processes, recipes)
                for key, counted in zip(asked_for, rows, strict=True):
                    found.setdefault(key, []).extend(counted)
                print(f"  round {number + 1}, {processes} process(es): done", flush=True)
    return {
        method: {way: figures(rows) for (kind, way), rows in found.items() if kind == method}
        for method in asked.only
    }


def show(found: Mapping[str, Mapping[Way, Figures]], batch_size: int) -> None:
    """The tables, as docs/performance.md has them."""
    ways = [Way(1, batch_size), Way(1, 2 * batch_size), Way(2, batch_size)]
    print("\n| training | trained, MB | exchanged a step, MB | x trained | calls a step |")
    print("|---|---|---|---|---|")
    for method, by_way in found.items():
        two = by_way[ways[2]]
        share = two.exchanged_bytes / two.trained_bytes
        print(
            f"| {TITLES[method]} | {two.trained_bytes / 1e6:.3f} | {two.exchanged_bytes / 1e6:.3f} "
            f"| {share:.3f} | {two.calls} |"
        )
    for what, seconds in (("s/step", "seconds"), ("CPU s/step of a process", "cpu_seconds")):
        titles = (f"{way.processes} x {way.batch_size}" for way in ways)
        print(f"\n| {what} | {' | '.join(titles)} | {' | '.join(RATIOS)} |")
        print("|---|" + "---|" * (len(ways) + len(RATIOS)))
        for method, by_way in found.items():
            alone, whole, shared = (getattr(by_way[way], seconds) for way in ways)
            print(
                f"| {TITLES[method]} | {alone:.3f} | {whole:.3f} | {shared:.3f} "
                f"| {whole / shared:.2f} | {whole / shared / 2:.2f} | {alone / shared:.2f} |"
            )


# -- on paper -----------------------------------------------------------------

NUM_PROCESSES = 8
LINKS = {  # bytes a second that one process sends while it receives as many; see performance.md
    "NVLink, H100": 450e9,
    "PCIe 5.0 x16": 63e9,
    "PCIe 4.0 x16": 31.5e9,
    "100 Gbit/s": 12.5e9,
    "10 Gbit/s": 1.25e9,
}


class Exchange(NamedTuple):
    """What a training of full size exchanges in a step.

    Attributes:
        numbers: that are trained; see performance.md.
        bytes_each: of a gradient.
        step_seconds: measured on one H200; NaN where nothing was.
    """

    title: str
    numbers: float
    bytes_each: int
    step_seconds: float = math.nan


EXCHANGES = (
    Exchange("SD1.5 LoRA, rank 16, fp32", 3.19e6, 4, 0.125),
    Exchange("SDXL LoRA, rank 16, fp32", 23.2e6, 4, 0.465),
    Exchange("Z-Image LoRA, rank 16, fp32", 12.5e6, 4),
    Exchange("SD1.5 DreamBooth, fp32", 859.5e6, 4, 0.149),
    Exchange("SDXL DreamBooth, bf16", 2567e6, 2, 1.76),
    Exchange("Z-Image DreamBooth, bf16", 6155e6, 2),
)


def ring_seconds(exchanged_bytes: float, processes: int, bytes_per_second: float) -> float:
    """A ring all-reduce: each process sends 2 (n - 1) / n of the bytes, and receives as many."""
    return 2 * (processes - 1) / processes * exchanged_bytes / bytes_per_second


def on_paper() -> None:
    """Milliseconds of a step's exchange on links, and what is left of the speed of a step."""
    print(f"| ms a step, {NUM_PROCESSES} processes | MB | {' | '.join(LINKS)} |")
    print("|---|---|" + "---|" * len(LINKS))
    for one in EXCHANGES:
        size = one.numbers * one.bytes_each
        cells = []
        for link in LINKS.values():
            seconds = ring_seconds(size, NUM_PROCESSES, link)
            share = one.step_seconds / (one.step_seconds + seconds)
            kept = "" if math.isnan(share) else f" ({share:.0%})"
            ms = 1000 * seconds
            cells.append(f"{ms:.{0 if ms >= 10 else 2}f}{kept}")
        print(f"| {one.title} | {size / 1e6:.0f} | {' | '.join(cells)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_comfyui(parser)
    parser.add_argument("--model", choices=MODELS, help="in full size; without it a thin SD1.5")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch-size", type=int, default=1, help="of each process")
    parser.add_argument("--size-px", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12, help="a run; 2 of them are warm-up")
    parser.add_argument("--rounds", type=int, default=3, help="of all trainings")
    parser.add_argument("--quick", action="store_true", help="to see that it works")
    parser.add_argument("--paper", action="store_true", help="tell of links; train nothing")
    asked = checked(parser)
    if asked.paper:
        on_paper()
        return 0
    show(measure(asked), asked.batch_size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
