"""A training as the nodes make it, without a host: one random picture, captions that are encoded.

The UNet may be anybody's; whoever has it says how it predicts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.schedules import scaled_linear_alphas_cumprod
from trainers.contracts import Parts, Predict, Rows, Size
from trainers.data.examples import Examples
from trainers.loop import make_job
from trainers.models.architectures import DENOISER, Architecture
from trainers.objective.noise import Diffusion, Objective
from trainers.settings.run import RunConfig
from trainers.step import Job

CAPTION = "a photo of sks dog"
OBJECTIVE = Diffusion("epsilon", scaled_linear_alphas_cumprod())


class NoText:
    """The text side of a training whose captions are encoded."""

    encoders: tuple[str, ...] = ()
    learned: dict[str, Rows] = {}

    def tokenize(self, text: str) -> Any:
        raise NotImplementedError

    def encode(self, text: str) -> Any:
        raise NotImplementedError

    def vocabulary(self, encoder: str) -> Any:
        raise NotImplementedError


def one_picture(
    unet: nn.Module,
    predict: Predict,
    architecture: Architecture,
    computes_in: torch.dtype,
    told: dict[str, Tensor],
    size_px: int,
    config: RunConfig,
    channels: int = 4,
    objective: Objective = OBJECTIVE,
    latents_shape: tuple[int, ...] = (),
) -> Job:
    """The job of training `unet` on one square picture.

    Args:
        told: what its caption became.
        channels: of latents.
        latents_shape: all of them, if it is not (channels, H/8, W/8).
    """
    parts = Parts(
        {DENOISER: unet},
        predict,
        text=NoText(),
        architecture=architecture,
        objective=objective,
        device=torch.device("cpu"),
        dtype=computes_in,
    )
    size = Size(size_px, size_px, 0, 0, size_px, size_px)
    shape = latents_shape or (channels, size_px // 8, size_px // 8)
    latents = torch.randn(*shape, device="cpu")
    examples = Examples((latents,), (None,), (CAPTION,), (size,), (1,))
    return make_job(parts, examples, dict.fromkeys((CAPTION, ""), told), config)
