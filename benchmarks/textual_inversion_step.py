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

On a CPU, ComfyUI holds the UNet in fp32 unless it is started with --fp16-unet. Then training
computes in fp32 on the weights as they are (trainers/families/widening.py): the same numbers as of
an fp32 copy, half the memory, a little slower. Both ways are measured.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys

from benchmarks.lora_step import (
    CHECKPOINT,
    WARM_UP_STEPS,
    Bench,
    Limit,
    Sample,
    bench_of,
    checked,
    conclude,
    in_host,
    parser_of,
)
from tests import checkpoints
from tests.graphs import Graph
from tests.host import ROOT

VECTORS = 4
FASTER, SMALLER = 1.2, 0.8  # what is promised, against the bare loop


def run_ours(bench: Bench, *host_arguments: str) -> Sample:
    graph = Graph()
    model, clip, vae = graph.load(CHECKPOINT)
    dataset = graph.dataset(bench.picture.parent.name, resolution=bench.size_px)
    settings = {"steps": bench.steps, "vectors": VECTORS, "learning_rate": 1e-3}
    trainer = graph.invert(model, clip, vae, dataset, **settings)[0][0]
    return in_host(bench, graph, trainer, ROOT, *host_arguments)


def run_bare(bench: Bench) -> Sample:
    command = [sys.executable, "-m", "benchmarks.bare_inversion", "--steps", str(bench.steps)]
    command += ["--vectors", str(VECTORS), "--size-px", str(bench.size_px)]
    command += ["--thin"] * bench.thin + ["--cpu-time"] * bench.shared
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"The bare loop failed:\n{done.stderr}")
    measured = json.loads(done.stdout.splitlines()[-1])
    return Sample(measured["seconds"][WARM_UP_STEPS:], [measured["peak_bytes"]])


def run_half(bench: Bench) -> Sample:
    checkpoint = checkpoints.cached(bench.model, bench.checkpoint.parent, "fp16")
    return run_ours(dataclasses.replace(bench, checkpoint=checkpoint), "--fp16-unet")


RUNS = {
    "Train Textual Inversion": run_ours,
    "the same, --fp16-unet": run_half,
    "bare loop": run_bare,
}


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
    (ours, our_gb), (half, half_gb), (bare, bare_gb) = figures.values()
    return [
        Limit("time, bare loop / Train Textual Inversion", bare / ours, False, FASTER),
        Limit("peak memory, Train Textual Inversion / bare loop", our_gb / bare_gb, True, SMALLER),
        Limit("time, bare loop / --fp16-unet", bare / half, False, FASTER),
        Limit("peak memory, --fp16-unet / bare loop", half_gb / bare_gb, True, SMALLER),
    ]


def main() -> int:
    asked = checked(parser_of(__doc__))
    with bench_of(asked) as (bench, rounds):
        found = report(measure(bench, rounds))
    return conclude(found, asked.quick)


if __name__ == "__main__":
    sys.exit(main())
