"""Gradients in the trainer's twins, measured in three ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy_api.latest import io

from . import noisy_latents, pack, parts_of, predicted, probe, shown

# Of an average tensor's gradient: what is smaller is made of rounding.
NEGLIGIBLE = 1e-3


class Gradients(io.ComfyNode):
    """A step's gradients in the trainer's twins, with gradient checkpointing and without.

    Also a numeric derivative along a random direction, and how many tensors have no gradient.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe(
            "ProbeGradients",
            io.Model.Input("model"),
            io.Clip.Input("clip"),
            io.String.Input("text"),
            io.Boolean.Input("of_text_encoders", default=True),
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, text: str, of_text_encoders: bool) -> io.NodeOutput:
        again, _ = gradients(model, clip, text, of_text_encoders, checkpointed=True)
        plain, numeric = gradients(model, clip, text, of_text_encoders, checkpointed=False)
        lengths = torch.stack([grad.norm() for grad in plain.values()])
        least = NEGLIGIBLE * lengths.square().mean().sqrt()
        return shown({
            "difference": max(
                float((again[name] - grad).norm() / grad.norm().clamp(min=least))
                for name, grad in plain.items()
            ),
            "numeric": numeric,
            "without": int((lengths == 0).sum()),
            "trained": len(lengths),
        })  # fmt: skip


def gradients(
    model: Any, clip: Any, text: str, of_text_encoders: bool, checkpointed: bool
) -> tuple[dict[str, torch.Tensor], float | None]:
    """Gradients of a LoRA everywhere by name; how far they are from the numeric derivative.

    The latter only without checkpointing.
    """
    settings = {"rank": 2, "alpha": 2.0, "train_text_encoder": of_text_encoders, "seed": 3}
    config = pack("trainers.settings.run").run_config("lora", settings)
    checkpointing = pack("trainers.models.checkpointing")
    random = torch.Generator().manual_seed(1)
    with parts_of(model, clip) as parts:
        frozen = parts.text.encode(text)
        trainable = pack("trainers.methods").METHODS["lora"](parts, config)
        for parameter in trainable.parameters:
            noise = torch.randn(parameter.shape, generator=random).to(parameter.device)
            parameter.add_(0.02 * noise)
        if checkpointed:
            for module in parts.modules.values():
                assert checkpointing.checkpoint_blocks(module)
        noisy = noisy_latents(model)

        def loss() -> torch.Tensor:
            said = parts.text.encode(text) if of_text_encoders else frozen
            return predicted(parts, noisy, 500, said).double().square().mean()

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


def _from_numeric(
    loss: Callable[[], torch.Tensor], parameters: Sequence[torch.Tensor], random: torch.Generator
) -> float:
    """How far the gradients are from the loss's slope along a random direction."""
    ways = [torch.randn(p.shape, generator=random).to(p.device) for p in parameters]
    pairs = list(zip(parameters, ways, strict=True))
    along = sum(float((p.grad * way).sum()) for p, way in pairs if p.grad is not None)
    ends, size = [], 1e-4
    for factor in (size, -2 * size):
        for parameter, way in pairs:
            parameter.add_(way, alpha=factor)
        ends.append(float(loss()))
    numeric = (ends[0] - ends[1]) / (2 * size)
    return abs(along - numeric) / abs(numeric)
