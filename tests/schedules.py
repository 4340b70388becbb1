"""The noise schedule of Stable Diffusion, as its paper's code has it."""

from __future__ import annotations

import torch
from torch import Tensor


def scaled_linear_alphas_cumprod(
    start: float = 0.00085, end: float = 0.012, num_timesteps: int = 1000
) -> Tensor:
    """The schedule of Stable Diffusion: sqrt(beta) rises linearly. (T,) fp32."""
    betas = torch.linspace(start**0.5, end**0.5, num_timesteps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).float()
