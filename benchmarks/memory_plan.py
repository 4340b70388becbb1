"""The peak device memory of one training step, told without computing it.

    python -m benchmarks.memory_plan [--comfyui DIR] [--only CASE ...]

The host's own UNets at full size and the trainer's own steps, counted as `--dry-run` counts a run's
(trainers/models/memory.py): on fake tensors, which have shapes and dtypes but no numbers. That is
what a device has to hold at once of weights, activations, gradients and optimizer states; its
driver, the workspaces of libraries and what an allocator loses between blocks come on top. Frozen
text encoders are not there while the denoiser trains. bf16, a batch of one picture. Exit code 1 if
a case needs more than promised. Takes some minutes and 1 GB of memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.jobs import one_picture
from benchmarks.running import add_comfyui, checked
from tests.checkpoints import SD15_UNET, SDXL_UNET
from trainers.contracts import Size, Text
from trainers.loop import Training
from trainers.models.architectures import SD15, SDXL, Architecture
from trainers.models.checkpointing import guard_norms
from trainers.models.memory import STEPS, Pretence, StepMemory, step_memory
from trainers.settings.run import run_config

BF16 = torch.bfloat16
CPU = torch.device("cpu")


class Base(NamedTuple):
    """A base model, and what it is told beside the noisy latents.

    Attributes:
        unet: its facts in diffusers' words, by which the host knows what to build.
    """

    architecture: Architecture
    unet: Mapping[str, Any]
    told: Mapping[str, tuple[int, ...]]


class Case(NamedTuple):
    """One training.

    Attributes:
        settings: of the run. The denoiser is bf16 in any case.
        limit_gb: the most that it may need, in 10^9 bytes.
    """

    title: str
    base: Base
    size_px: int
    method: str
    settings: Mapping[str, Any]
    limit_gb: float


SD15_BASE = Base(SD15, SD15_UNET, {"context": (77, 768)})
SDXL_BASE = Base(SDXL, SDXL_UNET, {"context": (77, 2048), "y": (2816,)})
CHECKPOINTED = {"gradient_checkpointing": True}
WHOLE = {"weights": "bf16", "fused_backward": True, **CHECKPOINTED}
CASES = {
    "sd15": Case("SD1.5 LoRA", SD15_BASE, 512, "lora", {}, 3.0),
    "sd15-checkpointed": Case(
        "SD1.5 LoRA, checkpointed", SD15_BASE, 512, "lora", CHECKPOINTED, 2.2
    ),
    "sdxl": Case("SDXL LoRA, checkpointed", SDXL_BASE, 1024, "lora", CHECKPOINTED, 8.0),
    "sdxl-factored": Case(
        "SDXL DreamBooth, fused, adafactor, checkpointed",
        SDXL_BASE,
        1024,
        "dreambooth",
        {**WHOLE, "optimizer": "adafactor"},
        16.0,
    ),
    "sdxl-8bit": Case(
        "SDXL DreamBooth, fused, adamw_8bit, checkpointed",
        SDXL_BASE,
        1024,
        "dreambooth",
        {**WHOLE, "optimizer": "adamw_8bit"},
        16.0,
    ),
}


def use_host(comfyui: Path) -> None:
    """Make the host's modules importable, last of all: it has folders of our names."""
    sys.path.append(str(comfyui))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True


def host_unet(base: Base) -> nn.Module:
    """The host's own module for a base model, on the meta device and in bf16."""
    import comfy.model_detection

    with torch.device("meta"):
        known = UNet2DConditionModel(**base.unet).state_dict()
    config = comfy.model_detection.model_config_from_diffusers_unet(known)
    assert type(config).__name__ in base.architecture.host_classes
    config.set_inference_dtype(BF16, None)
    unet: nn.Module = config.get_model({}, device="meta").diffusion_model
    return unet


def fill(module: nn.Module, pretence: Pretence) -> None:
    """Put fake weights in the place of those on the meta device."""
    for layer in module.modules():
        for name, weight in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, pretence.like(weight))


def plain_attention(attention: Any, *args: Any, **kwargs: Any) -> Tensor:
    """torch's own attention, as nodes/host/models/denoiser.py has it."""
    from comfy.ldm.modules.attention import attention_pytorch

    attended: Tensor = attention_pytorch(*args, **kwargs)
    return attended


def planned(case: Case) -> StepMemory:
    """What the steps of a training have to hold."""
    unet = host_unet(case.base)
    guard_norms(unet)

    def predict(
        noisy: Tensor, timesteps: Tensor, texts: Sequence[Text], sizes: Sequence[Size]
    ) -> Tensor:
        told = {name: torch.cat([text[name] for text in texts]) for name in texts[0]}
        options = {"optimized_attention_override": plain_attention}
        predicted: Tensor = unet(noisy.to(BF16), timesteps, transformer_options=options, **told)
        return predicted.float()

    config = run_config(case.method, {"steps": STEPS, "precision": "bf16", **case.settings})
    shapes = case.base.told.items()
    told = {name: torch.zeros(1, *shape, dtype=BF16) for name, shape in shapes}
    pretence = Pretence(CPU)
    fill(unet, pretence)
    with pretence.watched() as alive:
        job = one_picture(unet, predict, case.base.architecture, BF16, told, case.size_px, config)
        trained = job.trainable.parameters
        return step_memory(alive, job.parts.modules.values(), trained, lambda: Training(job))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_comfyui(parser)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    asked = checked(parser)
    use_host(asked.comfyui)
    print(f"{'one picture, bf16':52}{'px':>6}{'peak GB':>9}")
    kept = True
    for case in map(CASES.__getitem__, asked.only):
        began = time.perf_counter()
        peak_gb = planned(case).peak / 1e9
        found = peak_gb <= case.limit_gb
        kept = kept and found
        print(
            f"{case.title:52}{case.size_px:6}{peak_gb:9.2f}  at most {case.limit_gb:4.1f}  "
            f"{'ok' if found else 'MISSED':8}{time.perf_counter() - began:4.0f} s to tell",
            flush=True,
        )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
