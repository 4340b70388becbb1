"""What one step of LoRA training costs, side by side: seconds and peak memory.

    python -m benchmarks.lora_step [--model sdxl] [--comfyui DIR] [--steps N] [--rounds N]
                                   [--only KIND ...] [--variants VARIANT ...] [--against DIR]
                                   [--diffusers DIR] [--kohya DIR] [--shared] [--quick]

On a Stable Diffusion 1.5 of full size with random weights, at 256 px and batch size 1, on the CPU:
this pack's Train LoRA in a real ComfyUI; ComfyUI's own TrainLoraNode; a bare loop of diffusers and
peft (bare_loop.py); and the time that the step's floating-point operations take at the rate of a
large matmul. With `--model sdxl` the same on a full-size SDXL at 512 px in bf16, without ComfyUI's
own node. With `--against DIR` another checkout's Train LoRA is one more contender, with
`--variants` its other kinds of adapters are, and on SD1.5 in fp32 others' training scripts, where
a checkout of them is given (gpu_scripts.py).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dev
from benchmarks.gpu_cases import DIFFUSERS, SCRIPTS, Case
from benchmarks.gpu_scripts import diffusers_model, watched
from benchmarks.running import (
    BEFORE,
    CHECKPOINT,
    MODELS,
    WARM_UP_STEPS,
    Bench,
    Contender,
    Limit,
    Row,
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
from tests.graphs import Graph, Link
from tests.host import ROOT
from trainers.settings.methods.lora import LORA_VARIANTS

RANK = 16
OWN_NODE_STEPS = 5  # ComfyUI's node takes four times as long a step, or more
OWN_NODE = "comfyui"
KINDS = ("ours", "bare", OWN_NODE)


class Promise(NamedTuple):
    """The most that Train LoRA may take, as parts of what the bare loop takes.

    Attributes:
        memory: None where nothing is promised.
    """

    time: float
    memory: float | None


PROMISES = {"sd15": Promise(1.10, None), "sdxl": Promise(1.05, 1.05)}


# -- contenders ---------------------------------------------------------------


def run_ours(
    bench: Bench, precision: str, pack: Path = ROOT, variant: str = LORA_VARIANTS[0]
) -> Sample:
    graph = Graph()
    model, clip, vae = graph.load(CHECKPOINT)
    dataset = graph.dataset(bench.picture.parent.name, resolution=bench.size_px)
    settings: dict[str, Any] = {"steps": bench.steps, "rank": RANK, "alpha": float(RANK)}
    settings |= {"precision": precision, "variant": variant}
    trainer = graph.train(model, clip, vae, dataset, **settings)[0][0]
    return in_host(bench, graph, trainer, pack)


def run_comfyui(bench: Bench, precision: str) -> Sample:
    graph = Graph()
    base = graph.load(CHECKPOINT)
    steps = min(bench.steps, OWN_NODE_STEPS)
    return in_host(bench, graph, own_node(graph, base, bench.picture, precision, steps), pack=None)


def own_node(graph: Graph, base: list[Link], picture: Path, precision: str, steps: int) -> str:
    """ComfyUI's own node as it comes, gradient checkpointing included; rank and dtype are ours.

    Returns:
        The node's id.
    """
    model, clip, vae = base
    name = f"{picture.parent.name}/{picture.name}"
    pixels = graph.add("LoadImage", image=name)[0]
    latents = graph.add("VAEEncode", pixels=pixels, vae=vae)[0]
    positive = graph.add("CLIPTextEncode", clip=clip, text="a photo of sks dog")[0]
    lora = graph.add(
        "TrainLoraNode", model=model, latents=latents, positive=positive, batch_size=1,
        grad_accumulation_steps=1, steps=steps, learning_rate=1e-4,
        rank=RANK, optimizer="AdamW", loss_function="MSE", seed=0, training_dtype=precision,
        lora_dtype=precision, quantized_backward=False, algorithm="LoRA",
        gradient_checkpointing=True, checkpoint_depth=1, offloading=False,
        existing_lora="[None]", bucket_mode=False, bypass_mode=False,
    )[0]  # fmt: skip
    graph.add("SaveLoRA", lora=lora, prefix="loras/benchmark")
    node_id: str = lora[0]
    return node_id


def run_bare(bench: Bench, precision: str) -> Sample:
    return in_process("benchmarks.bare_loop", bench, "--precision", precision, "--rank", RANK)


def run_script(bench: Bench, kind: str, checkout: Path) -> Sample:
    """Somebody else's script, in fp32."""
    case = Case("", "sd15", kind, bench.size_px, "fp32")
    model = bench.checkpoint
    if kind == DIFFUSERS:
        model = diffusers_model(bench.model, dev.DEV / "checkpoints", bench.comfyui)
    found = watched(
        case, checkout, model, bench.picture, bench.comfyui, on_cpu=True,
        steps=bench.steps, size_px=bench.size_px, rank=RANK,
    )  # fmt: skip
    seconds = found["cpu_seconds" if bench.shared else "seconds"][WARM_UP_STEPS - 1 :]
    return Sample(seconds, [found["peak_bytes"]])


CONTENDERS = [
    Contender("ours", "fp32", "Train LoRA", partial(run_ours, precision="fp32")),
    Contender("bare", "fp32", "bare loop", partial(run_bare, precision="fp32")),
    Contender("ours", "bf16", "Train LoRA", partial(run_ours, precision="bf16")),
    Contender("bare", "bf16", "bare loop", partial(run_bare, precision="bf16")),
    Contender(OWN_NODE, "fp32", "ComfyUI's own node", partial(run_comfyui, precision="fp32")),
]


def scripts_of(checkouts: Mapping[str, Path | None]) -> list[Contender]:
    """Others' scripts, by whose, of those whose checkout is known."""
    return [
        Contender(
            kind,
            "fp32",
            f"{kind}'s script",
            partial(run_script, kind=kind, checkout=path.resolve()),
        )
        for kind, path in checkouts.items()
        if path is not None
    ]


def contenders_of(
    kinds: Sequence[str], precisions: tuple[str, ...], other: Path | None, variants: list[str]
) -> list[Contender]:
    """Those that were asked for; ours are followed by their variants, and another checkout's."""
    chosen = []
    for contender in CONTENDERS:
        if contender.kind not in kinds or contender.precision not in precisions:
            continue
        chosen.append(contender)
        for variant in variants if contender.kind == "ours" else ():
            run = partial(run_ours, precision=contender.precision, variant=variant)
            chosen.append(Contender(variant, contender.precision, f"Train LoRA, {variant}", run))
        if contender.kind == "ours" and other is not None:
            run = partial(run_ours, precision=contender.precision, pack=other)
            chosen.append(contender._replace(kind=BEFORE, title=BEFORE, run=run))
    return chosen


# -- report -------------------------------------------------------------------


def table(rows: Rows) -> str:
    lines = ["                            s/step   x bare  x ComfyUI  peak GB   x bare  x ComfyUI"]
    order = ("ours", *LORA_VARIANTS, BEFORE, OWN_NODE, *SCRIPTS, "bare", "arithmetic")
    for (_, precision), row in sorted(
        rows.items(), key=lambda entry: (entry[0][1] != "fp32", order.index(entry[0][0]))
    ):
        others = [rows.get(("bare", precision)), rows.get((OWN_NODE, "fp32"))]
        cells = [_ratio(row.seconds, other and other.seconds) for other in others]
        line = f"{row.title:19}{precision:6} {row.seconds:8.2f} {cells[0]:>8} {cells[1]:>10}"
        if not math.isnan(row.peak_gb):
            cells = [_ratio(row.peak_gb, other and other.peak_gb) for other in others]
            line += f" {row.peak_gb:8.1f} {cells[0]:>8} {cells[1]:>10}"
        lines.append(line)
    return "\n".join(lines)


def _ratio(value: float, other: float | None) -> str:
    return "-" if other is None else f"{value / other:.2f}"


def limits(rows: Rows, promise: Promise) -> list[Limit]:
    """Those that the rows at hand can tell."""
    found = []
    for (kind, precision), ours in rows.items():
        if kind != "ours":
            continue
        if bare := rows.get(("bare", precision)):
            what = f"Train LoRA / bare loop, {precision}"
            found.append(Limit(f"time, {what}", ours.seconds / bare.seconds, True, promise.time))
            if promise.memory is not None:
                ratio = ours.peak_gb / bare.peak_gb
                found.append(Limit(f"peak memory, {what}", ratio, True, promise.memory))
        if before := rows.get((BEFORE, precision)):
            found += as_good_as(f"this tree / before, {precision}", ours, before)
    if ours := rows.get(("ours", "fp32")):
        found += fp32_limits(ours, rows)
    return found


def fp32_limits(ours: Row, rows: Rows) -> list[Limit]:
    found = []
    if own := rows.get((OWN_NODE, "fp32")):
        ratio = own.seconds / ours.seconds
        found.append(Limit("time, ComfyUI's own node / Train LoRA, fp32", ratio, False, 4.0))
        ratio = ours.peak_gb / own.peak_gb
        found.append(Limit("peak memory, Train LoRA / ComfyUI's own node, fp32", ratio, True, 0.6))
    if half := rows.get(("ours", "bf16")):
        ratio = ours.seconds / half.seconds
        found.append(Limit("time, Train LoRA fp32 / bf16", ratio, False, 2.0))
    return found


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="leave others out")
    parser.add_argument("--variants", nargs="+", choices=LORA_VARIANTS[1:], default=())
    parser.add_argument("--model", choices=MODELS, default="sd15")
    for kind in SCRIPTS:
        parser.add_argument(f"--{kind}", type=Path, metavar="DIR", help="a checkout of its scripts")
    asked = checked(parser)
    scripts = scripts_of({kind: getattr(asked, kind) for kind in SCRIPTS})
    if scripts and (asked.quick or asked.model != "sd15"):
        parser.error("others' scripts train SD1.5 in its full size alone")
    model = MODELS[asked.model]
    with bench_of(asked, model) as bench:
        ours = contenders_of(asked.only, model.precisions, asked.against, asked.variants)
        rows = measure(bench, [*ours, *scripts])
    print(f"\n{table(rows)}")
    return conclude(limits(rows, PROMISES[asked.model]), asked.quick)


if __name__ == "__main__":
    sys.exit(main())
