"""The peak device memory of one training step, told without computing it.

    python -m benchmarks.memory_plan [--comfyui DIR] [--only CASE ...]

The host's own modules at full size and the trainer's own steps, counted as a run's plan counts them
(trainers/models/memory.py): on fake tensors, which have shapes and dtypes but no numbers. That is
what a device has to hold at once of weights, activations, gradients and optimizer states. `needs`
is what has to be free for that, with what an allocator and a driver lose
(trainers/models/fitting.py). Frozen text encoders are not there while the denoiser trains. bf16, a
batch of one picture. Layers quantized here have codes alone, without their scales. Exit code 1 if a
case needs more than promised. Takes some minutes and 1 GB of memory.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.full_transformers import FULL
from benchmarks.jobs import one_picture
from benchmarks.running import add_comfyui, checked
from tests.checkpoints import SD15_UNET, SDXL_UNET
from trainers.contracts import Predict, Size, Text
from trainers.loop import Training
from trainers.models.architectures import ARCHITECTURES, SD15, SDXL, UNMODULATED, Architecture
from trainers.models.checkpointing import guard_norms
from trainers.models.fitting import Room
from trainers.models.memory import STEPS, Pretence, StepMemory, step_memory
from trainers.models.quantized import StoredLinear, as_it_is
from trainers.settings.run import run_config
from trainers.settings.training import INT8

# As nodes/host/models/stored/quantized.py has them.
LEAST_QUANTIZED = 1 << 16  # numbers
SENSITIVE = r".*(norm|embed|emb_layers|adaln).*"
BF16 = torch.bfloat16
CPU = torch.device("cpu")


class Base(NamedTuple):
    """A base model, and what it is told beside the noisy latents.

    Attributes:
        make: the host's own module, on the meta device and in bf16.
        told: shapes without the batch.
        latents: channels, how many pixels a side of one number has, and frames if there are any.
        numbers: what else it is told, by name.
    """

    architecture: Architecture
    make: Callable[[], nn.Module]
    told: Mapping[str, tuple[int, ...]]
    latents: tuple[int, ...] = (4, 8)
    numbers: Mapping[str, int] = {}

    def latents_shape(self, size_px: int) -> tuple[int, ...]:
        channels, side_px, *frames = self.latents
        return (channels, *frames, size_px // side_px, size_px // side_px)


class Case(NamedTuple):
    """One training.

    Attributes:
        settings: of the run. The denoiser is bf16 in any case.
        limit_gb: what it may need, in 10^9 bytes; None where nothing is promised.
    """

    base: str
    method: str
    settings: Mapping[str, Any]
    limit_gb: float | None = None

    @property
    def said(self) -> str:
        """Base, method and settings."""
        settings = [
            name if value is True else f"{name} {value}" for name, value in self.settings.items()
        ]
        return f"{self.base} {self.method}, {', '.join(settings) or 'as it comes'}"


def unet_of(facts: Mapping[str, Any]) -> nn.Module:
    """The host's own module for a UNet by its facts in diffusers' words, on the meta device."""
    import comfy.model_detection

    with torch.device("meta"):
        known = UNet2DConditionModel(**facts).state_dict()
    config = comfy.model_detection.model_config_from_diffusers_unet(known)
    config.set_inference_dtype(BF16, None)
    unet: nn.Module = config.get_model({}, device="meta").diffusion_model
    return unet


BASES = {
    "sd15": Base(SD15, partial(unet_of, SD15_UNET), {"context": (77, 768)}),
    "sdxl": Base(SDXL, partial(unet_of, SDXL_UNET), {"context": (77, 2048), "y": (2816,)}),
    **{
        name: Base(ARCHITECTURES[one.architecture], one.make, one.told, one.latents, one.numbers)
        for name, one in FULL.items()
    },
}
SMALL_PX = {"sd15": 512}  # all others 1024

ALL = {"checkpointing": "all"}
RAM = {"weights_in": "RAM"}
QUANTIZED = {**ALL, "quantize_base": "int8"}
BF16_FUSED = {"weights": "bf16", "fused_backward": True, **ALL}
CASES: dict[str, Case] = {
    "sd15": Case("sd15", "lora", {}, 3.0),
    "sd15-all": Case("sd15", "lora", ALL, 2.3),  # 2.2 by the plan alone
    "sd15-dreambooth": Case(
        "sd15", "dreambooth", {**BF16_FUSED, "optimizer": "adamw_8bit"}, 8
    ),
    "sd15-dreambooth-adamw": Case("sd15", "dreambooth", {"weights": "bf16", **ALL}),
    "sdxl": Case("sdxl", "lora", {}),
    "sdxl-half": Case("sdxl", "lora", {"checkpointing": "half"}),
    "sdxl-all": Case("sdxl", "lora", ALL, 8),
    "sdxl-ram": Case("sdxl", "lora", RAM),
    "sdxl-factored": Case("sdxl", "dreambooth", {**BF16_FUSED, "optimizer": "adafactor"}, 8),
    "sdxl-8bit": Case("sdxl", "dreambooth", {**BF16_FUSED, "optimizer": "adamw_8bit"}, 16),
    **{
        f"{name}{kind}": Case(name, "lora", settings)
        for name in FULL
        for kind, settings in {
            "": {}, "-half": {"checkpointing": "half"}, "-all": ALL, "-int8": QUANTIZED,
            "-ram": RAM, "-ram-int8": {**RAM, "quantize_base": "int8"},
        }.items()
    },
}  # fmt: skip
# What the README promises to fit into 8 and 12 GB.
for _name, _limit_gb in {
    "z-image-ram": 8.0, "klein-9b-ram": 12.0, "qwen-image-ram": 12.0,
}.items():  # fmt: skip
    CASES[_name] = CASES[_name]._replace(limit_gb=_limit_gb)


def use_host(comfyui: Path) -> None:
    """Make the host's modules importable, last of all: it has folders of our names."""
    sys.path.append(str(comfyui))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    import comfy.model_management

    comfy.model_management.in_training = True  # as nodes/host/models/training_mode.py has it


def fill(module: nn.Module, pretence: Pretence) -> None:
    """Put fake weights in the place of those on the meta device."""
    for layer in module.modules():
        for name, weight in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, pretence.like(weight))
        for name, buffer in list(layer.named_buffers(recurse=False)):
            if buffer.is_meta:
                layer.register_buffer(name, pretence.like(buffer))


def plain_attention(attention: Any, *args: Any, **kwargs: Any) -> Tensor:
    """torch's own attention, as nodes/host/models/denoiser.py has it."""
    from comfy.ldm.modules.attention import attention_pytorch

    attended: Tensor = attention_pytorch(*args, **kwargs)
    return attended


def is_quantized(path: str) -> bool:
    """Whether quantize_base quantizes a large linear layer of this path."""
    inside = re.fullmatch(UNMODULATED, path) is not None
    return inside and re.fullmatch(SENSITIVE, path, re.IGNORECASE) is None


def quantize(module: nn.Module) -> None:
    """Put layers with codes of 8 bits in the place of those that quantize_base would quantize."""
    for path, layer in list(module.named_modules()):
        large = isinstance(layer, nn.Linear) and layer.weight.numel() >= LEAST_QUANTIZED
        if large and is_quantized(path):
            codes = as_it_is(torch.empty_like(layer.weight, dtype=torch.int8))
            parent, _, name = path.rpartition(".")
            setattr(
                module.get_submodule(parent), name, StoredLinear(layer, codes, layer.bias, BF16)
            )


def planned(case: Case) -> StepMemory:
    """What the steps of a training have to hold."""
    base, size_px = BASES[case.base], SMALL_PX.get(case.base, 1024)
    config = run_config(case.method, {"steps": STEPS, "precision": "bf16", **case.settings})
    module = base.make()
    if config.training.quantize_base == INT8:
        quantize(module)
    guard_norms(module)
    told = {name: torch.zeros(1, *shape, dtype=BF16) for name, shape in base.told.items()}
    pretence = Pretence(CPU)
    fill(module, pretence)
    with pretence.watched() as alive:
        job = one_picture(
            module, predictor(module, base, BF16), base.architecture, BF16, told, size_px, config,
            latents_shape=base.latents_shape(size_px),
        )  # fmt: skip
        trained = job.trainable.parameters
        return step_memory(alive, job.parts.modules.values(), trained, lambda: Training(job))


def predictor(module: nn.Module, base: Base, computes_in: torch.dtype) -> Predict:
    """How a module of the host predicts without the host."""

    def predict(
        noisy: Tensor, timesteps: Tensor, texts: Sequence[Text], sizes: Sequence[Size]
    ) -> Tensor:
        told = {name: torch.cat([text[name] for text in texts]) for name in texts[0]}
        options = {"optimized_attention_override": plain_attention}
        predicted: Tensor = module(
            noisy.to(computes_in), timesteps, transformer_options=options, **base.numbers, **told
        )
        return predicted.float()

    return predict


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_comfyui(parser)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    asked = checked(parser)
    use_host(asked.comfyui)
    print(f"{'one picture, bf16, SD1.5 512 px, others 1024 px':76}{'plan':>7}{'needs':>7} GB")
    kept = True
    for case in map(CASES.__getitem__, asked.only):
        began = time.perf_counter()
        peak = planned(case).peak
        needs_gb = Room(0, "cuda").needed_bytes(peak) / 1e9
        found = case.limit_gb is None or needs_gb <= case.limit_gb
        kept = kept and found
        limit = f"at most {case.limit_gb:g}: {'ok' if found else 'MISSED'}" if case.limit_gb else ""
        print(
            f"{case.said:76}{peak / 1e9:7.2f}{needs_gb:7.2f}  "
            f"{limit:20}{time.perf_counter() - began:4.0f} s to tell",
            flush=True,
        )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
