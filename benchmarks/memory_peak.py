"""What a plan of memory says beside what a training really takes, on the CPU.

    python -m benchmarks.memory_peak [--comfyui DIR] [--only CASE ...]

The host's own UNets in full size with random weights, and the trainer's own steps: two of them, the
second with the optimizer's states there. Each case runs in a process of its own. Measured is how
much more of the process is resident at its peak than before there were weights; planned is what
trainers/models/memory.py adds up for the same job. UNets compute in fp32; SDXL's and those that
DreamBooth trains are stored in bf16, and widened layer by layer. Textual Inversion has a CLIP-L of
full size beside the UNet.

A plan adds up tensors. glibc's malloc gives most of what is freed not back to the system, so that
the peak is measured twice: where what is freed goes back at once ("peak", which is judged), and as
glibc does it by itself ("kept", with --kept). Linux only. Exit code 1 if a plan is further than
15 % from its peak.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn

from benchmarks.bare_loop import peak_bytes, reset_peak
from benchmarks.jobs import CAPTION, OBJECTIVE, one_picture
from benchmarks.memory_plan import BASES, CPU, fill, predictor, use_host
from benchmarks.running import add_comfyui, checked
from tests.host import ROOT
from tests.tiny import Characters, bare, build
from trainers.contracts import Parts, Predict, Size, Text
from trainers.data.examples import Examples
from trainers.loop import Training, make_job
from trainers.models.architectures import DENOISER
from trainers.models.checkpointing import guard_norms
from trainers.models.convolution import use_small_map_convolutions
from trainers.models.memory import STEPS, Pretence, step_memory
from trainers.models.recast import Scratch, compute_wide
from trainers.settings.run import RunConfig, run_config
from trainers.step import Job

GB = 1e9
LIMIT = 0.15  # how far a plan may be from its peak
# man 3 mallopt: what is as large as this is mapped for itself, and unmapped when it is freed. The
# threshold would else rise to what was freed before, up to 32 MB.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 20)}
WIDENED = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
CLIP_L: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12,
}  # fmt: skip


class Case(NamedTuple):
    base: str
    method: str
    size_px: int
    settings: Mapping[str, Any]
    stored_in: torch.dtype = torch.float32


ALL = {"checkpointing": "all"}
TRAINED = {"weights": "bf16", "fused_backward": True, "optimizer": "adafactor"}
INVERTED = {"token": "sks", "initializer": "", "vectors": 2}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "lora": {}, "dreambooth": TRAINED, "textual_inversion": INVERTED,
}  # fmt: skip
CASES = {
    f"{base}-{method}{'-all' if kept else ''}": Case(
        base, method, size_px, {**settings, **kept},
        torch.bfloat16 if base == "sdxl" or method == "dreambooth" else torch.float32,
    )
    for base, size_px in (("sd15", 256), ("sdxl", 256))
    for method, settings in METHODS.items()
    for kept in ({}, ALL)
}  # fmt: skip


def job_of(case: Case, unet: nn.Module, clip: nn.Module | None) -> Job:
    """A training on one random picture, ready to go."""
    base = BASES[case.base]
    settings = {"steps": STEPS, "precision": "fp32", "learning_rate": 1e-4, **case.settings}
    config = run_config(case.method, settings)
    guard_norms(unet)
    use_small_map_convolutions(unet)
    if case.stored_in != torch.float32:
        scratch = Scratch(torch.float32)
        for layer in unet.modules():
            if isinstance(layer, WIDENED):
                compute_wide(layer, scratch)
    told = {name: torch.zeros(1, *shape) for name, shape in base.told.items()}
    predict = predictor(unet, base, torch.float32)
    if clip is not None:
        return _inverted(unet, clip, predict, case, config, told)
    return one_picture(unet, predict, base.architecture, torch.float32, told, case.size_px, config)


def _inverted(
    unet: nn.Module,
    clip: nn.Module,
    predict: Predict,
    case: Case,
    config: RunConfig,
    told: Mapping[str, Tensor],
) -> Job:
    """The same with a text encoder, as wide as it is; what more the UNet wants is zeros."""

    def with_text(
        noisy: Tensor, timesteps: Tensor, texts: Sequence[Text], sizes: Sequence[Size]
    ) -> Tensor:
        more = told["context"][..., text_width(texts) :]
        full = [{**told, "context": torch.cat([text["hidden"], more], -1)} for text in texts]
        predicted: Tensor = predict(noisy, timesteps, full, sizes)
        return predicted

    parts = Parts(
        {DENOISER: unet, "clip_l": clip}, with_text, Characters(clip),
        BASES[case.base].architecture, OBJECTIVE, CPU, torch.float32,
    )  # fmt: skip
    side = case.size_px // 8
    size = Size(case.size_px, case.size_px, 0, 0, case.size_px, case.size_px)
    examples = Examples((torch.randn(4, side, side),), (None,), (CAPTION,), (size,), (1,))
    return make_job(parts, examples, None, config)


def text_width(texts: Sequence[Text]) -> int:
    return int(texts[0]["hidden"].shape[-1])


def modules_of(case: Case) -> tuple[nn.Module, nn.Module | None]:
    """UNet and text encoder without weights."""
    unet = BASES[case.base].make().to(case.stored_in)
    clip = bare(build("clip_l", **CLIP_L)) if case.method == "textual_inversion" else None
    return unet, clip


def each_weight(module: nn.Module, made: Callable[[Tensor], Tensor]) -> None:
    for layer in module.modules():
        for name, weight in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, nn.Parameter(made(weight), requires_grad=False))


def random_like() -> Callable[[Tensor], Tensor]:
    """Makes weights of the same numbers over and over, which takes no time."""
    numbers = torch.randn(1 << 20) * 0.02

    def made(weight: Tensor) -> Tensor:
        filled = torch.empty(weight.shape, dtype=weight.dtype)
        for piece in filled.view(-1).split(len(numbers)):
            piece.copy_(numbers[: len(piece)])
        return filled

    return made


def planned_bytes(case: Case) -> int:
    unet, clip = modules_of(case)
    pretence = Pretence(CPU)
    for module in filter(None, (unet, clip)):
        fill(module, pretence)
    with pretence.watched() as alive:
        job = job_of(case, unet, clip)
        modules, trained = job.parts.modules.values(), job.trainable.parameters
        return step_memory(alive, modules, trained, lambda: Training(job)).peak


def measured_bytes(case: Case) -> int:
    unet, clip = modules_of(case)
    made = random_like()
    gc.collect()
    before = psutil.Process().memory_info().rss
    for module in filter(None, (unet, clip)):
        each_weight(module, made)
    training = Training(job_of(case, unet, clip))
    reset_peak(CPU)
    for _ in range(STEPS):
        training.step()
    return peak_bytes(CPU) - before


def in_process(
    asked: argparse.Namespace, name: str, what: str, variables: Mapping[str, str] = GIVEN_BACK
) -> int:
    command = [sys.executable, "-m", "benchmarks.memory_peak", "--comfyui", str(asked.comfyui)]
    done = subprocess.run(
        [*command, "--run", what, "--only", name], cwd=ROOT, text=True, capture_output=True,
        env={**os.environ, **variables},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return int(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_comfyui(parser)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--kept", action="store_true", help="also what glibc keeps")
    parser.add_argument("--run", choices=("planned", "measured"), help=argparse.SUPPRESS)
    asked = checked(parser)
    if asked.run:
        use_host(asked.comfyui)
        (name,) = asked.only
        tell = planned_bytes if asked.run == "planned" else measured_bytes
        print(json.dumps(tell(CASES[name])))
        return 0
    print(f"{'':28}{'px':>5}{'plan GB':>9}{'peak GB':>9}{'plan / peak':>13}{'kept GB':>9}")
    near = True
    for name in asked.only:
        began = time.perf_counter()
        planned, measured = (in_process(asked, name, what) for what in ("planned", "measured"))
        kept = f"{in_process(asked, name, 'measured', {}) / GB:.2f}" if asked.kept else ""
        ratio = planned / measured
        met = abs(ratio - 1) <= LIMIT
        near = near and met
        print(
            f"{name:28}{CASES[name].size_px:5}{planned / GB:9.2f}{measured / GB:9.2f}{ratio:13.3f}"
            f"{kept:>9}  {'ok' if met else 'MISSED'}{time.perf_counter() - began:6.0f} s",
            flush=True,
        )
    return 0 if near else 1


if __name__ == "__main__":
    sys.exit(main())
