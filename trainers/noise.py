"""The forward process: generators, noise, timesteps, and what the denoiser is asked to predict.

    x_t = sqrt(ac_t) x_0 + sqrt(1 - ac_t) eps            (DDPM, arXiv 2006.11239, eq. 4)
    epsilon target:  eps
    v target:        sqrt(ac_t) eps - sqrt(1 - ac_t) x_0   (arXiv 2202.00512, appendix D)
    SNR_t = ac_t / (1 - ac_t)

Everything random is drawn on the CPU from a generator that is a function of (seed, step,
micro-batch), so the same draw comes again on resume and on any device.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Objective(Protocol):
    """A noise process and its target; flow matching would be another with these methods."""

    @property
    def prediction(self) -> str: ...  # as file metadata names it

    @property
    def num_timesteps(self) -> int: ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...

    def min_snr_weight(self, timesteps: Tensor, gamma: float) -> Tensor: ...


PREDICTIONS = ("epsilon", "v")


@dataclass(frozen=True)
class Diffusion:
    """The discrete diffusion process of Stable Diffusion 1, 2 and XL.

    Attributes:
        prediction: "epsilon" or "v".
        alphas_cumprod: (T,) fp32, falling from near 1 to near 0.
    """

    prediction: str
    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        assert self.prediction in PREDICTIONS, self.prediction

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def _signal_and_noise(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        signal = self.alphas_cumprod.to(like.device)[timesteps]
        signal = signal.view(-1, *[1] * (like.ndim - 1))
        return signal.sqrt(), (1 - signal).sqrt()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents x_t, (B, ...) fp32, for timesteps (B,) int64."""
        signal, sigma = self._signal_and_noise(timesteps, latents)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should predict, (B, ...) fp32."""
        if self.prediction == "epsilon":
            return noise
        signal, sigma = self._signal_and_noise(timesteps, latents)
        return signal * noise - sigma * latents

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio, (B,) fp32."""
        signal = self.alphas_cumprod.to(timesteps.device)[timesteps]
        return signal / (1 - signal)

    def min_snr_weight(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Min-SNR weights (arXiv 2303.09556), (B,) fp32: min(snr, gamma) over snr, or snr + 1."""
        snr = self.snr(timesteps)
        capped = snr.clamp(max=gamma)
        return capped / snr if self.prediction == "epsilon" else capped / (snr + 1)


def generator_for(seed: int, *place: int | str) -> torch.Generator:
    """A CPU generator that depends on `seed` and on `place` (step, micro-batch, ...) alone."""
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw_noise(
    shape: torch.Size | tuple[int, ...], generator: torch.Generator, offset: float
) -> Tensor:
    """Standard normal noise, fp32; `offset` adds one more draw per sample and channel.

    Source: noise offset, crosslabs.org/blog/diffusion-with-offset-noise.
    """
    noise = torch.randn(shape, generator=generator)
    if offset:
        per_channel = (*shape[:2], *[1] * (len(shape) - 2))
        noise = noise + offset * torch.randn(per_channel, generator=generator)
    return noise


def draw_timesteps(num: int, generator: torch.Generator, lowest: int, highest: int) -> Tensor:
    """Timesteps (num,) int64, uniform over lowest..highest, both included."""
    return torch.randint(lowest, highest + 1, (num,), generator=generator)
