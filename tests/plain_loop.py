"""Training as anyone would write it with diffusers, peft and torch, one sample at a time.

It shares with the project only the order of pictures and the generators, so that both make the
same draws.
"""

from __future__ import annotations

import peft
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from tests import tiny
from tests.schedules import scaled_linear_alphas_cumprod
from trainers.data.batches import BatchPlan, by_shape
from trainers.data.examples import Examples
from trainers.objective.noise import generator_for
from trainers.settings.objective import ObjectiveConfig
from trainers.settings.run import RunConfig


def plain_run(
    config: RunConfig, prediction: str, pictures: Examples
) -> tuple[dict[str, Tensor], list[tuple[float, float]]]:
    """The LoRA of a tiny SD1.5 after the run, and loss and gradient norm of every step."""
    training, adapter = config.training, config.own
    unet, clip = tiny.parts("sd15").modules.values()
    lora = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]
        target_modules=["to_q", "to_k", "to_v", "to_out.0"],
    )
    torch.manual_seed(training.seed)
    peft.inject_adapter_in_model(lora, unet)
    weights = {f"denoiser.{name}": p for name, p in unet.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        weights.values(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    reports = []
    for step in range(training.steps):
        mean = plain_loss(config, prediction, pictures, (unet, clip), step)
        mean.backward()  # type: ignore[no-untyped-call]
        gradients = torch.cat([p.grad.flatten() for p in weights.values() if p.grad is not None])
        if training.max_grad_norm:
            nn.utils.clip_grad_norm_(list(weights.values()), training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        reports.append((mean.item(), gradients.norm().item()))
    return {name: p.detach() for name, p in weights.items()}, reports


def plain_loss(
    config: RunConfig,
    prediction: str,
    pictures: Examples,
    modules: tuple[nn.Module, nn.Module],
    step: int,
) -> Tensor:
    """L_instance + lambda L_prior of one step of a UNet and a CLIP."""
    training = config.training
    unet, clip = modules
    process = _scheduler(prediction)
    num = pictures.num_instances
    plan = BatchPlan(
        pictures.shapes[:num], pictures.repeats[:num], training.batch_size, training.seed,
        pictures.repeats[num:],
    )  # fmt: skip
    instances, classes = [], []
    for micro, batch in enumerate(plan.step(step, training.gradient_accumulation)):
        generator = generator_for(training.seed, step, micro)
        for i, noise, timestep in _draws(pictures, batch, generator, config.objective):
            latents, mask = pictures.latents[i], pictures.masks[i]
            noisy = process.add_noise(latents[None], noise[None], timestep)
            hidden = clip(tiny.ids(pictures.captions[i])[None]).last_hidden_state
            predicted = unet(noisy, timestep, encoder_hidden_states=hidden).sample[0]
            target = noise
            if prediction == "v":
                target = process.get_velocity(latents[None], noise[None], timestep)[0]
            loss = _squared_error(predicted - target, mask)
            weighted = loss * _weight(process, timestep, config.objective)
            (instances if i < num else classes).append(weighted)
    total = torch.stack(instances).mean()
    if classes:
        total = total + config.objective.prior_weight * torch.stack(classes).mean()
    return total


def _scheduler(prediction: str) -> DDPMScheduler:
    kind = {"epsilon": "epsilon", "v": "v_prediction"}[prediction]
    made = DDPMScheduler(prediction_type=kind)
    made.alphas_cumprod = scaled_linear_alphas_cumprod()  # its own is rounded at every step
    return made


def _draws(
    pictures: Examples, batch: list[int], generator: torch.Generator, objective: ObjectiveConfig
) -> list[tuple[int, Tensor, Tensor]]:
    """Picture, noise and timestep of each sample."""
    low, high = objective.timestep_min, objective.timestep_max
    draws = []
    for same in by_shape(batch, pictures.shapes):
        shape = (len(same), *pictures.latents[same[0]].shape)
        noise = torch.randn(shape, generator=generator)
        if objective.noise_offset:
            noise += objective.noise_offset * torch.randn(*shape[:2], 1, 1, generator=generator)
        timesteps = torch.randint(low, high + 1, (len(same),), generator=generator)
        torch.rand(len(same), generator=generator)  # for captions to drop
        draws += list(zip(same, noise, timesteps.split(1), strict=True))
    return draws


def _squared_error(difference: Tensor, mask: Tensor | None) -> Tensor:
    squared = difference**2
    if mask is None:
        return squared.mean()
    return (squared * mask).sum() / (mask.sum() * len(squared))


def _weight(process: DDPMScheduler, timestep: Tensor, objective: ObjectiveConfig) -> Tensor:
    if not objective.min_snr_gamma:
        return torch.ones(())
    snr = compute_snr(process, timestep)[0]
    divisor = snr if process.config["prediction_type"] == "epsilon" else snr + 1
    return torch.minimum(snr, torch.tensor(objective.min_snr_gamma)) / divisor
