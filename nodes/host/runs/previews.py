"""Previews: what the host's sampler makes of the modules while they train.

A clone of the MODEL gets the live denoiser in the place of its own, so there is no second copy of
the weights, and a preview is the picture that KSampler will give for the same prompt and seed. The
training's random numbers depend on nothing that happens here.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.utils
import torch
from PIL import Image, ImageDraw, PngImagePlugin
from torch import Tensor, nn

from ....trainers.errors import SaveError
from ....trainers.loop import Progress
from ....trainers.runs.files import whole_file
from ....trainers.settings.preview import PreviewConfig
from ....trainers.step import Job, evaluating
from ..memory import make_room
from ..models.text import conditioning_of
from ..models.training_mode import training_mode
from ..sampling import Sampling, conditioning, picture_of, sample

log = logging.getLogger(__name__)

SHOWN_PX = 512  # of the picture in the node while it runs
STRIP_PX = 192  # of each picture in the film strip
LABEL_PX = 16


class Previews:
    """The previews of one training.

    Args:
        sockets: what is wired into the node (model, clip, vae).
        folder: of the PNG files.
    """

    def __init__(self, config: PreviewConfig, sockets: Any, folder: Path) -> None:
        self._config, self._sockets, self._folder = config, sockets, folder
        self._how = Sampling(config.steps, config.cfg, config.sampler_name, config.scheduler)
        self._texts = {text: conditioning(sockets.clip, text) for text in [*config.lines, ""]}
        make_room()

    def after_step(self, job: Job, progress: Progress, bar: comfy.utils.ProgressBar) -> None:
        """Make the previews of this step if it has any; one without memory is told and skipped."""
        step, last = progress.step, progress.num_steps
        if not self._config.is_due(step, last):
            return
        try:
            with evaluating(job), training_mode(False):
                pictures = [self._picture(job, text) for text in self._config.lines]
        except torch.cuda.OutOfMemoryError:
            log.warning(
                "Personalize: there is too little memory for the preview of step %d; the training "
                "goes on without it. A smaller width and height need less.",
                step,
            )
            return
        finally:
            make_room()  # the clone gives the host's model its own denoiser back
        bar.update_absolute(step, last, ("JPEG", pictures[0], SHOWN_PX))
        for number, picture in enumerate(pictures):
            self._keep(picture, step, number)

    def _picture(self, job: Job, text: str) -> Image.Image:
        stride_px = self._sockets.vae.spacial_compression_encode()
        size = (self._config.height // stride_px, self._config.width // stride_px)
        conditionings = (self._text(job, text), self._text(job, ""))
        model = _live(self._sockets.model, job)
        latents = sample(model, self._how, conditionings, [self._config.seed], size)
        return picture_of(self._sockets.vae.decode(latents)[0])

    def _text(self, job: Job, text: str) -> Any:
        if job.encoded is not None:
            return self._texts[text]
        return conditioning_of(job.parts.text.encode(text))

    def _keep(self, picture: Image.Image, step: int, number: int) -> None:
        facts = PngImagePlugin.PngInfo()
        facts.add_itxt("prompt", self._config.lines[number])
        facts.add_text("step", str(step))
        facts.add_text("seed", str(self._config.seed))
        try:
            with whole_file(_file(self._folder, step, number)) as file:
                picture.save(file, "PNG", pnginfo=facts)
        except SaveError as error:
            log.warning("Personalize: the preview of step %d was not kept. %s", step, error)


def _file(folder: Path, step: int, row: int) -> Path:
    return folder / f"step_{step:08}_{row}.png"


def preview_steps(folder: Path, last: int) -> list[int]:
    """The steps up to `last` that have previews; a longer run may have left later ones."""
    steps = {int(file.stem.split("_")[1]) for file in folder.glob("step_*.png")}
    return sorted(step for step in steps if step <= last)


def film_strip(folder: Path, config: PreviewConfig, last: int) -> Image.Image | None:
    """All previews up to step `last`, a column for each step, a row for each prompt; or None."""
    steps = preview_steps(folder, last)
    if not steps:
        return None
    height_px = round(STRIP_PX * config.height / config.width)
    strip = Image.new(
        "RGB", (STRIP_PX * len(steps), LABEL_PX + height_px * len(config.lines)), "white"
    )
    draw = ImageDraw.Draw(strip)
    for column, step in enumerate(steps):
        left = STRIP_PX * column
        draw.text((left + 4, 2), f"step {step}", fill="black")
        for row in range(len(config.lines)):
            if (file := _file(folder, step, row)).exists():
                with Image.open(file) as picture:
                    small = picture.convert("RGB").resize((STRIP_PX, height_px))
                strip.paste(small, (left, LABEL_PX + height_px * row))
    return strip


class LiveDenoiser(nn.Module):
    """A training's denoiser as the host calls its own; it owns no weights."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = (job,)  # in a tuple, so that it is none of this module's modules
        self.dtype = job.parts.dtype

    def __getattr__(self, name: str) -> Any:
        (job,) = vars(self)["_job"]
        return getattr(job.parts.denoiser, name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        (job,) = self._job
        autocast = job.trainable.autocast
        with torch.autocast(job.parts.device.type, autocast, enabled=autocast is not None):
            predicted: Tensor = job.parts.denoiser(*args, **kwargs)
        return predicted


def _live(model: Any, job: Job) -> Any:
    """A clone of a MODEL around the denoiser that trains."""
    clone = model.clone()
    clone.patches = {}  # they are in the denoiser that trains
    clone.add_object_patch("diffusion_model", LiveDenoiser(job))
    clone.add_object_patch("manual_cast_dtype", None)
    return clone
