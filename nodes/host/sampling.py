"""The host's own sampler, as KSampler calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
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
    with torch.inference_mode():  # as the host loads text encoders; see make_room
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

    Of a model that makes videos too they are (B, C, 1, h, w).

    Args:
        conditionings: positive and negative.
        size: h and w, in latents.
    """
    empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, *size))
    noise = torch.cat([comfy.sample.prepare_noise(empty, seed) for seed in seeds])
    positive, negative = conditionings
    latents: Tensor = comfy.sample.sample(
        model, noise, how.steps, how.cfg, how.sampler_name, how.scheduler, positive, negative,
        torch.zeros_like(noise), denoise=1.0, seed=seeds[0], callback=on_step,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
    )  # fmt: skip
    return latents


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """The pictures of latents, (B, H, W, 3) in 0..1."""
    pixels: Tensor = vae.decode(latents)
    return pixels.reshape(-1, *pixels.shape[-3:])  # a video of one frame each


def picture_of(pixels: Tensor) -> Image.Image:
    """A decoded picture, (H, W, 3) in 0..1, as Save Image rounds it."""
    levels = (255.0 * pixels.float().cpu()).clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.numpy())


class PictureProgress:
    """The node's bar over several pictures, with a preview of the one that is sampled, or of the
    first of a batch.

    Attributes:
        pictures_done: before those that are sampled now.
    """

    def __init__(self, model: Any, num_pictures: int, steps: int) -> None:
        self.pictures_done = 0
        self._steps, self._num_pictures = steps, num_pictures
        self._bar = comfy.utils.ProgressBar(num_pictures * steps)
        self._previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def __call__(self, step: int, denoised: Tensor, noisy: Tensor, num_steps: int) -> None:
        preview = None
        if self._previewer:
            preview = self._previewer.decode_latent_to_preview_image("JPEG", denoised)
        # In units of steps of one picture: a batch does several at once.
        done = self.pictures_done * self._steps + step + 1
        self._bar.update_absolute(done, self._num_pictures * self._steps, preview)
