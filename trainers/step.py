"""One training as a record, and what a step is made of: batches to losses, captions to prompts.

trainers.loop puts them in order. Letters in shapes: B samples, C latent channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .contracts import REFERENCES, Parts, Prompt, Text, Trainable, prompt_of
from .data.batches import Share, by_shape
from .data.examples import Examples, Shown, stack_masks
from .data.prior import put_teacher_samples
from .data.validation import NUM_TIMESTEPS, held_out_samples
from .methods.adapters.pissa import starts
from .models.architectures import Architecture
from .models.checkpointing import checkpoint_blocks, guard_adapters
from .models.streaming import stream_blocks
from .models.tread import Router
from .objective.losses import sample_losses
from .objective.noise import draw_noise, generator_for, sent
from .objective.prompts import caption_prompts
from .objective.timesteps import draw_timesteps, even_timesteps
from .optimizers.processes import ALONE, Processes
from .settings.memory import RAM
from .settings.objective import ObjectiveConfig
from .settings.run import RunConfig

ADAPTER_DROPOUT = "lora_dropout"  # peft's name


@dataclass(frozen=True)
class Job:
    """One training, ready to go.

    Attributes:
        encoded: the encoding of every caption and of "", or None where the text encoder trains;
            see prompt_of.
        prompts: what trains each caption of the instance images; see Trainable.
        held_out: pictures that are not trained but watched.
        processes: those that train it together, all with the same job.
        router: lets tokens skip the denoiser's middle blocks; None where none do.
    """

    parts: Parts
    trainable: Trainable
    examples: Examples
    encoded: Mapping[Prompt, Text] | None
    config: RunConfig
    prompts: dict[str, tuple[str, ...]]
    held_out: Examples | None = None
    processes: Processes = ALONE
    router: Router | None = None


def all_prompts(
    examples: Iterable[Examples], settings: ObjectiveConfig, architecture: Architecture, seed: int
) -> list[Prompt]:
    """All that text encoders read in a run without templates, for what trains and is watched."""
    prompts: list[Prompt] = []
    for pictures in examples:
        instances = pictures.captions[: pictures.num_instances]
        told = caption_prompts(instances, settings, seed)
        for place, caption in enumerate(pictures.captions):
            texts = told[caption] if place < len(instances) else (caption,)
            controls = pictures.controls.get(place)
            prompts += [
                prompt_of(text, controls, architecture)
                for text in (*texts, "", settings.class_prompt)
            ]
    return list(dict.fromkeys(prompts))


def trained_prompts(
    trainable: Trainable, examples: Examples, held_out: Examples | None, config: RunConfig
) -> dict[str, tuple[str, ...]]:
    """What trains each caption of the instance images, and of those watched; see Trainable."""
    instances = examples.captions[: examples.num_instances]
    watched = held_out.captions if held_out is not None else ()
    varied = caption_prompts([*instances, *watched], config.objective, config.training.seed)
    # Those that train must be able to without those watched.
    trainable.prompts([text for caption in instances for text in varied[caption]])
    texts = trainable.prompts([text for texts in varied.values() for text in texts])
    return {
        caption: tuple(prompt for text in variants for prompt in texts[text])
        for caption, variants in varied.items()
    }


def losses_and_weights(
    job: Job, pictures: list[int], step: int, micro: int, share: Share | None = None
) -> tuple[Tensor, Tensor]:
    """Loss and weight of each sample of one micro-batch, or of a share of it, both (B,) fp32.

    Noise and all that is drawn with it are those of the whole micro-batch, however it is shared.
    """
    seed = job.config.training.seed
    generator = generator_for(seed, step, micro)
    number, places = share or Share(0, list(range(len(pictures))))
    other = (number,) if number else ()
    layers = generator_for(seed, "layers", step, micro, *other)
    _seed_layers(job.parts.device, layers.initial_seed())
    # One batch, unless class images have another shape than the instance images they go with.
    shapes = [job.examples.shapes[picture] for picture in pictures]
    groups = []
    tokens = generator_for(seed, "tokens", step, micro).initial_seed()
    with job.router.drawing(tokens) if job.router else nullcontext():
        for group in by_shape(range(len(pictures)), shapes):
            taken = [index for index, place in enumerate(group) if place in places]
            groups.append(_same_shape(job, [pictures[place] for place in group], taken, generator))
    losses, weights = zip(*groups, strict=True)
    return torch.cat(losses), torch.cat(weights)


def _same_shape(
    job: Job, pictures: list[int], taken: list[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Loss and weight of those that are taken of some pictures of one shape, both (B,) fp32."""
    examples, parts, objective = job.examples, job.parts, job.config.objective
    shape = (len(pictures), *examples.latents[pictures[0]].shape)
    noise = draw_noise(shape, generator, objective.noise_offset)
    area_px = examples.sizes[pictures[0]].area_px
    timesteps = draw_timesteps(len(pictures), generator, objective, parts.objective, area_px)
    dropped = torch.rand(len(pictures), generator=generator) < objective.caption_dropout
    captions = [
        "" if drop and picture not in examples.teacher else _prompt(job, picture, generator)
        for picture, drop in zip(pictures, dropped, strict=True)
    ]
    is_idle = not taken
    if is_idle and not job.processes.shard:
        return torch.zeros(0, device=parts.device), torch.zeros(0, device=parts.device)
    taken = taken or [0]  # all put the blocks together, so all run them
    pictures, captions = [pictures[i] for i in taken], [captions[i] for i in taken]
    noise, timesteps = noise[taken], timesteps[taken]
    is_class = torch.tensor([picture >= examples.num_instances for picture in pictures])
    weights = sent(torch.where(is_class, objective.prior_weight, 1.0), parts.device)
    losses, timesteps, noisy = _losses(job, examples, pictures, noise, timesteps, captions)
    if objective.min_snr_gamma:
        weights *= parts.objective.min_snr_weight(timesteps, objective.min_snr_gamma)
    if objective.preserves_output:
        shown = [examples.shown(picture) for picture in pictures]
        kept = _preserving_losses(job, noisy, timesteps, shown)
        losses = torch.cat([losses, kept])
        weights = torch.cat([weights, torch.full_like(kept, objective.prior_weight)])
    return losses, weights * (not is_idle)


def _preserving_losses(job: Job, noisy: Tensor, timesteps: Tensor, shown: list[Shown]) -> Tensor:
    """How far the prediction for the class prompt is from the base's, (B,) fp32.

    Both see what the instance samples train on (differential output preservation).
    """
    assert job.trainable.base_model is not None
    prompts = [job.config.objective.class_prompt] * len(noisy)
    with torch.no_grad(), job.trainable.base_model():
        base = predict(job, noisy, timesteps, prompts, shown)
    return sample_losses(predict(job, noisy, timesteps, prompts, shown), base)


def _losses(
    job: Job,
    examples: Examples,
    pictures: list[int],
    noise: Tensor,
    timesteps: Tensor,
    captions: list[str],
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each of some pictures of one shape, timesteps, both (B,), and noisy latents.

    A class sample that has a teacher's brings its own timestep.
    """
    parts = job.parts
    latents = torch.stack([examples.latents[picture] for picture in pictures])
    mask = stack_masks([examples.masks[picture] for picture in pictures], latents)
    latents, noise, timesteps = (sent(x, parts.device) for x in (latents, noise, timesteps))
    mask = None if mask is None else sent(mask, parts.device)
    noisy = parts.objective.add_noise(latents, noise, timesteps)
    target = parts.objective.target(latents, noise, timesteps)
    put_teacher_samples(examples, pictures, noisy, timesteps, target)
    shown = [examples.shown(picture) for picture in pictures]
    prediction = predict(job, noisy, timesteps, captions, shown)
    return sample_losses(prediction, target, mask), timesteps, noisy


def predict(
    job: Job, noisy: Tensor, timesteps: Tensor, captions: list[str], shown: list[Shown]
) -> Tensor:
    """What the denoiser predicts as it is now, (B, C, ...)."""
    controls = [one.controls for one in shown]
    prompts = [
        prompt_of(caption, seen, job.parts.architecture)
        for caption, seen in zip(captions, controls, strict=True)
    ]
    parts, autocast = job.parts, job.trainable.autocast
    keeps = not job.processes.shard  # what a block had in narrow would stay when its weights go
    with torch.autocast(parts.device.type, autocast, autocast is not None, keeps):
        # Samples often share a caption; a text encoder that trains reads it once.
        encode = parts.text.encode if job.encoded is None else job.encoded.__getitem__
        texts = {prompt: encode(prompt) for prompt in dict.fromkeys(prompts)}
        return parts.predict(
            noisy.to(parts.device),
            timesteps.to(parts.device),
            [
                texts[prompt] if seen is None else {**texts[prompt], REFERENCES: seen.latents}
                for prompt, seen in zip(prompts, controls, strict=True)
            ],
            [one.size for one in shown],
        )


@contextmanager
def evaluating(job: Job) -> Iterator[None]:
    """No gradients, no dropout and what is handed out inside; training goes on after it."""
    parts = [part for module in job.parts.modules.values() for part in _dropouts(module)]
    dropping = [part for part in parts if part.training]
    for part in dropping:
        part.eval()
    try:
        with torch.no_grad(), job.trainable.averaged():
            yield
    finally:
        for part in dropping:
            part.train()


def make_ready(parts: Parts, config: RunConfig) -> None:
    """Let modules in which a method has put what it trains compute as a training does; in place."""
    modules, memory = parts.modules.values(), config.memory
    if memory.weights_in == RAM:
        kept = [start for module in modules for start in starts(module)]
        stream_blocks(modules, parts.device, kept)
    for module in modules:
        train_adapters(module)
        guard_adapters(module)
        checkpoint_blocks(module, config.checkpointed, memory.activations_in == RAM)


def train_adapters(module: nn.Module) -> None:
    """Let a base model's module compute as when it samples, but for the dropout of adapters.

    Some have random layers of their own, which drop captions: PixArt in ComfyUI does.
    """
    module.eval()
    for part in _dropouts(module):
        part.train()


def _dropouts(module: nn.Module) -> Iterator[nn.Module]:
    return (part for name, part in module.named_modules() if ADAPTER_DROPOUT in name)


def validation_loss(job: Job) -> float:
    """The mean loss of the held-out pictures; see trainers.data.validation."""
    examples, seed = job.held_out, job.config.training.seed
    assert examples is not None
    losses = []
    timesteps = even_timesteps(NUM_TIMESTEPS, job.config.objective, job.parts.objective)
    own = job.processes.own(len(examples.latents))
    with evaluating(job):
        for picture, noise, timestep in held_out_samples(examples, timesteps, seed):
            if picture not in own:
                continue
            # The last of a caption's prompts is the caption itself.
            prompt = job.prompts[examples.captions[picture]][-1]
            loss, *_ = _losses(job, examples, [picture], noise, timestep, [prompt])
            if job.processes.is_for(picture):
                losses.append(loss.item())
    return job.processes.total(sum(losses)) / job.processes.total(len(losses))


def _prompt(job: Job, picture: int, generator: torch.Generator) -> str:
    caption = job.examples.captions[picture]
    if picture >= job.examples.num_instances:
        return caption
    choices = job.prompts[caption]
    if len(choices) == 1:
        return choices[0]
    return choices[int(torch.randint(len(choices), (), generator=generator))]


@contextmanager
def private_random_state(device: torch.device) -> Iterator[None]:
    """Layers with dropout draw from the global generators; whoever called us keeps theirs."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _seed_layers(device: torch.device, seed: int) -> None:
    # Dropout draws from the global generators of its device; those of others are left alone.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
