"""What one step of Textual Inversion costs, side by side: seconds and peak memory.

    python -m benchmarks.textual_inversion_step [--comfyui DIR] [--steps N] [--rounds N]
                                                [--shared] [--quick]

On a Stable Diffusion 1.5 of full size with random weights, at 256 px, batch size 1 and in fp32, on
the CPU: this pack's Train Textual Inversion in a real ComfyUI, and a bare loop of diffusers that
trains the whole embedding table and puts the vocabulary's rows back (bare_inversion.py). Every run
is a process of its own, and rounds go through both in turn. Medians over all steps after the
warm-up.

Where the difference comes from: no gradient, moments and copy of the vocabulary's 49408 x 768
numbers, and no update of them; convolutions on small maps as matrix products
(trainers/families/convolution.py); weights that are the host's own, not a copy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import dev
from benchmarks.lora_step import (
    CHECKPOINT,
    WARM_UP_STEPS,
    Bench,
    Limit,
    Sample,
    in_host,
    verdict,
    write_picture,
)
from tests import checkpoints
from tests.graphs import Graph
from tests.host import ROOT

VECTORS = 4
FASTER, SMALLER = 1.2, 0.8  # what is promised, against the bare loop


def run_ours(bench: Bench) -> Sample:
    graph = Graph()
    model, clip, vae = graph.load(CHECKPOINT)
    dataset = graph.dataset(bench.picture.parent.name, resolution=bench.size_px)
    settings = {"steps": bench.steps, "vectors": VECTORS, "learning_rate": 1e-3}
    trainer = graph.invert(model, clip, vae, dataset, **settings)[0][0]
    return in_host(bench, graph, trainer, pack=ROOT)


def run_bare(bench: Bench) -> Sample:
    command = [sys.executable, "-m", "benchmarks.bare_inversion", "--steps", str(bench.steps)]
    command += ["--vectors", str(VECTORS), "--size-px", str(bench.size_px)]
    command += ["--thin"] * bench.thin + ["--cpu-time"] * bench.shared
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"The bare loop failed:\n{done.stderr}")
    measured = json.loads(done.stdout.splitlines()[-1])
    return Sample(measured["seconds"][WARM_UP_STEPS:], [measured["peak_bytes"]])


RUNS = {"Train Textual Inversion": run_ours, "bare loop": run_bare}


def measure(bench: Bench, rounds: int) -> dict[str, Sample]:
    samples = {title: Sample() for title in RUNS}
    for number in range(rounds):
        for title, run in RUNS.items():
            sample = run(bench)
            samples[title].add(sample)
            seconds = " ".join(f"{value:.2f}" for value in sample.seconds)
            print(f"  round {number + 1}  {title:25} {seconds} s/step", flush=True)
    return samples


def report(samples: dict[str, Sample]) -> list[Limit]:
    """Print the table; return what is promised."""
    figures = {
        title: (statistics.median(sample.seconds), max(sample.peaks_bytes) / 1e9)
        for title, sample in samples.items()
    }
    print("\n                           s/step  peak GB")
    for title, (seconds, peak_gb) in figures.items():
        print(f"{title:25} {seconds:8.2f} {peak_gb:8.1f}")
    (ours, our_gb), (bare, bare_gb) = figures.values()
    return [
        Limit("time, bare loop / Train Textual Inversion", bare / ours, False, FASTER),
        Limit("peak memory, Train Textual Inversion / bare loop", our_gb / bare_gb, True, SMALLER),
    ]


def arguments() -> argparse.Namespace:
    checkout = os.environ.get("PERSONALIZE_COMFYUI") or os.environ.get("COMFYUI_PATH")
    fetched = dev.DEV / f"ComfyUI-{dev.NEWEST}"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--comfyui", type=Path, default=Path(checkout or fetched))
    parser.add_argument("--steps", type=int, default=10, help="a run; 2 of them are warm-up")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each")
    parser.add_argument(
        "--shared",
        action="store_true",
        help="for a machine that others use too: one thread, and its CPU time, not the clock's",
    )
    parser.add_argument("--quick", action="store_true", help="a thin model, to see that it works")
    asked = parser.parse_args()
    if not (asked.comfyui / "main.py").is_file():
        parser.error(f"{asked.comfyui} is no ComfyUI; `python dev.py test` fetches one")
    if asked.steps < WARM_UP_STEPS + 2:
        parser.error(f"--steps {asked.steps}; at least {WARM_UP_STEPS + 2}")
    return asked


def main() -> int:
    asked = arguments()
    name, size_px = ("thin_sd15", 64) if asked.quick else ("full_sd15", 256)
    steps, rounds = (5, 1) if asked.quick else (asked.steps, asked.rounds)
    print(f"{name}, {size_px} px, batch size 1, {VECTORS} vectors, {steps} steps, {rounds} rounds")
    if asked.shared:
        os.environ["OMP_NUM_THREADS"] = "1"  # both inherit it
    checkpoint = checkpoints.cached(name, dev.DEV / "checkpoints")
    with tempfile.TemporaryDirectory() as scratch:
        picture = write_picture(Path(scratch) / "benchmark", size_px)
        bench = Bench(asked.comfyui, checkpoint, picture, asked.quick, size_px, steps, asked.shared)
        found = report(measure(bench, rounds))
    print("\n" + "\n".join(map(verdict, found)))
    if asked.quick:
        print("The thin model only shows that this works; its figures say nothing.")
        return 0
    return 0 if all(limit.kept for limit in found) else 1


if __name__ == "__main__":
    sys.exit(main())
