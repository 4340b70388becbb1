"""Previews: what the host's sampler makes of the modules while they train.

A clone of the MODEL gets the live denoiser in the place of its own, so there is no second copy of
the weights, and a preview is the picture that KSampler will give for the same prompt and seed. The
training's random numbers depend on nothing that happens here. An edit model is shown the control
images that Preview Settings has.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor, nn

from ....trainers.contracts import REFERENCES, Controls, Prompt, prompt_of
from ....trainers.data.beside.controls import given_control
from ....trainers.errors import SaveError
from ....trainers.loop import Progress
from ....trainers.models.architectures import Architecture
from ....trainers.optimizers.processes import Processes
from ....trainers.runs.files import whole_file
from ....trainers.settings.preview import PreviewConfig
from ....trainers.step import Job, evaluating
from ..memory import make_room
from ..models.text import conditioning_of, conditioning_with
from ..models.training_mode import training_mode, uninterrupted
from ..models.vae import encoder_of
from ..sampling import Sampling, conditioning, decoded, picture_of, sample
from .inputs import Sockets

log = logging.getLogger(__name__)


class Previews:
    """The previews of one training.

    Args:
        sockets: what is wired into the node (model, clip, vae).
        architecture: of the model.
        folder: of the PNG files.
        processes: those that make them together; the first one keeps them.
    """

    def __init__(
        self,
        config: PreviewConfig,
        sockets: Sockets,
        architecture: Architecture,
        folder: Path,
        processes: Processes,
    ) -> None:
        self._config, self._sockets, self._folder = config, sockets, folder
        self._processes = processes
        self._architecture = architecture
        self._how = Sampling(config.steps, config.cfg, config.sampler_name, config.scheduler)
        stride_px = sockets.vae.spacial_compression_encode()
        self._size = config.height // stride_px, config.width // stride_px  # in latents
        self._controls = [self._shown(line) for line in range(len(config.lines))]
        prompts = [prompt for line in range(len(config.lines)) for prompt in self._prompts(line)]
        with torch.no_grad():  # the weights of the host's own modules take no part in autograd
            self._texts = {prompt: self._conditioning(prompt) for prompt in prompts}
        make_room()

    def _shown(self, line: int) -> Controls | None:
        """The control images of a prompt, sized beside the preview as in training."""
        config, sockets = self._config, self._sockets
        images = config.controls_of(line, sockets.num_controls)
        if not images:
            return None
        size_px = config.width, config.height
        made = [given_control(n, image, size_px, size_px) for n, image in enumerate(images, 1)]
        pixels = tuple(one.source.pixels(one.size_px)[None] for one in made)
        latents = tuple(map(encoder_of(sockets.vae), pixels))
        return Controls(latents, lambda: pixels)

    def _prompts(self, line: int) -> tuple[Prompt, Prompt]:
        """What is read for a prompt, and for the empty one beside it."""
        controls = self._controls[line]
        positive, negative = (
            prompt_of(text, controls, self._architecture) for text in (self._config.lines[line], "")
        )
        return positive, negative

    def _conditioning(self, prompt: Prompt) -> Any:
        if isinstance(prompt, str):
            return conditioning(self._sockets.clip, prompt)
        return conditioning_with(self._sockets.clip, prompt, self._architecture.control_encoder)

    def after_step(self, job: Job, progress: Progress) -> bool:
        """Make the previews of this step if it has any; one without memory is told and skipped.

        Returns:
            Whether there are new ones.
        """
        step = progress.step
        if not self._config.is_due(step, progress.num_steps):
            return False
        try:
            # Where blocks are put together by all, none may end in the middle: they ask later.
            with evaluating(job), training_mode(False), uninterrupted(self._processes.shard):
                pictures = [self._picture(job, line) for line in range(len(self._config.lines))]
        except torch.cuda.OutOfMemoryError:
            if self._processes.shard:
                raise  # the others wait for this one
            log.warning(
                "Personalize: there is too little memory for the preview of step %d; the training "
                "goes on without it. A smaller width and height need less.",
                step,
            )
            return False
        finally:
            make_room()  # the clone gives the host's model its own denoiser back
        if self._processes.is_first:
            for number, picture in enumerate(pictures):
                self._keep(picture, step, number)
        return True

    def _picture(self, job: Job, line: int) -> Image.Image:
        positive, negative = (self._told(job, line, prompt) for prompt in self._prompts(line))
        model = _live(self._sockets.model, job)
        told = positive, negative
        latents = sample(model, self._how, told, [self._config.seed], self._size)
        return picture_of(decoded(self._sockets.vae, latents)[0])

    def _told(self, job: Job, line: int, prompt: Prompt) -> Any:
        """A prompt's CONDITIONING with its control images, as Set Reference Latent makes it."""
        made = self._texts[prompt]
        if job.encoded is None:
            made = conditioning_of(job.parts.text.encode(prompt))
        if (controls := self._controls[line]) is None:
            return made
        return [[text, {**facts, REFERENCES: list(controls.latents)}] for text, facts in made]

    def _keep(self, picture: Image.Image, step: int, number: int) -> None:
        facts = PngImagePlugin.PngInfo()
        facts.add_itxt("prompt", self._config.lines[number])
        facts.add_text("step", str(step))
        facts.add_text("seed", str(self._config.seed))
        try:
            with whole_file(self._folder / f"step_{step:08}_{number}.png") as file:
                picture.save(file, "PNG", pnginfo=facts)
        except SaveError as error:
            log.warning("Personalize: the preview of step %d was not kept. %s", step, error)


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
        keeps = not job.processes.shard
        with torch.autocast(job.parts.device.type, autocast, autocast is not None, keeps):
            predicted: Tensor = job.parts.denoiser(*args, **kwargs)
        return predicted


def _live(model: Any, job: Job) -> Any:
    """A clone of a MODEL around the denoiser that trains."""
    clone = model.clone()
    clone.patches = {}  # they are in the denoiser that trains
    clone.add_object_patch("diffusion_model", LiveDenoiser(job))
    clone.add_object_patch("manual_cast_dtype", None)
    if job.processes.shard:  # as many passes in each process, whatever room it has
        clone.get_free_memory = lambda device: 0
    return clone
