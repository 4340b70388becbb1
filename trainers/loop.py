"""The training loop. It knows neither family nor method: batch, noise, predict, loss, step.

All it needs is in a Job; all it changes is the trainable parameters. Randomness of step s and
micro-batch m comes from (seed, s, m) alone, so any step can be made again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .batches import BatchPlan, by_shape
from .cache import Examples, batch_text, batch_tokens, stack_masks
from .config import RunConfig, TrainingConfig
from .contracts import Family, Parts, Text, Trainable
from .errors import NonFiniteLossError
from .losses import batch_loss, sample_losses
from .methods import METHODS
from .noise import draw_noise, draw_timesteps, generator_for
from .optim import clip_gradients, make_optimizer, make_schedule
from .precision import computes_in, gradient_scaler
from .prior import put_taught, teach


@dataclass(frozen=True)
class Job:
    """One training, ready to go.

    Attributes:
        encoded: the encoding of every caption and of "", or None where the text encoder trains.
        prompts: what trains each caption of the instance images; see Trainable.
    """

    parts: Parts
    family: Family
    trainable: Trainable
    examples: Examples
    encoded: dict[str, Text] | None
    config: RunConfig
    prompts: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Progress:
    """What one optimizer step came to."""

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    grad_norm: float


def make_job(
    parts: Parts,
    family: Family,
    examples: Examples,
    encoded: dict[str, Text] | None,
    config: RunConfig,
) -> Job:
    """Let the run's method prepare `parts` for training; see Job."""
    trainable = METHODS[config.method](parts, family, config)
    for module in parts.modules.values():
        module.train()
        if config.training.gradient_checkpointing:
            family.checkpoint(module)
    prompts = trainable.prompts(examples.captions[: examples.num_instances])
    return Job(parts, family, trainable, examples, encoded, config, prompts)


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


def num_steps(plan: BatchPlan, training: TrainingConfig) -> int:
    """Optimizer steps of the run: `steps`, or enough for `epochs` where those are set."""
    if not training.epochs:
        return training.steps
    return math.ceil(training.epochs * plan.batches_per_epoch / training.gradient_accumulation)


def train(job: Job, report: Callable[[Progress], None] = lambda progress: None) -> list[float]:
    """Train until the last step and return the loss of every step.

    Args:
        report: called after every step; what it raises ends the run.

    Raises:
        NonFiniteLossError: at the first loss that is NaN or infinite.
    """
    training, trainable = job.config.training, job.trainable
    plan = batch_plan(job.examples, training)
    total = num_steps(plan, training)
    optimizer = make_optimizer(trainable.param_groups, training, trainable.fused_backward)
    schedule = make_schedule(optimizer, training, total)
    dtype = trainable.autocast or computes_in(job.parts.denoiser)
    scaler = gradient_scaler(dtype, job.parts.device)
    history: list[float] = []

    with _private_random_state(job.parts.device):
        for step in range(total):
            total_loss = torch.zeros((), device=job.parts.device)
            micro_batches = plan.step(step, training.gradient_accumulation)
            num_instances = sum(plan.num_instances(pictures) for pictures in micro_batches)
            for micro, pictures in enumerate(micro_batches):
                part = batch_loss(*_losses_and_weights(job, pictures, step, micro), num_instances)
                if trainable.fused_backward:  # the update is in the backward pass
                    _require_finite(part.item(), step + 1)
                scaler.scale(part).backward()  # type: ignore[no-untyped-call]
                total_loss += part.detach()
            loss = total_loss.item()
            _require_finite(loss, step + 1)
            scaler.unscale_(optimizer)
            grad_norm = clip_gradients(optimizer, trainable.parameters, training.max_grad_norm)
            learning_rate = schedule.get_last_lr()[0]
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            trainable.after_step()
            history.append(loss)
            report(Progress(step + 1, total, loss, float(learning_rate), grad_norm.item()))
    return history


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
