"""The network: SD3's transformer at width 192, over 8 x 8 latents and CLIP-L's encodings.

The host reads all of its sizes off a file, so its own loader takes one this small. Width is 64
times depth there, latents have 16 channels, texts are 4096 wide; here the demo base's 4 channels
come four times over, and its 768 wide texts are filled up with zeros, as the host does too.
"""

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from trainers.objective.noise import Flow
from trainers.objective.timesteps import shifted

from ..fit import Batch

DEPTH = 3
PATCH = 2  # 1 would learn shapes from half as many pictures, but the host rounds sizes for 2
TEXT_WIDTH = 768
COPIES = 4
LATENT_SHAPE = (4 * COPIES, 8, 8)
FLOW = Flow(shift=3.0)  # what the host samples SD3 with
TIMESTEPS = 1000  # how the network counts them
# The mean of four copies has half of their noise, so noise hides as much as it does to one
# channel when there is twice as much of it. Hence the middle of the training's levels.
MIDDLE = 0.7


def build(seed: int = 0) -> SD3Transformer2DModel:
    """An untrained transformer of 4 million parameters, each of its blocks an identity."""
    torch.manual_seed(seed)
    model = SD3Transformer2DModel(
        sample_size=LATENT_SHAPE[-1],
        patch_size=PATCH,
        in_channels=LATENT_SHAPE[0],
        out_channels=LATENT_SHAPE[0],
        num_layers=DEPTH,
        num_attention_heads=DEPTH,
        attention_head_dim=64,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=64 * DEPTH,
        pooled_projection_dim=TEXT_WIDTH,
        pos_embed_max_size=LATENT_SHAPE[-1] // PATCH,
        qk_norm="rms_norm",
    )
    for name, weight in model.named_parameters():
        if ".linear." in name or name.startswith("proj_out"):
            nn.init.zeros_(weight)  # adaLN-Zero (arXiv 2212.09748): gates start at 0
        if ".norm_" in name:
            # Logits of deviation 2 and more, so that some heads find each word from the start.
            nn.init.constant_(weight, 1.5)
    return model


def widened(latents: Tensor) -> Tensor:
    """Latents (B, 4, 8, 8) as this network takes them, (B, 16, 8, 8)."""
    return latents.repeat(1, COPIES, 1, 1)


def narrowed(latents: Tensor) -> Tensor:
    """The reverse of `widened`: the mean of the copies."""
    return latents.unflatten(1, (COPIES, -1)).mean(1)


def draw_levels(count: int, generator: torch.Generator) -> Tensor:
    """Shares of noise (count,), logit-normal; each of `count` equal shares of them has one."""
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    normal = torch.special.ndtri(places.double().clamp(1e-6, 1 - 1e-6)).float()
    return torch.sigmoid(MIDDLE + normal)[torch.randperm(count, generator=generator)]


def predict(model: nn.Module, noisy: Tensor, levels: Tensor, encodings: Tensor) -> Tensor:
    """Noise minus latents, (B, 16, 8, 8), for encodings (B, 78, 768) whose last is the pooled."""
    texts, pooled = encodings[:, :-1], encodings[:, -1]
    made: Tensor = model(noisy, texts, pooled, levels * TIMESTEPS).sample
    return made.float()


def sample_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    """Flow matching loss (B,) of latents (B, 4, 8, 8) and encodings (B, 78, 768)."""
    latents, encodings = widened(batch[0]), batch[1]
    levels = draw_levels(len(latents), generator).to(latents)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    noisy = FLOW.add_noise(latents, noise, levels)
    error = predict(model, noisy, levels, encodings) - FLOW.target(latents, noise, levels)
    return error.square().mean((1, 2, 3))


@torch.no_grad()
def sample(
    model: nn.Module,
    encodings: Tensor,
    empty: Tensor,
    noise: Tensor,
    steps: int = 20,
    cfg: float = 3.0,
) -> Tensor:
    """Euler with guidance, for a quick look while training: latents (B, 4, 8, 8)."""
    levels = shifted(torch.linspace(1, 0, steps + 1), FLOW.shift).to(noise)
    both = torch.cat([encodings, empty.expand_as(encodings)])
    x = noise
    for now, then in zip(levels[:-1], levels[1:], strict=True):
        wanted, free = predict(model, torch.cat([x, x]), now.expand(len(both)), both).chunk(2)
        x = x + (then - now) * (free + cfg * (wanted - free))
    return narrowed(x)
