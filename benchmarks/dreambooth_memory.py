"""Peak memory of a full DreamBooth step of SD1.5's UNet, ours beside plain fp32 AdamW.

    python -m benchmarks.dreambooth_memory                # 256 px, batch size 1
    python -m benchmarks.dreambooth_memory --quick        # a thin model, to see that it works

Each contender runs in a process of its own, with random weights; its peak is counted from the
moment its weights are there. Linux only. Exit code 1 if a promised ratio is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn

from benchmarks.bare_loop import peak_bytes
from tests.checkpoints import SD15_UNET, THIN_SD15_UNET
from trainers.contracts import DENOISER, Parts
from trainers.data.examples import Examples
from trainers.loop import make_job, train
from trainers.models import FAMILIES
from trainers.models.precision import DTYPES, compute_dtype
from trainers.models.widening import widen
from trainers.noise import Diffusion, scaled_linear_alphas_cumprod
from trainers.settings.run import run_config
from trainers.step import Job

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 0.45  # of plain fp32 AdamW's peak
CPU = torch.device("cpu")
CAPTION = "a photo of sks dog"
# The checkpoint facts of SD1.5's UNet (LDM's v1-inference.yaml), and of one with a single level.
FULL_FACTS: dict[str, Any] = {
    "model_channels": 320, "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "in_channels": 4, "out_channels": 4,
    "context_dim": 768, "num_heads": 8, "use_linear_in_transformer": False,
}  # fmt: skip
THIN_FACTS = FULL_FACTS | {"channel_mult": [1], "num_res_blocks": [1], "transformer_depth": [1]}


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
    count_from_here()
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
        count_from_here()
        train(job)

    return run


def job_of(method: str, size: Size, **settings: Any) -> Job:
    """A training of a UNet with random weights on one random latent, ready to go."""
    config = run_config(method, {"steps": size.steps, **settings})
    dtype = DTYPES[getattr(config.own, "weights", "fp32")]
    family = FAMILIES["sd15"]
    denoiser = family.build(DENOISER, THIN_FACTS if size.thin else FULL_FACTS)
    weights = {
        name: torch.empty(empty.shape, dtype=dtype).normal_(0, 0.02)
        for name, empty in denoiser.state_dict().items()
    }
    denoiser.load_state_dict(weights, assign=True)
    del weights
    denoiser.requires_grad_(False)
    if dtype != torch.float32 and compute_dtype("auto", CPU) == torch.float32:
        widen(denoiser, torch.float32)  # as nodes/host/training.py does
    process = Diffusion("epsilon", scaled_linear_alphas_cumprod())
    parts = Parts({DENOISER: denoiser}, lambda text, learned: {}, process, CPU)
    latents = torch.randn(4, size.px // 8, size.px // 8)
    examples = Examples((latents,), (None,), (CAPTION,), (1,))
    encoded = {text: {"hidden": torch.randn(77, 768)} for text in (CAPTION, "")}
    return make_job(parts, family, examples, encoded, config)


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


def count_from_here() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets the peak


def measure(name: str, size: Size) -> tuple[float, float]:
    """Peak in GB and seconds a step of one contender, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.dreambooth_memory", "--run", name]
    command += ["--size-px", str(size.px), "--steps", str(size.steps)] + ["--thin"] * size.thin
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{CONTENDERS[name].title} failed:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["peak_bytes"] / 1e9, found["seconds"] / size.steps


def run_one(name: str, size: Size) -> None:
    torch.manual_seed(0)
    began = time.perf_counter()
    CONTENDERS[name].run(size)
    seconds = time.perf_counter() - began
    print(json.dumps({"peak_bytes": peak_bytes(), "seconds": seconds}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2, help="the first makes optimizer states")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--quick", "--thin", action="store_true", dest="thin")
    parser.add_argument("--run", choices=CONTENDERS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    size = Size(asked.thin, asked.size_px, asked.steps)
    if asked.run:
        run_one(asked.run, size)
        return 0
    model = "thin model" if size.thin else "SD1.5"
    print(f"{model}, {size.px} px, batch size 1, {size.steps} steps")
    print(f"{'':32}{'peak GB':>8}{'x plain':>9}{'s, making weights too':>24}")
    peaks: dict[str, float] = {}
    kept = True
    for name in asked.only:
        peaks[name], seconds = measure(name, size)
        ratio = peaks[name] / peaks["plain"] if "plain" in peaks else float("nan")
        contender = CONTENDERS[name]
        print(f"{contender.title:32}{peaks[name]:8.2f}{ratio:9.2f}{seconds:24.1f}", flush=True)
        if contender.promised and not ratio <= LIMIT:
            kept = False
    print(f"Promised: 8-bit and factored at most {LIMIT} x plain: {'ok' if kept else 'MISSED'}")
    if size.thin:
        print("The thin model only shows that this works; its figures say nothing.")
        return 0
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
