"""Textual Inversion as published scripts do it: the whole embedding table trains.

    python -m benchmarks.bare_inversion --steps 8

diffusers, transformers and torch with nothing around them: the table, longer by the new rows, is
the parameter, and after each step the vocabulary's rows are put back from a copy. Prints one JSON
object: the seconds of every step and the peak memory. `benchmarks.textual_inversion_step` runs it
in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.bare_loop import UNETS, peak_bytes, reset_peak
from tests.checkpoints import CLIP_L

VOCABULARY = 49408
START, END = 49406, 49407


class Loop:
    """A UNet and a text encoder, both frozen but for the table, and what trains it."""

    def __init__(self, model: str, vectors: int) -> None:
        self.unet = UNet2DConditionModel(**UNETS[model])
        self.unet.requires_grad_(False).train()
        self.encoder = CLIPTextModel(CLIPTextConfig(**CLIP_L))
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
        self.ids = torch.tensor([words + [END] * (77 - len(words))])

    def step(self, latents: Tensor) -> float:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (len(latents),))
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        hidden = self.encoder(self.ids).last_hidden_state
        predicted = self.unet(noisy, timesteps, encoder_hidden_states=hidden).sample
        loss = F.mse_loss(predicted, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([self.table], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.table[:VOCABULARY] = self.vocabulary
        return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--vectors", type=int, default=4)
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--model", choices=("full_sd15", "thin_sd15"), default="full_sd15")
    parser.add_argument("--cpu-time", action="store_true", help="instead of the clock's")
    asked = parser.parse_args()
    clock = time.process_time if asked.cpu_time else time.perf_counter
    loop = Loop(asked.model, asked.vectors)
    latents = torch.randn(1, 4, asked.size_px // 8, asked.size_px // 8)
    cpu = torch.device("cpu")
    reset_peak(cpu)
    times = [clock()]
    for _ in range(asked.steps):
        loop.step(latents)
        times.append(clock())
    seconds = [after - before for before, after in itertools.pairwise(times)]
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(cpu)}))


if __name__ == "__main__":
    main()
