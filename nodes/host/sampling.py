"""The host's own sampler, as KSampler calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from PIL import Image
from torch import Tensor

SAMPLERS: list[str] = list(comfy.samplers.KSampler.SAMPLERS)
SCHEDULERS: list[str] = list(comfy.samplers.KSampler.SCHEDULERS)
# (step, denoised latents, noisy latents, number of steps)
OnStep = Callable[[int, Tensor, Tensor, int], None]


@dataclass(frozen=True)
class Sampling:
    """How latents are sampled, in KSampler's words."""

    steps: int
    cfg: float
    sampler_name: str
    scheduler: str


def conditioning(clip: Any, text: str) -> Any:
    """A prompt's CONDITIONING, as CLIP Text Encode makes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def sample(
    model: Any,
    how: Sampling,
    conditionings: tuple[Any, Any],
    seeds: list[int],
    size: tuple[int, int],
    on_step: OnStep | None = None,
) -> Tensor:
    """Latents (B, C, h, w) of one picture a seed; each starts from noise of its own.

    Args:
        conditionings: positive and negative.
        size: h and w, in latents.
    """
    empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, *size))
    noise = torch.cat([comfy.sample.prepare_noise(empty, seed) for seed in seeds])
    positive, negative = conditionings
    latents: Tensor = comfy.sample.sample(
        model, noise, how.steps, how.cfg, how.sampler_name, how.scheduler, positive, negative,
        empty.repeat(len(seeds), 1, 1, 1), denoise=1.0, seed=seeds[0], callback=on_step,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
    )  # fmt: skip
    return latents


def picture_of(pixels: Tensor) -> Image.Image:
    """A decoded picture, (H, W, 3) in 0..1, as Save Image rounds it."""
    levels = (255.0 * pixels.float().cpu()).clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.numpy())
