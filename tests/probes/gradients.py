"""Gradients in the trainer's twins, measured in three ways."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_sampling
import torch
from comfy_api.latest import io

from . import (
    CONTROL_IMAGE,
    controls_of,
    noisy_latents,
    pack,
    parts_of,
    predicted,
    probe,
    shown,
    size_of_picture,
    told,
)

# Of an average tensor's gradient: what is smaller is made of rounding.
NEGLIGIBLE = 1e-3
STEP = 5e-5  # of the numeric derivative, in the mean change of a parameter


class Gradients(io.ComfyNode):
    """A step's gradients in the trainer's twins, with gradient checkpointing and without.

    And with weights in RAM, where nobody sees them. Also a numeric derivative along a random
    direction, and how many tensors have no gradient.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe(
            "ProbeGradients",
            io.Model.Input("model"),
            io.Clip.Input("clip"),
            io.String.Input("text"),
            *CONTROL_IMAGE,
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, text: str, image: Any = None, vae: Any = None
    ) -> io.NodeOutput:
        said = text, controls_of(image, vae)
        again, _ = gradients(model, clip, said, checkpointed=True)
        streamed, _ = gradients(model, clip, said, checkpointed=True, in_ram=True)
        plain, numeric = gradients(model, clip, said, checkpointed=False)
        return shown({
            "difference": furthest(again, plain),
            "streamed": sum(not torch.equal(streamed[name], grad) for name, grad in again.items()),
            "numeric": numeric,
            "without": sum(int(grad.norm() == 0) for grad in plain.values()),
            "trained": len(plain),
        })  # fmt: skip


def furthest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """How far a tensor's gradient is at most from another, as a share of that."""
    lengths = torch.stack([grad.norm() for grad in theirs.values()])
    least = NEGLIGIBLE * lengths.square().mean().sqrt()
    return max(
        float((ours[name] - grad).norm() / grad.norm().clamp(min=least))
        for name, grad in theirs.items()
    )


def gradients(
    model: Any,
    clip: Any,
    text: tuple[str, Any],
    checkpointed: bool,
    ratio: float = 0.0,
    in_ram: bool = False,
) -> tuple[dict[str, torch.Tensor], float | None]:
    """Gradients of a LoRA everywhere by name; how far they are from the numeric derivative.

    The latter only without checkpointing.

    Args:
        text: and its control images, if it has any.
        in_ram: whether weights of blocks wait in RAM.
        ratio: the share of tokens that skip blocks; if it is not 0, text encoders do not train.
    """
    settings = {"rank": 2, "alpha": 2.0, "train_text_encoder": not ratio, "seed": 3}
    config = pack("trainers.settings.run").run_config("lora", settings)
    checkpointing = pack("trainers.models.checkpointing")
    random = torch.Generator().manual_seed(1)
    with parts_of(model, clip) as parts:
        router = pack("trainers.models.tread").make_router(ratio, parts.denoiser, False)
        trainable = pack("trainers.methods").METHODS["lora"](parts, config)
        for parameter in trainable.parameters:
            noise = torch.randn(parameter.shape, generator=random).to(parameter.device)
            parameter.add_(0.02 * noise)
        if in_ram:
            leave_nothing(parts)
        for module in parts.modules.values():
            checkpointing.guard_adapters(module)
            assert not checkpointed or checkpointing.checkpoint_blocks(module)
        noisy, once = noisy_latents(model), told(parts, *text)

        def loss() -> torch.Tensor:
            said = once if ratio else told(parts, *text)
            with router.drawing(2) if router else contextlib.nullcontext():
                made = predicted(parts, noisy, 500, said)
            return made.double().square().mean()

        with torch.enable_grad():
            loss().backward()
        grads = {
            f"{name}.{key}": torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, module in parts.modules.items()
            for key, p in module.named_parameters()
            if p.requires_grad
        }
        away = None if checkpointed else _from_numeric(loss, trainable.parameters, random)
    return grads, away


def leave_nothing(parts: Any) -> None:
    """Weights of blocks in RAM; until a block has run once, whoever looks there finds none."""
    streaming = pack("trainers.models.streaming")
    streaming.stream_blocks(parts.modules.values(), parts.device, ())
    for module in parts.modules.values():
        for layer in module.modules():
            if found := vars(layer).get(streaming.STREAMED):
                for weight in found[0].weights:
                    weight.put(weight.in_ram.to("meta"))


def _from_numeric(
    loss: Callable[[], torch.Tensor], parameters: Sequence[torch.Tensor], random: torch.Generator
) -> float:
    """How far the gradients are from the loss's slope along a direction that is uphill.

    It is the gradient with each number between nothing and twice of it: so the slope is steep
    against rounding, and a number that is wrong counts differently from the others.
    """
    pairs = [
        (p, p.grad * torch.rand(p.shape, generator=random).to(p.grad) * 2)
        for p in parameters
        if p.grad is not None
    ]
    length = torch.stack([way.norm() for _, way in pairs]).norm()
    size = (sum(way.numel() for _, way in pairs) ** 0.5) / length
    pairs = [(parameter, size * way) for parameter, way in pairs]
    along = sum(float((p.grad * way).sum()) for p, way in pairs)
    at, place = {}, 0  # the loss at so many steps along the way
    for steps in (-2, -1, 1, 2):
        for parameter, way in pairs:
            parameter.add_(way, alpha=(steps - place) * STEP)
        place, at[steps] = steps, float(loss())
    # Of fourth order: wide steps, so that fp32's rounding counts for little.
    numeric = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * STEP)
    return abs(along - numeric) / abs(numeric)


class Step(io.ComfyNode):
    """One step of the trainer's loop against the same one written out in plain torch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe(
            "ProbeStep",
            io.Model.Input("model"),
            io.Clip.Input("clip"),
            io.String.Input("text"),
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, text: str) -> io.NodeOutput:
        settings = {"rank": 2, "alpha": 2.0, "learning_rate": RATE, "max_grad_norm": 0.0, "seed": 3}
        config = pack("trainers.settings.run").run_config("lora", {**settings, "steps": 1})
        latents = noisy_latents(model)[0].cpu()
        results = []
        for step in (_loop_step, _plain_step):
            with parts_of(model, clip) as parts:
                said = {caption: parts.text.encode(caption) for caption in (text, "")}
                results.append(step(parts, config, latents, text, said, model))
        (loss, start, ours), (plain_loss, _, plain) = results
        return shown({
            "loss": abs(loss - plain_loss) / plain_loss,
            "moved": max(
                float((a - b).norm() / (b - was).norm().clamp(min=1e-9))  # some have no gradient
                for was, a, b in zip(start, ours, plain, strict=True)
            ),
        })  # fmt: skip


RATE = 1e-3
Result = tuple[float, list[torch.Tensor], list[torch.Tensor]]  # loss, parameters before and after


def _loop_step(
    parts: Any, config: Any, latents: Any, text: str, said: dict[str, Any], model: Any
) -> Result:
    data = pack("trainers.data.examples")
    examples = data.Examples((latents,), (None,), (text,), (size_of_picture(),), (1,))
    loop = pack("trainers.loop")
    training = loop.Training(loop.make_job(parts, examples, said, config))
    start = _filled(training.parameters)
    with torch.enable_grad():
        loss = training.step().loss
    return loss, start, _kept(training.parameters)


def _plain_step(
    parts: Any, config: Any, latents: Any, text: str, said: dict[str, Any], model: Any
) -> Result:
    parameters = pack("trainers.methods").METHODS["lora"](parts, config).parameters
    for module in parts.modules.values():
        pack("trainers.models.checkpointing").guard_adapters(module)
    start = _filled(parameters)
    random = pack("trainers.objective.noise").generator_for(config.training.seed, 0, 0)
    noise = torch.randn(1, *latents.shape, generator=random).to(parts.device)
    clean = latents[None].to(parts.device)
    sampling = model.get_model_object("model_sampling")
    flows = (comfy.model_sampling.CONST, comfy.model_sampling.COSMOS_RFLOW)
    if isinstance(sampling, flows):
        timesteps = torch.sigmoid(torch.randn(1, generator=random))
        share = float(timesteps)
        noise = getattr(sampling, "noise_scale", 1.0) * noise
        noisy, target = (1 - share) * clean + share * noise, noise - clean
    else:
        timesteps = torch.randint(0, 1000, (1,), generator=random)
        sigma = float(sampling.sigmas[int(timesteps)])
        signal, spread = (1 / (sigma**2 + 1)) ** 0.5, sigma / (sigma**2 + 1) ** 0.5
        noisy, target = signal * clean + spread * noise, noise
        if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
            target = signal * noise - spread * clean
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=1e-2)
    with torch.enable_grad():
        predicted = parts.predict(
            noisy, timesteps.to(parts.device), [said[text]], [size_of_picture()]
        )
        loss = (predicted.float() - target).square().mean()
        loss.backward()
    optimizer.step()
    return float(loss), start, _kept(parameters)


def _filled(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Adds the same noise each time, since half of a new LoRA is zero; the parameters then."""
    random = torch.Generator().manual_seed(1)
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=random).to(parameter.device)
        parameter.data.add_(0.02 * noise)
    return _kept(parameters)


def _kept(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [parameter.detach().cpu().clone() for parameter in parameters]
