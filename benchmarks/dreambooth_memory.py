"""Peak memory of a full DreamBooth step of SD1.5's UNet, ours beside plain fp32 AdamW.

    python -m benchmarks.dreambooth_memory                # 256 px, batch size 1
    python -m benchmarks.dreambooth_memory --quick        # a thin model, to see that it works
    python -m benchmarks.dreambooth_memory --against DIR  # another checkout's beside each of ours

Each contender runs in a process of its own, with random weights; its peak is counted from the
moment its weights are there, its time from the start of the process's work. Linux only. Exit code
1 if a promised ratio is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.bare_loop import peak_bytes, reset_peak
from benchmarks.jobs import one_picture
from benchmarks.running import BEFORE, Limit, Row, add_against, as_good_as, checked, conclude
from tests.checkpoints import SD15_UNET, THIN_SD15_UNET
from tests.host import ROOT
from trainers.contracts import Size as PictureSize
from trainers.contracts import Text
from trainers.loop import train
from trainers.models.architectures import SD15
from trainers.models.convolution import use_small_map_convolutions
from trainers.models.precision import DTYPES, trained_compute_dtype
from trainers.models.recast import Scratch, compute_wide
from trainers.settings.run import run_config
from trainers.step import Job

CPU = torch.device("cpu")
LIMIT = 0.45  # of plain fp32 AdamW's peak
LAYERS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)


class Size(NamedTuple):
    """What a contender trains."""

    thin: bool
    px: int
    steps: int


class Contender(NamedTuple):
    title: str
    run: Callable[[Size], None]
    promised: bool = False


def plain(size: Size) -> None:
    """diffusers and torch, as anyone would write it."""
    unet = UNet2DConditionModel(**(THIN_SD15_UNET if size.thin else SD15_UNET)).train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-6)
    scheduler = DDPMScheduler()
    latents, hidden = torch.randn(1, 4, size.px // 8, size.px // 8), torch.randn(1, 77, 768)
    reset_peak(CPU)
    for _ in range(size.steps):
        noise, timesteps = torch.randn_like(latents), torch.randint(1000, (1,))
        noisy = scheduler.add_noise(latents, noise, timesteps)
        loss = F.mse_loss(unet(noisy, timesteps, encoder_hidden_states=hidden).sample, noise)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def ours(**settings: Any) -> Callable[[Size], None]:
    """The trainer's own loop with these settings."""

    def run(size: Size) -> None:
        job = job_of("dreambooth", size, **settings)
        reset_peak(CPU)
        train(job)

    return run


def job_of(method: str, size: Size, **settings: Any) -> Job:
    """A training of a UNet with random weights on one random latent, ready to go."""
    config = run_config(method, {"steps": size.steps, **settings})
    held_in = DTYPES[getattr(config.own, "weights", "fp32")]
    computes_in = trained_compute_dtype(config.training.precision, held_in, CPU)
    unet = random_unet(size.thin, held_in)
    if computes_in != held_in:
        scratch = Scratch(computes_in)
        for layer in unet.modules():
            if isinstance(layer, LAYERS):
                compute_wide(layer, scratch)

    def predict(
        noisy: Tensor, timesteps: Tensor, texts: Sequence[Text], sizes: Sequence[PictureSize]
    ) -> Tensor:
        hidden = torch.cat([text["hidden"] for text in texts]).to(computes_in)
        predicted: Tensor = unet(noisy.to(computes_in), timesteps, hidden).sample
        return predicted

    told = {"hidden": torch.randn(1, 77, 768)}
    return one_picture(unet, predict, SD15, computes_in, told, size.px, config)


def random_unet(thin: bool, dtype: torch.dtype) -> nn.Module:
    """diffusers' UNet of SD1.5, changed for small maps as the host's is."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**(THIN_SD15_UNET if thin else SD15_UNET))
    weights = {
        name: torch.empty(empty.shape, dtype=dtype).normal_(0, 0.02)
        for name, empty in unet.state_dict().items()
    }
    unet.load_state_dict(weights, assign=True)
    unet.requires_grad_(False)
    use_small_map_convolutions(unet)
    return unet


BF16 = {"weights": "bf16", "precision": "auto"}
CONTENDERS = {
    "plain": Contender("plain fp32 AdamW", plain),
    "fp32": Contender("ours: fp32, adamw", ours(precision="fp32")),
    "fp32-fused": Contender(
        "ours: fp32, adamw, fused", ours(precision="fp32", fused_backward=True)
    ),
    "bf16-8bit": Contender(
        "ours: bf16, adamw_8bit, fused",
        ours(**BF16, optimizer="adamw_8bit", fused_backward=True),
        promised=True,
    ),
    "bf16-factored": Contender(
        "ours: bf16, adafactor, fused",
        ours(**BF16, optimizer="adafactor", fused_backward=True),
        promised=True,
    ),
}


def run_one(name: str, size: Size) -> None:
    torch.manual_seed(0)
    began = time.perf_counter()
    CONTENDERS[name].run(size)
    seconds = time.perf_counter() - began
    print(json.dumps({"peak_bytes": peak_bytes(CPU), "seconds": seconds}))


def measure(name: str, size: Size, tree: Path) -> tuple[float, float]:
    """Peak in GB and seconds a step of one contender, in a process of its own.

    Args:
        tree: the checkout whose code runs.
    """
    command = [sys.executable, "-m", "benchmarks.dreambooth_memory", "--run", name]
    command += ["--size-px", str(size.px), "--steps", str(size.steps)] + ["--thin"] * size.thin
    done = subprocess.run(command, cwd=tree, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{CONTENDERS[name].title} failed in {tree}:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["peak_bytes"] / 1e9, found["seconds"] / size.steps


def measure_all(names: Sequence[str], size: Size, rounds: int, other: Path | None) -> list[Row]:
    """All in turn, another checkout's after each of ours; their lines in that order."""
    runs = []
    for name in names:
        runs.append((name, CONTENDERS[name].title, ROOT))
        if other is not None and name != "plain":
            runs.append((name, before_title(CONTENDERS[name].title), other))
    found: dict[str, list[tuple[float, float]]] = {title: [] for _, title, _ in runs}
    for number in range(rounds):
        for name, title, tree in runs:
            found[title].append(measure(name, size, tree))
            peak, seconds = found[title][-1]
            print(f"  round {number + 1}  {title:40} {peak:6.2f} GB {seconds:6.1f} s", flush=True)
    return [
        Row(title, "", statistics.median(s for _, s in pairs), max(gb for gb, _ in pairs))
        for title, pairs in found.items()
    ]


def before_title(title: str) -> str:
    return title.replace("ours", BEFORE)


def limits(rows: dict[str, Row]) -> list[Limit]:
    """Those that the rows at hand, by title, can tell."""
    found = []
    plain_one = rows.get(CONTENDERS["plain"].title)
    for title, _, promised in CONTENDERS.values():
        if title not in rows:
            continue
        if promised and plain_one is not None:
            ratio = rows[title].peak_gb / plain_one.peak_gb
            found.append(Limit(f"peak memory, {title} / plain", ratio, True, LIMIT))
        if before := rows.get(before_title(title)):
            found += as_good_as(f"{title} / before", rows[title], before)
    return found


def table(rows: dict[str, Row]) -> str:
    lines = [f"{'':40}{'peak GB':>8}{'x plain':>9}{'s/step, making weights too':>28}"]
    plain_one = rows.get(CONTENDERS["plain"].title)
    for title, row in rows.items():
        ratio = "-" if plain_one is None else f"{row.peak_gb / plain_one.peak_gb:.2f}"
        lines.append(f"{title:40}{row.peak_gb:8.2f}{ratio:>9}{row.seconds:28.1f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2, help="the first makes optimizer states")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each contender")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    add_against(parser)
    parser.add_argument("--quick", "--thin", action="store_true", dest="thin")
    parser.add_argument("--run", choices=CONTENDERS, help=argparse.SUPPRESS)
    asked = checked(parser)
    size = Size(asked.thin, asked.size_px, asked.steps)
    if asked.run:
        run_one(asked.run, size)
        return 0
    model = "thin model" if size.thin else "SD1.5"
    print(f"{model}, {size.px} px, batch size 1, {size.steps} steps, {asked.rounds} rounds")
    measured = measure_all(asked.only, size, asked.rounds, asked.against)
    rows = {row.title: row for row in measured}
    print(f"\n{table(rows)}")
    return conclude(limits(rows), size.thin)


if __name__ == "__main__":
    sys.exit(main())
