"""What one step of Textual Inversion costs, side by side: seconds and peak memory.

    python -m benchmarks.textual_inversion_step [--comfyui DIR] [--steps N] [--rounds N]
                                                [--against DIR] [--shared] [--quick]

On a Stable Diffusion 1.5 of full size with random weights, at 256 px, batch size 1 and in fp32, on
the CPU: this pack's Train Textual Inversion in a real ComfyUI, and a bare loop of diffusers that
trains the whole embedding table and puts the vocabulary's rows back (bare_inversion.py). With
`--against DIR`, another checkout's Train Textual Inversion too.

Where the difference comes from: no gradient, moments and copy of the vocabulary's 49408 x 768
numbers, and no update of them; convolutions on small maps as matrix products
(trainers/models/convolution.py); weights that are the host's own, not a copy.

On a CPU, ComfyUI holds the UNet in fp32 unless it is started with --fp16-unet. Then training
computes in fp32 on the weights as they are (trainers/models/recast.py): the same numbers as of
an fp32 copy, half the memory, a little slower. Both ways are measured.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from functools import partial
from pathlib import Path

from benchmarks.running import (
    BEFORE,
    CHECKPOINT,
    MODELS,
    Bench,
    Contender,
    Limit,
    Rows,
    Sample,
    as_good_as,
    bench_of,
    checked,
    conclude,
    in_host,
    in_process,
    measure,
    parser_of,
)
from tests import checkpoints
from tests.graphs import Graph
from tests.host import ROOT

VECTORS = 4
FASTER, SMALLER = 1.2, 0.8  # what is promised, against the bare loop
HALF = "--fp16-unet"  # what a host holds the UNet's weights in, beside fp32


def run_ours(bench: Bench, pack: Path = ROOT) -> Sample:
    graph = Graph()
    model, clip, vae = graph.load(CHECKPOINT)
    dataset = graph.dataset(bench.picture.parent.name, resolution=bench.size_px)
    settings = {"steps": bench.steps, "vectors": VECTORS, "learning_rate": 1e-3}
    trainer = graph.invert(model, clip, vae, dataset, **settings)[0][0]
    return in_host(bench, graph, trainer, pack)


def run_half(bench: Bench, pack: Path = ROOT) -> Sample:
    checkpoint = checkpoints.cached(bench.model, bench.checkpoint.parent, "fp16")
    return run_ours(dataclasses.replace(bench, checkpoint=checkpoint, host_arguments=(HALF,)), pack)


def run_bare(bench: Bench) -> Sample:
    return in_process("benchmarks.bare_inversion", bench, "--vectors", VECTORS)


# The place of a precision is taken by what the host holds the weights in.
OURS = {"fp32": run_ours, HALF: run_half}


def contenders_of(other: Path | None) -> list[Contender]:
    chosen = []
    for held_in, run in OURS.items():
        chosen.append(Contender("ours", held_in, "Train Textual Inversion", run))
        if other is not None:
            chosen.append(Contender(BEFORE, held_in, BEFORE, partial(run, pack=other)))
    return [*chosen, Contender("bare", "fp32", "bare loop", run_bare)]


def table(rows: Rows) -> str:
    lines = ["                                      s/step  peak GB"]
    lines += [
        f"{row.title:24}{row.precision:12} {row.seconds:8.2f}"
        + ("" if math.isnan(row.peak_gb) else f" {row.peak_gb:8.1f}")
        for row in rows.values()
    ]
    return "\n".join(lines)


def limits(rows: Rows) -> list[Limit]:
    found = []
    bare = rows["bare", "fp32"]
    for held_in in OURS:
        ours = rows["ours", held_in]
        faster, smaller = bare.seconds / ours.seconds, ours.peak_gb / bare.peak_gb
        found += [
            Limit(f"time, bare loop / Textual Inversion, {held_in}", faster, False, FASTER),
            Limit(f"peak memory, Textual Inversion / bare, {held_in}", smaller, True, SMALLER),
        ]
        if before := rows.get((BEFORE, held_in)):
            found += as_good_as(f"this tree / before, {held_in}", ours, before)
    return found


def main() -> int:
    asked = checked(parser_of(__doc__))
    with bench_of(asked, MODELS["sd15"]) as bench:
        rows = measure(bench, contenders_of(asked.against))
    print(f"\n{table(rows)}")
    return conclude(limits(rows), asked.quick)


if __name__ == "__main__":
    sys.exit(main())
