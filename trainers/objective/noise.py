"""The forward process: generators, noise, and what the denoiser is asked to predict.

    x_t = sqrt(ac_t) x_0 + sqrt(1 - ac_t) eps            (DDPM, arXiv 2006.11239, eq. 4)
    epsilon target:  eps
    v target:        sqrt(ac_t) eps - sqrt(1 - ac_t) x_0   (arXiv 2202.00512, appendix D)
    SNR_t = ac_t / (1 - ac_t)

    x_s = (1 - s) x_0 + s eps                            (rectified flow, arXiv 2209.03003)
    flow target:     eps - x_0

Which timesteps are drawn how often is in timesteps.py. Everything random is drawn on the CPU from
a generator that is a function of (seed, step, micro-batch), so the same draw comes again on resume
and on any device.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class Objective(Protocol):
    """A noise process and its target.

    Attributes:
        prediction: what the denoiser predicts, as file metadata names it.
        shift: how its sampler shifts timesteps towards noise; None where it does not.
    """

    @property
    def prediction(self) -> str: ...

    @property
    def shift(self) -> float | None: ...

    def timesteps(self, levels: Tensor) -> Tensor:
        """Noise levels (B,) from 0, none, to 1, nothing else, as this process counts them."""

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
    shift: ClassVar[None] = None

    def __post_init__(self) -> None:
        assert self.prediction in PREDICTIONS, self.prediction

    def timesteps(self, levels: Tensor) -> Tensor:
        """The timestep (B,) int64 of each level: that share of the way to the last one."""
        num = len(self.alphas_cumprod)
        return (levels * num).long().clamp(max=num - 1)

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
        signal = sent(self.alphas_cumprod, timesteps.device)[timesteps]
        return signal / (1 - signal)

    def min_snr_weight(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Min-SNR weights (arXiv 2303.09556), (B,) fp32: min(snr, gamma) over snr, or snr + 1."""
        snr = self.snr(timesteps)
        capped = snr.clamp(max=gamma)
        return capped / snr if self.prediction == "epsilon" else capped / (snr + 1)


@dataclass(frozen=True)
class Flow:
    """Rectified flow: a timestep is the share of noise, (B,) fp32 in 0..1.

    Attributes:
        shift: how the model's sampler shifts its timesteps, s t / (1 + (s - 1) t).
        noise_scale: the deviation of the noise at s = 1.
    """

    shift: float = 1.0
    noise_scale: float = 1.0
    prediction: ClassVar[str] = "flow"

    def timesteps(self, levels: Tensor) -> Tensor:
        return levels.float()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents x_s, (B, ...) fp32."""
        share = timesteps.view(-1, *[1] * (latents.ndim - 1))
        return (1 - share) * latents + share * (self.noise_scale * noise)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should predict, (B, ...) fp32."""
        return self.noise_scale * noise - latents

    def min_snr_weight(self, timesteps: Tensor, gamma: float) -> Tensor:
        raise AssertionError("min-SNR weighs predictions of noise and of v; see timesteps.py")


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. A GPU that has work to do is not waited for; see Tensor.to."""
    return tensor.to(device, non_blocking=device.type == "cuda")  # others may read too late


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
