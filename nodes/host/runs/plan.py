"""What a run's steps will hold in memory: its own job, gone through on fake tensors.

The host's modules are copied without their weights, and the trainer makes its twins of those. No
weight is read, nothing is computed, and nothing of the host's is changed.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import NamedTuple

import comfy.model_management
import torch
from torch import Tensor

from ....trainers.contracts import Controls, Prompt, Text, prompt_of
from ....trainers.data.batches import BatchPlan
from ....trainers.data.captions import one_line
from ....trainers.data.dataset import Picture
from ....trainers.data.examples import Examples, size_of
from ....trainers.data.validation import held_out_places
from ....trainers.errors import PersonalizeError
from ....trainers.loop import Training, make_job, with_teacher
from ....trainers.models.fitting import NoPlanError
from ....trainers.models.memory import Alive, Kind, Pretence, StepMemory, step_memory
from ....trainers.objective.prompts import caption_prompts
from ....trainers.settings.run import RunConfig
from ....trainers.settings.validation import ValidationConfig
from ....trainers.step import Job
from ..memory import device
from ..models.parts import parts_of, placements
from ..models.stored.quantized import inner_tensors
from ..models.text import HostText
from ..models.training_mode import replaced, training_mode
from ..models.twin import hollow
from ..models.vae import scaler_of
from .run import Run

MOST_PASSES = 2  # of those summed into an update: more of them hold no more
MUCH = 1 << 60  # bytes
MOST_CHARACTERS = 120


# What a step on fake tensors may end in where a module looks at numbers, or calls what torch does
# not know, and of which the real step knows nothing.
NOT_PRETENDED = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    AssertionError,
)  # fmt: skip


class Shown(NamedTuple):
    """Pictures of one size that a step is shown.

    Attributes:
        picture: whose size is theirs.
        texts: the longest of their captions, the longest first.
    """

    picture: Picture
    texts: tuple[str, ...]
    number: int


class Largest(NamedTuple):
    """What the heaviest step of a run is shown: as many class images, if there are any."""

    instances: Shown
    classes: Shown | None

    def pixels(self, least: int = 0) -> int:
        """Of all that the denoiser is shown at once, where each picture counts `least` or more."""
        shown = (one for one in self if one is not None)
        return sum(max(_weight(one.picture), least) * one.number for one in shown)


def plan_memory(run: Run, largest: Largest | None = None) -> StepMemory:
    """What the heaviest step of a run will hold on the host's device.

    Args:
        largest: what that is shown, if it is not what the run's own is.

    Raises:
        NoPlanError: it cannot be told.
        PersonalizeError: what the training itself would refuse.
    """
    try:
        return _planned(run, largest or largest_step(run))
    except PersonalizeError:
        raise
    except NOT_PRETENDED as error:
        first_line = str(error).partition("\n")[0][:MOST_CHARACTERS]
        raise NoPlanError(f"{type(error).__name__}: {first_line}") from error


def free_bytes() -> int:
    """What the host's device has free, as the host counts it."""
    return int(comfy.model_management.get_free_memory(device()))


def largest_step(run: Run) -> Largest:
    """The instance images of the largest batch, with the longest captions; and class images."""
    sockets, config = run.sockets, run.config
    pictures, seed = sockets.dataset.pictures, config.training.seed
    away = held_out_places(len(pictures), config.validation.held_out, seed)
    trained = [one for place, one in enumerate(pictures) if place not in away]
    plan = BatchPlan(
        tuple(one.bucket_px for one in trained), tuple(one.repeats for one in trained),
        config.training.batch_size, seed,
    )  # fmt: skip
    batch = plan.heaviest_batch([_weight(one) for one in trained])
    told = caption_prompts((one.caption for one in trained), config.objective, seed)
    texts = [text for several in told.values() for text in several]
    instances = Shown(trained[batch[0]], _longest(texts, len(batch)), len(batch))
    if sockets.class_dataset is None:
        return Largest(instances, None)
    others = sockets.class_dataset.pictures
    texts = [one_line(one.caption) for one in others]
    classes = Shown(max(others, key=_weight), _longest(texts, len(batch)), len(batch))
    return Largest(instances, classes)


def _longest(texts: list[str], number: int) -> tuple[str, ...]:
    return tuple(sorted(dict.fromkeys(texts), key=len, reverse=True)[:number])


def _planned(run: Run, largest: Largest) -> StepMemory:
    pretence = Pretence(device())
    with torch.inference_mode(False), torch.enable_grad(), training_mode():
        bare = _Bare(run, pretence)
        with pretence.watched(), torch.no_grad():
            examples = bare.examples(largest)
            encoded = None if run.config.own.trains_text else bare.encoded(examples)
        with pretence.watched() as alive:
            bare.leave_out(alive)
            job = bare.job(examples, encoded)
            modules = job.parts.modules.values()
            trained, apart = job.trainable.parameters, device().type != "cpu"
            return step_memory(alive, modules, trained, lambda: Training(job), apart)


class _Bare:
    """A run whose base has no weights.

    Args:
        pretence: where tensors are fake.
    """

    def __init__(self, run: Run, pretence: Pretence) -> None:
        self._run, like = run, pretence.like
        sockets = run.sockets
        base = copy.copy(sockets.model.model)
        children = {name: hollow(child, like) for name, child in base.named_children()}
        vars(base).update(_modules=children)
        objects = {"model_sampling": hollow(sockets.model.get_model_object("model_sampling"), like)}
        self._model = SimpleNamespace(
            model=base, patches=sockets.model.patches, get_model_object=objects.__getitem__
        )
        self._clip = copy.copy(sockets.clip)
        self._clip.cond_stage_model = hollow(sockets.clip.cond_stage_model, like)
        self._vae = copy.copy(sockets.vae)
        self._vae.first_stage_model = hollow(sockets.vae.first_stage_model, like)
        self._vae.patcher = SimpleNamespace(get_free_memory=lambda device: MUCH)

    def leave_out(self, alive: Alive) -> None:
        """The host's own weights are not the training's, but for those that twins share."""
        for module in (self._model.model.diffusion_model, self._clip.cond_stage_model):
            for weight in (*module.parameters(), *module.buffers()):
                for tensor in inner_tensors(weight):
                    alive.count(tensor, Kind.BEFORE)

    def examples(self, largest: Largest) -> Examples:
        """What a step is shown, without numbers."""
        instances, classes = largest
        made = self._alike(*instances)
        return made if classes is None else made.with_class_images(self._alike(*classes))

    def encoded(self, examples: Examples) -> Mapping[Prompt, Text]:
        """What any prompt becomes: what the longest one does."""
        record = self._run.architecture
        encoders = self._clip.cond_stage_model
        text = HostText(self._clip, encoders, torch.device("cpu"), record.control_encoder)
        prompts = [*examples.captions, self._run.config.objective.class_prompt]
        longest = max(prompts, key=len)
        made = text.encode(prompt_of(longest, examples.controls.get(0), record))
        return defaultdict(lambda: made)

    def job(self, examples: Examples, encoded: Mapping[Prompt, Text] | None) -> Job:
        """The run's own job on these; all its batches are alike."""
        config = of_two_steps(self._run.config, examples.num_instances)
        denoiser, text = placements(config)
        placed = text if encoded is None else None
        parts = parts_of(self._model, self._clip, self._run.architecture, denoiser, placed)
        job = _of_different_prompts(make_job(parts, examples, encoded, config))
        return with_teacher(job) if config.objective.uses_teacher else job

    def _alike(self, picture: Picture, texts: tuple[str, ...], number: int) -> Examples:
        """So many pictures of the same size, with these captions."""
        width, height = picture.bucket_px
        latents = scaler_of(self._model)(self._latents(height, width))[0].float().cpu()
        controls = {}
        if picture.controls:
            sizes = [one.size_px[::-1] for one in picture.controls]
            kept = tuple(self._latents(*size).float().cpu() for size in sizes)
            shown = Controls(kept, lambda: tuple(torch.zeros(1, *size, 3) for size in sizes))
            controls = dict.fromkeys(range(number), shown)
        captions = tuple(texts[place % len(texts)] for place in range(number))
        sizes_px = (size_of(picture),) * number
        return Examples(
            (latents,) * number, (None,) * number, captions, sizes_px, (1,) * number,
            controls=controls,
        )  # fmt: skip

    def _latents(self, height_px: int, width_px: int) -> Tensor:
        with replaced(comfy.model_management, load_models_gpu=lambda *args, **kwargs: None):
            latents: Tensor = self._vae.encode(torch.zeros(1, height_px, width_px, 3))
        return latents


def of_two_steps(config: RunConfig, num_instances: int) -> RunConfig:
    """The same with as few steps as hold as much."""
    training = dataclasses.replace(
        config.training,
        steps=2,
        epochs=0,
        batch_size=num_instances,
        gradient_accumulation=min(config.training.gradient_accumulation, MOST_PASSES),
        compile=False,  # it would compile on fake tensors; what it saves is not counted
    )
    objective = dataclasses.replace(
        config.objective, prior_samples=min(config.objective.prior_samples, 1)
    )
    return dataclasses.replace(
        config, training=training, objective=objective, validation=ValidationConfig()
    )


def _of_different_prompts(job: Job) -> Job:
    """The job whose samples have the longest of its prompts, each another where there are enough.

    A text encoder that trains reads each of a batch's prompts once.
    """
    token = getattr(job.config.own, "token", "").lower()
    texts = list(dict.fromkeys(text for several in job.prompts.values() for text in several))
    texts.sort(key=lambda text: (token in text.lower(), len(text)), reverse=True)
    number = job.examples.num_instances
    prompts: dict[str, tuple[str, ...]] = {
        str(place): (texts[place % len(texts)],) for place in range(number)
    }
    captions = (*prompts, *job.examples.captions[number:])
    examples = dataclasses.replace(job.examples, captions=captions)
    return dataclasses.replace(job, examples=examples, prompts=prompts)


def _weight(picture: Picture) -> int:
    """As many pixels as the denoiser is shown of a picture."""
    sizes = [picture.bucket_px, *(control.size_px for control in picture.controls)]
    return sum(width * height for width, height in sizes)
