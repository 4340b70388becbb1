"""The least that a step takes: diffusers, transformers, peft and torch, nothing around them.

    python -m benchmarks.bare_loop --precision bf16 --steps 8
    python -m benchmarks.bare_loop --train dreambooth    # the whole UNet in fp32, under autocast

Prints one JSON object: the seconds of every step, the peak memory, the floating-point operations
of a step and how many of them this machine's matmul does in a second. `benchmarks.lora_step` runs
it in a process of its own. SDXL's loop encodes its caption by both text encoders and keeps them, as
diffusers' text-to-image script does; SD1.5's takes a random text.

In fp32 a GPU's matmul is without TF32, as torch has it; its convolutions are not.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.checkpoints import (
    CLIP_G,
    CLIP_L,
    DTYPES,
    SD15_UNET,
    SDXL_UNET,
    THIN_SD15_UNET,
    THIN_SDXL_UNET,
)

UNETS = {
    "full_sd15": SD15_UNET,
    "thin_sd15": THIN_SD15_UNET,
    "full_sdxl": SDXL_UNET,
    "thin_sdxl": THIN_SDXL_UNET,
}
MATMUL_SIZE = 4096
MATMUL_ROUNDS = 5
MATMUL_SECONDS = 20  # in all: a CPU without bf16 takes as long for one in it
LORA, DREAMBOOTH = TRAINED = ("lora", "dreambooth")


class Loop:
    """A UNet and what trains it: a LoRA in its attention, or in fp32 all of it if `rank` is 0.

    The base of a LoRA is in `dtype`; else that is what autocast computes in.
    """

    def __init__(self, model: str, rank: int, dtype: torch.dtype, device: torch.device) -> None:
        self.config = UNETS[model]
        before = torch.get_default_dtype()
        self.dtype = dtype if rank else torch.float32
        torch.set_default_dtype(self.dtype)  # so that a large model needs no fp32 copy on its way
        with device:
            unet = UNet2DConditionModel(**self.config)
        torch.set_default_dtype(before)
        self.unet = unet.requires_grad_(not rank).train()
        if rank:
            targets = ["to_q", "to_k", "to_v", "to_out.0"]
            lora = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
            peft.inject_adapter_in_model(lora, self.unet)
        self.weights = [p for p in self.unet.parameters() if p.requires_grad]
        for weight in self.weights:
            weight.data = weight.data.float()
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4, weight_decay=1e-2, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.scheduler = DDPMScheduler()
        self.device = device
        casts = self.dtype != dtype
        self.autocast = functools.partial(torch.autocast, device.type, dtype, enabled=casts)
        self.hidden = torch.randn(1, 77, self.config["cross_attention_dim"], device=device)
        self.added = None
        if "addition_embed_type" in self.config:  # SDXL: a pooled text and the picture's sizes
            self.encoders = text_encoders(self.dtype, device)
            self.hidden, pooled = encoded(self.encoders)
            sizes = torch.zeros(1, 6, dtype=self.dtype, device=device)
            self.added = {"text_embeds": pooled, "time_ids": sizes}

    def loss(self, latents: Tensor) -> Tensor:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (len(latents),), device=self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps).to(self.dtype)
        hidden = self.hidden.to(self.dtype)
        with self.autocast():
            predicted = self.unet(noisy, timesteps, hidden, added_cond_kwargs=self.added).sample
        return F.mse_loss(predicted.float(), noise)

    def step(self, latents: Tensor) -> float:
        loss = self.loss(latents)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss.item()  # waits for all that was launched, the update too

    def without_numbers(self) -> None:
        """Keep nothing but shapes, on no device; it cannot `step` any more."""
        self.device = torch.device("meta")
        self.unet.to(self.device)
        self.hidden = self.hidden.to(self.device)
        if self.added is not None:
            self.added = {name: told.to(self.device) for name, told in self.added.items()}


def text_encoders(dtype: torch.dtype, device: torch.device) -> list[nn.Module]:
    """SDXL's two, with random weights."""
    made = []
    for kind, config in ((CLIPTextModel, CLIP_L), (CLIPTextModelWithProjection, CLIP_G)):
        with torch.device("meta"):
            encoder = kind(CLIPTextConfig(**config, projection_dim=config["hidden_size"]))
        encoder = encoder.to(dtype).to_empty(device=device).requires_grad_(False)
        for name, weight in encoder.named_parameters():
            nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.02)
        for places in encoder.buffers():
            places.copy_(torch.arange(places.numel()).view_as(places))  # position ids
        made.append(encoder)
    return made


@torch.no_grad()
def encoded(encoders: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
    """A caption's (1, 77, 2048) and its pooled (1, 1280), by SDXL's two text encoders."""
    device = next(encoders[0].parameters()).device
    ids = torch.tensor([[49406, 320, 1125, 539, 1929] + [49407] * 72], device=device)
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    return torch.cat([o.hidden_states[-2] for o in outputs], dim=-1), outputs[1].text_embeds


def matmul_rate(dtype: torch.dtype, device: torch.device, clock: Callable[[], float]) -> float:
    """Operations a second of the best of a few large matmuls."""
    size = MATMUL_SIZE if device.type == "cpu" else 2 * MATMUL_SIZE
    # A GPU does one in milliseconds; its clocks take longer to settle.
    rounds = MATMUL_ROUNDS if device.type == "cpu" else 10 * MATMUL_ROUNDS
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(1 + rounds):
        finish(device)
        began = clock()
        left @ right
        finish(device)
        seconds.append(clock() - began)
        if sum(seconds) > MATMUL_SECONDS:
            break
    return 2 * size**3 / min(seconds)


def finish(device: torch.device) -> None:
    """Wait until the device has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_operations(loss: Callable[[Tensor], Tensor], latents: Tensor) -> int:
    """Those of a step forward and back, of a loop that is `without_numbers`."""
    # The counter does not know the CPU's fused attention, and counts what a GPU's computes twice;
    # in its plain form it is two matmuls, which with numbers would need 9 GB a layer at 1024 px.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss(latents.to("meta")).backward()
    return int(counter.get_total_flops())


def reset_peak(device: torch.device) -> None:
    """Let the peak count from here on (on a CPU: Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: tensors on a GPU, else what of the process was resident (Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def measure(
    loop: Any, latents: Tensor, steps: int, dtype: torch.dtype, clock: Callable[[], float]
) -> dict[str, Any]:
    """Seconds of each step but the first, peak memory, operations, and the rate of matmuls.

    Args:
        loop: has `device`, `step`, `loss` and `without_numbers`, after which it steps no more.
    """
    device = loop.device
    reset_peak(device)
    times = [clock()]
    for _ in range(steps):
        loop.step(latents)
        times.append(clock())
    peak = peak_bytes(device)
    rate = matmul_rate(dtype, device, clock)  # while its clocks are those of work
    loop.without_numbers()
    return {
        "seconds": [after - before for before, after in itertools.pairwise(times)],
        "peak_bytes": peak,
        "operations": count_operations(loop.loss, latents),
        "operations_per_second": rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--train", choices=TRAINED, default=LORA)
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--model", choices=UNETS, default="full_sd15")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="instead of the clock's")
    asked = parser.parse_args()
    clock = time.process_time if asked.cpu_time else time.perf_counter
    device: torch.device = asked.device
    rank = asked.rank if asked.train == LORA else 0
    dtype = DTYPES[asked.precision]
    loop = Loop(asked.model, rank, dtype, device)
    latents = torch.randn(1, 4, asked.size_px // 8, asked.size_px // 8, device=device)
    print(json.dumps(measure(loop, latents, asked.steps, dtype, clock)))


if __name__ == "__main__":
    main()
