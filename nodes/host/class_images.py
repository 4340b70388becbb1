"""Makes class images with the host's own sampler: those that are missing, in batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from PIL import Image
from torch import Tensor

from ...trainers.class_images import ClassFolder, ClassImagesConfig
from ...trainers.data import Dataset
from .bridge import check_clip, family_of
from .identity import clip_fingerprint, model_fingerprint, vae_fingerprint
from .session import check_interrupt, make_room
from .training import runs_folder

SAMPLERS: list[str] = list(comfy.samplers.KSampler.SAMPLERS)
SCHEDULERS: list[str] = list(comfy.samplers.KSampler.SCHEDULERS)


@dataclass(frozen=True)
class Painter:
    """What makes pictures: the sockets, and the host's names for how."""

    model: Any
    clip: Any
    vae: Any
    sampler_name: str
    scheduler: str


def class_images(painter: Painter, config: ClassImagesConfig) -> Dataset:
    """The class images of `config`; those that are not there yet are made first.

    Raises:
        UnsupportedModelError: a model or clip that cannot be trained.
        SaveError: the disk is full; the pictures made so far stay.
    """
    check_clip(painter.clip, family_of(painter.model))
    make_room()  # so that the weights are as they were loaded
    key = _key(painter, config)
    folder = ClassFolder.open(runs_folder() / "class_images", config.prompt, key)
    if missing := folder.missing(config.seeds):
        _make(painter, config, folder, missing)
    return folder.dataset(config)


def _key(painter: Painter, config: ClassImagesConfig) -> dict[str, Any]:
    """All that decides what the pictures are, but for their seeds."""
    prompts = (config.prompt, config.negative_prompt)
    return {
        "model": model_fingerprint(painter.model),
        "clip": clip_fingerprint(painter.clip, family_of(painter.model), prompts),
        "vae": vae_fingerprint(painter.vae),
        "prompt": config.prompt,
        "negative_prompt": config.negative_prompt,
        "width": config.width,
        "height": config.height,
        "steps": config.steps,
        "cfg": config.cfg,
        "sampler_name": painter.sampler_name,
        "scheduler": painter.scheduler,
    }


def _make(
    painter: Painter, config: ClassImagesConfig, folder: ClassFolder, missing: list[int]
) -> None:
    texts = (config.prompt, config.negative_prompt)
    conditionings = [
        painter.clip.encode_from_tokens_scheduled(painter.clip.tokenize(text)) for text in texts
    ]
    progress = _Progress(painter.model, len(missing), config.steps)
    for start in range(0, len(missing), config.batch_size):
        check_interrupt()
        batch = missing[start : start + config.batch_size]
        # Another graph or host may be making the same ones.
        if todo := [seed for seed in batch if not folder.file(seed).exists()]:
            latents = _sample(painter, config, conditionings, todo, progress)
            for seed, pixels in zip(todo, painter.vae.decode(latents), strict=True):
                folder.write(seed, _picture(pixels))
        progress.pictures_done += len(batch)


def _sample(
    painter: Painter,
    config: ClassImagesConfig,
    conditionings: list[Any],
    seeds: list[int],
    progress: _Progress,
) -> Tensor:
    """Latents of one picture a seed; each starts from noise of its own."""
    stride_px = painter.vae.spacial_compression_encode()
    size = (config.height // stride_px, config.width // stride_px)
    empty = torch.zeros(1, 4, *size)
    empty = comfy.sample.fix_empty_latent_channels(painter.model, empty)
    noise = torch.cat([comfy.sample.prepare_noise(empty, seed) for seed in seeds])
    positive, negative = conditionings
    latents: Tensor = comfy.sample.sample(
        painter.model, noise, config.steps, config.cfg, painter.sampler_name, painter.scheduler,
        positive, negative, empty.repeat(len(seeds), 1, 1, 1), denoise=1.0, seed=seeds[0],
        callback=progress, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
    )  # fmt: skip
    return latents


class _Progress:
    """The node's bar over all pictures, with a preview of the first of each batch."""

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


def _picture(pixels: Tensor) -> Image.Image:
    """(H, W, 3) in 0..1 as a picture."""
    scaled = (pixels.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(scaled.numpy())
