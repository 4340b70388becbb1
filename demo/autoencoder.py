"""The demo base's autoencoder: TAESD's shape, 64 px pictures to latents (4, 8, 8) and back.

diffusers' AutoencoderTiny is the same network as the host's TAESD with other key names. The host
multiplies latents by 0.18215 before the UNet sees them; `vae_scale` and `vae_shift`, which its
TAESD reads from the file, undo that, so that the UNet's latents have mean 0 and deviation 1.
"""

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor, nn

from .fit import Batch

SD15_SCALE = 0.18215
LATENT_NOISE = 0.05  # what the decoder must forgive: samplers leave small errors
COLOUR_SIZE = 1.5  # pixels in -1..1 have a deviation of about 0.65


def build(seed: int = 0) -> AutoencoderTiny:
    """An untrained network of 2.4 million parameters, its signals unit-sized at every depth."""
    torch.manual_seed(seed)
    width = (64, 64, 64, 64)
    model = AutoencoderTiny(encoder_block_out_channels=width, decoder_block_out_channels=width)
    for name, weight in model.named_parameters():
        if weight.ndim < 4:
            nn.init.zeros_(weight)
            continue
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
        if name.endswith("conv.4.weight"):
            weight.data.mul_(0.2)  # 20 residual blocks start close to the identity
    return model


def to_tensor(pictures: list[Image.Image]) -> Tensor:
    """Pictures to bytes (B, 3, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2)


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Pixels (B, 3, H, W) in -1..1 to pictures."""
    levels = pixels.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(p) for p in levels.permute(0, 2, 3, 1).cpu().numpy()]


def to_pixels(levels: Tensor) -> Tensor:
    """Bytes (B, 3, H, W) to pixels in -1..1."""
    return levels.float().div(127.5).sub(1)


def sample_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    """Error of pixels and of their differences, and what holds the latents in shape (B,).

    The differences sharpen edges, which the plain error would blur where their place is unsure.
    Three latent channels are drawn to their patch's mean colour. That is easy to learn, spares
    the long plateau on which only a few colours exist, and is easy for the UNet to model.
    """
    pixels = to_pixels(batch[0]).contiguous(memory_format=torch.channels_last)
    latents = model.encoder(pixels).float()
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    error = model.decoder(latents + LATENT_NOISE * noise).float() - pixels
    edges = error.diff(dim=2).abs().mean((1, 2, 3)) + error.diff(dim=3).abs().mean((1, 2, 3))
    colour = nn.functional.avg_pool2d(pixels, 8) * COLOUR_SIZE
    held = (latents[:, :3] - colour).square().mean((1, 2, 3))
    free = latents[:, 3]
    unit = free.mean().square() + (free.std() - 1).square()
    misfit = error.abs().mean((1, 2, 3)) + error.square().mean((1, 2, 3))
    return misfit + edges + 0.3 * held + 0.05 * unit


class Codec:
    """A trained autoencoder with the scale and shift that make its latents unit-sized."""

    def __init__(self, model: AutoencoderTiny, scale: float, shift: float) -> None:
        self.model, self.scale, self.shift = model.eval(), scale, shift

    @classmethod
    def measure(cls, model: AutoencoderTiny, levels: Tensor) -> "Codec":
        """Take scale and shift from the latents of pictures (B, 3, H, W)."""
        raw = cls(model, SD15_SCALE, 0.0).encode(levels)
        mean, deviation = raw.mean().item(), raw.std().item()
        scale = SD15_SCALE * deviation
        return cls(model, scale, -mean / scale)

    @torch.no_grad()
    def encode(self, levels: Tensor) -> Tensor:
        """Bytes (B, 3, H, W) to the UNet's latents (B, 4, H/8, W/8)."""
        device = next(self.model.parameters()).device
        parts = [self.model.encoder(to_pixels(p.to(device))) for p in levels.split(64)]
        return (torch.cat(parts) / self.scale + self.shift) * SD15_SCALE

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The UNet's latents to pixels in -1..1."""
        raw = (latents / SD15_SCALE - self.shift) * self.scale
        return torch.cat([self.model.decoder(part) for part in raw.split(64)]).clamp(-1, 1)

    def to_host(self) -> dict[str, Tensor]:
        """The weights under the host's names."""
        named = {
            "vae_scale": torch.tensor(self.scale),
            "vae_shift": torch.tensor(self.shift),
        }
        for key, value in self.model.state_dict().items():
            side, _, index, rest = key.split(".", 3)
            # The host counts the decoder's clamp as its layer 0.
            place = int(index) + (side == "decoder")
            named[f"taesd_{side}.{place}.{rest}"] = value
        return named

    @classmethod
    def from_host(cls, named: dict[str, Tensor]) -> "Codec":
        """The reverse of `to_host`."""
        model = build()
        reverse = cls(model, 1.0, 0.0).to_host()
        names = zip(list(reverse)[2:], model.state_dict(), strict=True)
        model.load_state_dict({ours: named[theirs].float() for theirs, ours in names})
        return cls(model, named["vae_scale"].item(), named["vae_shift"].item())
