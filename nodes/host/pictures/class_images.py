"""Makes class images with the host's own sampler: those that are missing, in batches.

Several processes that train together make a share each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....trainers.data.dataset import Dataset
from ....trainers.models.architectures import Architecture
from ....trainers.optimizers.processes import joined
from ....trainers.runs.pictures.class_images import ClassFolder
from ....trainers.settings.class_images import ClassImagesConfig
from ..folders import runs_folder
from ..memory import cancel_together, check_interrupt
from ..models.stored.identity import clip_fingerprint, model_fingerprint, vae_fingerprint
from ..models.support import check_clip, check_model
from ..runs.base import known_files
from ..sampling import PictureProgress, Sampling, conditioning, decoded, picture_of, sample

# Settings that decide what a picture is.
DECISIVE = ("prompt", "negative_prompt", "width", "height", "steps", "cfg")


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
        ProcessesError: another process that makes some of them ended.
    """
    architecture = check_model(painter.model)
    check_clip(painter.clip, painter.model)
    key = _key(painter, config, architecture)
    folder = ClassFolder.open(runs_folder() / "class_images", config.prompt, key)
    processes = joined()
    share = folder.share(config, processes)
    with cancel_together(processes):
        if share:
            _make(painter, config, folder, share)
    folder.wait(config.seeds, processes)
    return folder.dataset(config, known_files())


def _key(painter: Painter, config: ClassImagesConfig, architecture: Architecture) -> dict[str, Any]:
    """All that decides what the pictures are, but for their seeds."""
    prompts = (config.prompt, config.negative_prompt)
    return {
        "model": model_fingerprint(painter.model),
        "clip": clip_fingerprint(painter.clip, architecture, prompts),
        "vae": vae_fingerprint(painter.vae),
        **{name: getattr(config, name) for name in DECISIVE},
        "sampler_name": painter.sampler_name,
        "scheduler": painter.scheduler,
    }


def _make(
    painter: Painter, config: ClassImagesConfig, folder: ClassFolder, batches: list[list[int]]
) -> None:
    conditionings = (
        conditioning(painter.clip, config.prompt),
        conditioning(painter.clip, config.negative_prompt),
    )
    how = Sampling(config.steps, config.cfg, painter.sampler_name, painter.scheduler)
    stride_px = painter.vae.spacial_compression_encode()
    size = (config.height // stride_px, config.width // stride_px)
    progress = PictureProgress(painter.model, sum(map(len, batches)), config.steps)
    for batch in batches:
        check_interrupt()
        # Another graph or host may be making the same ones.
        if todo := [seed for seed in batch if not folder.file(seed).exists()]:
            latents = sample(painter.model, how, conditionings, todo, size, progress)
            for seed, pixels in zip(todo, decoded(painter.vae, latents), strict=True):
                folder.write(seed, picture_of(pixels))
        progress.pictures_done += len(batch)
