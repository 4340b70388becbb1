"""Textual Inversion as published scripts do it: the whole embedding table trains.

    python -m benchmarks.bare_inversion --steps 8

diffusers, transformers and torch with nothing around them: the table, longer by the new rows, is
the parameter, and after each step the vocabulary's rows are put back from a copy. Prints one JSON
object, as bare_loop.py does. `benchmarks.textual_inversion_step` runs it in a process of its own.
The UNet is in `--precision`, the text encoder in fp32 under autocast.
"""

from __future__ import annotations

import argparse
import functools
import json
import time

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.bare_loop import UNETS, measure
from tests.checkpoints import CLIP_L, DTYPES

VOCABULARY = 49408
START, END = 49406, 49407


class Loop:
    """A UNet and a text encoder, both frozen but for the table, and what trains it."""

    def __init__(self, model: str, vectors: int, dtype: torch.dtype, device: torch.device) -> None:
        with device:
            self.unet = UNet2DConditionModel(**UNETS[model]).to(dtype)
            self.encoder = CLIPTextModel(CLIPTextConfig(**CLIP_L))
        self.unet.requires_grad_(False).train()
        self.encoder.requires_grad_(False).train()
        old = self.encoder.get_input_embeddings().weight
        rows = old[:vectors] + 0.01
        longer = torch.nn.Embedding.from_pretrained(torch.cat([old, rows]), freeze=False)
        self.encoder.set_input_embeddings(longer)
        self.table = longer.weight
        self.vocabulary = self.table.detach()[:VOCABULARY].clone()
        self.optimizer = torch.optim.AdamW([self.table], lr=1e-3, weight_decay=1e-2, fused=True)
        self.scheduler = DDPMScheduler()
        words = [START, 320, 1125, 539, *range(VOCABULARY, VOCABULARY + vectors)]
        self.ids = torch.tensor([words + [END] * (77 - len(words))], device=device)
        self.dtype, self.device = dtype, device
        casts = dtype != torch.float32
        self.autocast = functools.partial(torch.autocast, device.type, dtype, enabled=casts)

    def loss(self, latents: Tensor) -> Tensor:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (len(latents),), device=self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps).to(self.dtype)
        with self.autocast():
            hidden = self.encoder(self.ids).last_hidden_state
        predicted = self.unet(noisy, timesteps, hidden.to(self.dtype)).sample
        return F.mse_loss(predicted.float(), noise)

    def step(self, latents: Tensor) -> float:
        loss = self.loss(latents)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([self.table], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.table[:VOCABULARY] = self.vocabulary
        return loss.item()  # waits for all that was launched, the update too

    def without_numbers(self) -> None:
        """Keep nothing but shapes, on no device; it cannot `step` any more."""
        self.device = torch.device("meta")
        self.unet.to(self.device)
        self.encoder.to(self.device)
        self.ids = self.ids.to(self.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--vectors", type=int, default=4)
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--model", choices=("full_sd15", "thin_sd15"), default="full_sd15")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="instead of the clock's")
    asked = parser.parse_args()
    clock = time.process_time if asked.cpu_time else time.perf_counter
    device, dtype = asked.device, DTYPES[asked.precision]
    loop = Loop(asked.model, asked.vectors, dtype, device)
    latents = torch.randn(1, 4, asked.size_px // 8, asked.size_px // 8, device=device)
    print(json.dumps(measure(loop, latents, asked.steps, dtype, clock)))


if __name__ == "__main__":
    main()
