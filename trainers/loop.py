"""The training loop. It knows neither family nor method: batch, noise, predict, loss, step.

All it needs is in a Job; all it changes is the trainable parameters. Randomness of step s and
micro-batch m comes from (seed, s, m) alone, so any step can be made again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .batches import BatchPlan, by_shape
from .cache import Examples, batch_text, batch_tokens, stack_masks
from .config import RunConfig, TrainingConfig
from .contracts import Family, Parts, Text, Trainable
from .data import Dataset
from .errors import NonFiniteLossError
from .losses import batch_loss, sample_losses
from .methods import METHODS
from .noise import draw_noise, draw_timesteps, generator_for
from .optim import clip_gradients, make_optimizer, make_schedule
from .precision import computes_in, gradient_scaler
from .prior import put_taught, teach
from .validation import held_out_places, looks
from .validation_settings import BEST


@dataclass(frozen=True)
class Job:
    """One training, ready to go.

    Attributes:
        encoded: the encoding of every caption and of "", or None where the text encoder trains.
        prompts: what trains each caption of the instance images; see Trainable.
        held_out: pictures that are not trained but watched.
    """

    parts: Parts
    family: Family
    trainable: Trainable
    examples: Examples
    encoded: dict[str, Text] | None
    config: RunConfig
    prompts: dict[str, tuple[str, ...]]
    held_out: Examples | None = None


@dataclass(frozen=True)
class Progress:
    """What one optimizer step came to.

    Attributes:
        validation: the loss of the held-out pictures after it, if they were looked at.
    """

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    validation: float | None = None

    def as_row(self) -> dict[str, Any]:
        """As metrics.jsonl has it."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


@dataclass(frozen=True)
class Best:
    """Where the held-out pictures had their lowest loss, and what was learned by then.

    Attributes:
        looks: how many looks there were since.
        tensors: as `Trainable.export` gave them, copied; and learned tokens: all None unless the
            run hands out its best step.
    """

    step: int
    loss: float
    looks: int
    tensors: dict[str, Tensor] | None
    tokens: dict[str, dict[str, Tensor]] | None


def make_job(
    parts: Parts,
    family: Family,
    examples: Examples,
    encoded: dict[str, Text] | None,
    config: RunConfig,
    held_out: Examples | None = None,
) -> Job:
    """Let the run's method prepare `parts` for training; see Job."""
    trainable = METHODS[config.method](parts, family, config)
    for module in parts.modules.values():
        module.train()
        if config.training.gradient_checkpointing:
            family.checkpoint(module)
    watched = held_out.captions if held_out else ()
    prompts = trainable.prompts([*examples.captions[: examples.num_instances], *watched])
    return Job(parts, family, trainable, examples, encoded, config, prompts, held_out)


def taught_job(job: Job, report: Callable[[int, int], None] = lambda done, total: None) -> Job:
    """The job with class samples from its own, still untrained model; see trainers.prior.

    Args:
        report: called after each sample with how many are done, of how many.
    """
    job.parts.denoiser.eval()  # no dropout: a method that adds some has changed nothing else yet
    examples = teach(
        lambda noisy, timesteps, captions: _predict(job, noisy, timesteps, captions),
        job.parts.objective,
        job.examples,
        job.config.objective,
        job.config.training.seed,
        report,
    )
    job.parts.denoiser.train()
    return dataclasses.replace(job, examples=examples)


def batch_plan(examples: Examples, training: TrainingConfig) -> BatchPlan:
    """The order in which `examples` are visited."""
    num = examples.num_instances
    return BatchPlan(
        examples.shapes[:num],
        examples.repeats[:num],
        training.batch_size,
        training.seed,
        class_repeats=examples.repeats[num:],
    )


def planned_steps(dataset: Dataset, config: RunConfig) -> int:
    """Optimizer steps of a run on `dataset`, before any picture is encoded."""
    training = config.training
    away = held_out_places(len(dataset), config.validation.held_out, training.seed)
    trained = [picture for place, picture in enumerate(dataset.pictures) if place not in away]
    shapes = tuple(picture.bucket_px for picture in trained)
    repeats = tuple(picture.repeats for picture in trained)
    return num_steps(BatchPlan(shapes, repeats, training.batch_size, training.seed), training)


def num_steps(plan: BatchPlan, training: TrainingConfig) -> int:
    """Optimizer steps of the run: `steps`, or enough for `epochs` where those are set."""
    if not training.epochs:
        return training.steps
    return math.ceil(training.epochs * plan.batches_per_epoch / training.gradient_accumulation)


class Training:
    """A job under way: step by step, with a state between two steps that can be kept.

    Whoever goes on from `state` gets the same numbers, bit for bit on one machine, as one who was
    never stopped.

    Attributes:
        done: optimizer steps so far.
        total: optimizer steps of the whole run.
        best: the best step so far, if pictures are held out.
    """

    def __init__(self, job: Job) -> None:
        training, trainable = job.config.training, job.trainable
        self._job = job
        self._plan = batch_plan(job.examples, training)
        self.done, self.total = 0, num_steps(self._plan, training)
        self._optimizer = make_optimizer(trainable.param_groups, training, trainable.fused_backward)
        self._schedule = make_schedule(self._optimizer, training, self.total)
        dtype = trainable.autocast or computes_in(job.parts.denoiser)
        self._scaler = gradient_scaler(dtype, job.parts.device)
        self.best: Best | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return self._job.trainable.parameters

    def step(self) -> Progress:
        """One optimizer step.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        with _private_random_state(self._job.parts.device):
            loss = self._backward()
            _require_finite(loss, self.done + 1)
            grad_norm, learning_rate = self._update()
        self.done += 1
        validation = self._look()
        return Progress(self.done, self.total, loss, learning_rate, grad_norm, validation)

    @property
    def has_ended(self) -> bool:
        """Whether all steps are done, or patience is at its end."""
        patience = self._job.config.validation.patience
        tired = patience and self.best is not None and self.best.looks >= patience
        return self.done >= self.total or bool(tired)

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs; its tensors are those of the training, not copies."""
        trainable = self._job.trainable
        return {
            "step": self.done,
            "parameters": [parameter.detach() for parameter in trainable.parameters],
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "method": trainable.state(),
            "best": vars(self.best) if self.best else None,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave in a training of the same job."""
        trainable = self._job.trainable
        with torch.no_grad():
            for parameter, kept in zip(trainable.parameters, state["parameters"], strict=True):
                parameter.copy_(kept)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        trainable.load_state(state["method"])
        self.best = Best(**state["best"]) if state["best"] else None
        self.done = state["step"]

    def _look(self) -> float | None:
        """The loss of the held-out pictures, if it is time for it; the best step is remembered."""
        job, settings = self._job, self._job.config.validation
        due = self.done % settings.validate_every == 0 or self.done == self.total
        if job.held_out is None or not due:
            return None
        loss = validation_loss(job)
        if self.best is not None and loss >= self.best.loss:
            self.best = dataclasses.replace(self.best, looks=self.best.looks + 1)
        else:
            tensors = tokens = None
            if settings.hand_out == BEST:
                tensors = {name: t.clone() for name, t in job.trainable.export().items()}
                tokens = job.trainable.tokens()
            self.best = Best(self.done, loss, 0, tensors, tokens)
        return loss

    def _backward(self) -> float:
        """Gradients of one step in the parameters; its loss."""
        job, trainable = self._job, self._job.trainable
        total_loss = torch.zeros((), device=job.parts.device)
        micro_batches = self._plan.step(self.done, job.config.training.gradient_accumulation)
        num_instances = sum(self._plan.num_instances(pictures) for pictures in micro_batches)
        for micro, pictures in enumerate(micro_batches):
            part = batch_loss(*_losses_and_weights(job, pictures, self.done, micro), num_instances)
            if trainable.fused_backward:  # the update is in the backward pass
                _require_finite(part.item(), self.done + 1)
            self._scaler.scale(part).backward()  # type: ignore[no-untyped-call]
            total_loss += part.detach()
        return total_loss.item()

    def _update(self) -> tuple[float, float]:
        """Use the gradients up; their length before clipping, and the learning rate."""
        training, trainable = self._job.config.training, self._job.trainable
        self._scaler.unscale_(self._optimizer)
        grad_norm = clip_gradients(self._optimizer, trainable.parameters, training.max_grad_norm)
        learning_rate = float(self._schedule.get_last_lr()[0])
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        trainable.after_step()
        return grad_norm.item(), learning_rate


@contextmanager
def evaluating(job: Job) -> Iterator[None]:
    """No gradients and no dropout inside; training goes on after it."""
    training = [module for module in job.parts.modules.values() if module.training]
    for module in training:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.train()


def validation_loss(job: Job) -> float:
    """The mean loss of the held-out pictures; see trainers.validation."""
    examples, parts, objective = job.held_out, job.parts, job.config.objective
    assert examples is not None
    losses = []
    lowest, highest = objective.timestep_min, objective.timestep_max
    with evaluating(job):
        for picture, noise, timestep in looks(examples, lowest, highest, job.config.training.seed):
            latents = examples.latents[picture][None]
            mask = stack_masks([examples.masks[picture]], latents)
            latents, noise, timestep = (x.to(parts.device) for x in (latents, noise, timestep))
            noisy = parts.objective.add_noise(latents, noise, timestep)
            # The last of a caption's prompts is the caption itself.
            prompt = job.prompts[examples.captions[picture]][-1]
            prediction = _predict(job, noisy, timestep, [prompt])
            target = parts.objective.target(latents, noise, timestep)
            mask = None if mask is None else mask.to(parts.device)
            losses.append(sample_losses(prediction, target, mask).item())
    return sum(losses) / len(losses)


def train(job: Job, report: Callable[[Progress], None] = lambda progress: None) -> list[float]:
    """Train from the first to the last step and return the loss of every step.

    Args:
        report: called after every step; what it raises ends the run.

    Raises:
        NonFiniteLossError: at the first loss that is NaN or infinite.
    """
    training = Training(job)
    losses = []
    while not training.has_ended:
        progress = training.step()
        losses.append(progress.loss)
        report(progress)
    return losses


def _losses_and_weights(
    job: Job, pictures: list[int], step: int, micro: int
) -> tuple[Tensor, Tensor]:
    """Loss and weight of each sample of one micro-batch, both (B,) fp32."""
    seed = job.config.training.seed
    generator = generator_for(seed, step, micro)
    _seed_layers(job.parts.device, generator_for(seed, "layers", step, micro).initial_seed())
    # One batch, unless class images have another shape than the instance images they go with.
    groups = [
        _same_shape(job, group, generator) for group in by_shape(pictures, job.examples.shapes)
    ]
    losses, weights = zip(*groups, strict=True)
    return torch.cat(losses), torch.cat(weights)


def _same_shape(job: Job, pictures: list[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Loss and weight of each of some pictures of one shape, both (B,) fp32."""
    examples, parts, objective = job.examples, job.parts, job.config.objective
    latents = torch.stack([examples.latents[picture] for picture in pictures])
    mask = stack_masks([examples.masks[picture] for picture in pictures], latents)
    noise = draw_noise(latents.shape, generator, objective.noise_offset)
    lowest, highest = objective.timestep_min, objective.timestep_max
    timesteps = draw_timesteps(len(pictures), generator, lowest, highest)
    dropped = torch.rand(len(pictures), generator=generator) < objective.caption_dropout
    captions = [
        "" if drop and picture not in examples.taught else _prompt(job, picture, generator)
        for picture, drop in zip(pictures, dropped, strict=True)
    ]

    latents, noise, timesteps = (x.to(parts.device) for x in (latents, noise, timesteps))
    noisy = parts.objective.add_noise(latents, noise, timesteps)
    target = parts.objective.target(latents, noise, timesteps)
    put_taught(examples, pictures, noisy, timesteps, target)
    prediction = _predict(job, noisy, timesteps, captions)
    losses = sample_losses(prediction, target, None if mask is None else mask.to(parts.device))
    is_class = torch.tensor([picture >= examples.num_instances for picture in pictures])
    weights = torch.where(is_class, objective.prior_weight, 1.0).to(losses)
    if objective.min_snr_gamma:
        weights *= parts.objective.min_snr_weight(timesteps, objective.min_snr_gamma)
    return losses, weights


def _predict(job: Job, noisy: Tensor, timesteps: Tensor, captions: list[str]) -> Tensor:
    """What the denoiser predicts as it is now, (B, C, h, w)."""
    parts, autocast = job.parts, job.trainable.autocast
    with torch.autocast(parts.device.type, autocast, enabled=autocast is not None):
        text = _encode(job, captions)
        return job.family.predict(
            parts.denoiser, noisy.to(parts.device), timesteps.to(parts.device), text
        )


def _prompt(job: Job, picture: int, generator: torch.Generator) -> str:
    caption = job.examples.captions[picture]
    if picture >= job.examples.num_instances:
        return caption
    choices = job.prompts[caption]
    if len(choices) == 1:
        return choices[0]
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def _encode(job: Job, captions: list[str]) -> Text:
    if job.encoded is None:
        return job.family.encode_text(job.parts, batch_tokens(job.parts, captions))
    cached = batch_text(job.encoded, captions)
    return {name: tensor.to(job.parts.device) for name, tensor in cached.items()}


def _seed_layers(device: torch.device, seed: int) -> None:
    # Dropout draws from the global generators of its device; those of others are left alone.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def _private_random_state(device: torch.device) -> Iterator[None]:
    # Layers with dropout draw from the global generators; whoever called us keeps theirs.
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise NonFiniteLossError(
            f"Training: the loss is {loss} at step {step}; it must be a finite number.\n"
            "Lower learning_rate (or use precision fp32), then queue again."
        )
