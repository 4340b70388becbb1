"""What a training step costs while half of a picture's tokens skip a transformer's middle blocks.

    python -m benchmarks.tread_step [--comfyui DIR] [--only CASE ...] [--steps N]

The host's own transformers with random weights and the trainer's own steps: a LoRA on the attention
layers, one picture. Of the full-size ones, in bf16, operations and memory are told on fake tensors
(trainers/models/memory.py). The small one, in fp32, computes: steps with and without alternate in
one process, so that both have the same company on the machine; CPU seconds, their median.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.jobs import one_picture
from benchmarks.memory_plan import BF16, CPU, fill, plain_attention, use_host
from benchmarks.running import add_comfyui, checked
from tests.tiny_transformers import FLUX, Z_IMAGE
from trainers.contracts import Size, Text
from trainers.loop import Training
from trainers.models import architectures
from trainers.models.architectures import Architecture
from trainers.models.checkpointing import guard_norms
from trainers.models.memory import Pretence, StepMemory, step_memory
from trainers.objective.noise import Flow
from trainers.settings.run import run_config
from trainers.step import Job

RATIOS = (0.0, 0.5)
WARM_UP = 2


class Base(NamedTuple):
    """A transformer, and what it is told beside the noisy latents.

    Attributes:
        model: the host's name for it.
        told: shapes of what a caption becomes, and numbers.
    """

    architecture: Architecture
    model: str
    unet: Mapping[str, Any]
    told: Mapping[str, tuple[int, ...] | int]


class Case(NamedTuple):
    title: str
    base: Base
    size_px: int
    settings: Mapping[str, Any] = {}
    computes: bool = False


def z_image(dim: int, layers: int, text: int, length: int) -> Base:
    heads = dim // 128
    sizes = {"dim": dim, "n_layers": layers, "n_heads": heads, "n_kv_heads": heads}
    unet = {**Z_IMAGE["unet"], **sizes, "cap_feat_dim": text}
    told = {"context": (length, text), "num_tokens": length}
    return Base(architectures.Z_IMAGE, "ZImage", unet, told)


FLUX_SIZES = {"hidden_size": 3072, "num_heads": 24, "depth": 19, "depth_single_blocks": 38}
FLUX_BASE = Base(
    architectures.FLUX,
    "Flux",
    {**FLUX["unet"], **FLUX_SIZES, "context_in_dim": 4096},
    {"context": (512, 4096), "y": (768,), "guidance": ()},
)
Z_IMAGE_BASE = z_image(3840, 30, 2560, 128)
CHECKPOINTED = {"gradient_checkpointing": True}
CASES = {
    "small": Case("a Z-Image of 12 blocks, 768 wide", z_image(768, 12, 512, 64), 512, {}, True),
    "z-image": Case("Z-Image", Z_IMAGE_BASE, 1024),
    "z-image-checkpointed": Case("Z-Image, checkpointed", Z_IMAGE_BASE, 1024, CHECKPOINTED),
    "flux": Case("FLUX.1", FLUX_BASE, 1024),
    "flux-checkpointed": Case("FLUX.1, checkpointed", FLUX_BASE, 1024, CHECKPOINTED),
}


def transformer(base: Base, device: str, dtype: torch.dtype) -> nn.Module:
    import comfy.supported_models

    config = getattr(comfy.supported_models, base.model)(dict(base.unet))
    config.unet_config |= base.unet
    config.set_inference_dtype(dtype, None)
    made: nn.Module = config.get_model({}, device=device).diffusion_model
    guard_norms(made)
    return made


def job_of(case: Case, module: nn.Module, dtype: torch.dtype, ratio: float) -> Job:
    def predict(
        noisy: Tensor, timesteps: Tensor, texts: Sequence[Text], sizes: Sequence[Size]
    ) -> Tensor:
        options = {"optimized_attention_override": plain_attention}
        (text,) = texts
        predicted: Tensor = module(noisy.to(dtype), timesteps, transformer_options=options, **text)
        return predicted.float()

    precision = "bf16" if dtype is BF16 else "fp32"
    settings = {"steps": 1000, "precision": precision, "tread_selection_ratio": ratio}
    config = run_config("lora", {**settings, **case.settings})
    told: dict[str, Any] = {
        name: value if isinstance(value, int) else torch.ones(1, *value, dtype=dtype)
        for name, value in case.base.told.items()
    }
    return one_picture(
        module, predict, case.base.architecture, dtype, told, case.size_px, config, 16, Flow()
    )


def planned(case: Case, ratio: float) -> StepMemory:
    """What a step of a training holds and does."""
    module = transformer(case.base, "meta", BF16)
    pretence = Pretence(CPU)
    fill(module, pretence)
    with pretence.watched() as alive:
        job = job_of(case, module, BF16, ratio)
        modules, trained = job.parts.modules.values(), job.trainable.parameters
        return step_memory(alive, modules, trained, lambda: Training(job))


def timed(case: Case, num_steps: int) -> list[float]:
    """CPU seconds of a step, by RATIOS."""
    trainings = []
    for ratio in RATIOS:
        module = transformer(case.base, "cpu", torch.float32).to(torch.float32)
        for weight in (*module.parameters(), *module.buffers()):
            nn.init.normal_(weight, std=0.02)
        trainings.append(Training(job_of(case, module, torch.float32, ratio)))
    seconds: list[list[float]] = [[] for _ in RATIOS]
    for _ in range(WARM_UP + num_steps):
        for training, spent in zip(trainings, seconds, strict=True):
            began = time.process_time()
            training.step()
            spent.append(time.process_time() - began)
    return [statistics.median(spent[WARM_UP:]) for spent in seconds]


def row(case: Case, num_steps: int) -> str:
    plain, routed = (planned(case, ratio) for ratio in RATIOS)
    told = f"| {case.title} | {case.size_px} | {plain.flops / 1e12:.1f} "
    told += f"| {routed.flops / plain.flops:.2f} | {plain.activations / 1e9:.2f} "
    told += f"| {routed.activations / plain.activations:.2f} "
    told += f"| {plain.peak / 1e9:.2f} | {routed.peak / plain.peak:.2f} |"
    if not case.computes:
        return f"{told} | |"
    before, after = timed(case, num_steps)
    return f"{told} {before:.2f} | {after / before:.2f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_comfyui(parser)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=8)
    asked = checked(parser)
    use_host(asked.comfyui)
    import comfy.model_management

    comfy.model_management.in_training = True
    print("| | px | 10^12 operations | x | activations GB | x | peak GB | x | CPU s/step | x |")
    print("|" + "---|" * 10)
    for case in map(CASES.__getitem__, asked.only):
        print(row(case, asked.steps), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
