"""The demo base's UNet: a thin Stable Diffusion 1.5 of 26 million parameters.

The host takes a UNet for SD 1.5 by its 320 model channels and its 768 wide context; one level,
one residual block and one transformer layer suffice for 8 x 8 latents.
"""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from .fit import Batch

STEPS = 1000
MIN_SNR = 5.0  # gamma of arXiv 2303.09556


def build(seed: int = 0) -> UNet2DConditionModel:
    """An untrained UNet that begins as an identity plus sharp attention to words."""
    torch.manual_seed(seed)
    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(320,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=768,
        attention_head_dim=8,  # diffusers' name for the number of heads
    )
    for name, weight in model.named_parameters():
        if name.endswith(("conv2.weight", "proj_out.weight", "conv_out.weight")):
            nn.init.zeros_(weight)  # residual branches start at 0, as in SD: allows a higher rate
        if name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")):
            # Logits of deviation 2 over 77 tokens: some heads find each word from the start, where
            # the default 0.3 spreads attention over the 66 tokens of padding.
            weight.data.mul_(2.5)
    return model


def alphas_cumprod() -> Tensor:
    """SD's scaled-linear schedule (1000,): betas 0.00085 to 0.012, linear in their roots."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64).square()
    return (1 - betas).cumprod(0).float()


def draw_steps(count: int, generator: torch.Generator) -> Tensor:
    """Diffusion steps (count,) drawn in proportion to their min-SNR weight, min(snr, g) / snr.

    The plain loss of steps so drawn is the weighted loss of uniform ones in expectation, and no
    picture is spent on the quarter of the steps that hardly count. One step comes from each of
    `count` equal shares of the weight, so that every batch covers all noise levels.
    """
    kept = alphas_cumprod()
    snr = kept / (1 - kept)
    shares = (snr.clamp(max=MIN_SNR) / snr).cumsum(0)
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    steps = torch.searchsorted(shares, places * shares[-1]).clamp(max=STEPS - 1)
    return steps[torch.randperm(count, generator=generator)]


def sample_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    """Epsilon loss (B,) of latents (B, 4, 8, 8) and encodings (B, 77, 768), min-SNR weighted."""
    latents, encodings = batch
    steps = draw_steps(len(latents), generator)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    kept = alphas_cumprod()[steps].to(latents).view(-1, 1, 1, 1)
    noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    predicted = model(noisy, steps.to(latents.device), encodings).sample.float()
    return (predicted - noise).square().mean((1, 2, 3))


@torch.no_grad()
def sample(
    model: nn.Module,
    encodings: Tensor,
    empty: Tensor,
    noise: Tensor,
    steps: int = 20,
    cfg: float = 5.0,
) -> Tensor:
    """DDIM with guidance, for a quick look while training: latents (B, 4, 8, 8)."""
    kept = alphas_cumprod().to(noise)
    times = torch.linspace(STEPS - 1, 0, steps + 1).long()
    x = noise
    for now, then in zip(times[:-1], times[1:], strict=True):
        both = model(
            torch.cat([x, x]), now.to(x.device), torch.cat([encodings, empty.expand_as(encodings)])
        ).sample
        wanted, free = both.float().chunk(2)
        epsilon = free + cfg * (wanted - free)
        clean = (x - (1 - kept[now]).sqrt() * epsilon) / kept[now].sqrt()
        x = kept[then].sqrt() * clean + (1 - kept[then]).sqrt() * epsilon
    return clean


def to_host(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of an SD checkpoint, without `model.diffusion_model.`."""
    return {_host_name(name): weight for name, weight in state.items()}


def from_host(named: dict[str, Tensor]) -> UNet2DConditionModel:
    """The reverse of `to_host`."""
    model = build()
    model.load_state_dict({name: named[_host_name(name)].float() for name in model.state_dict()})
    return model


_PLACES = {
    "conv_in.": "input_blocks.0.0.",
    "down_blocks.0.resnets.0.": "input_blocks.1.0.",
    "down_blocks.0.attentions.0.": "input_blocks.1.1.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
    "up_blocks.0.resnets.0.": "output_blocks.0.0.",
    "up_blocks.0.attentions.0.": "output_blocks.0.1.",
    "up_blocks.0.resnets.1.": "output_blocks.1.0.",
    "up_blocks.0.attentions.1.": "output_blocks.1.1.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
_INSIDE_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}


def _host_name(name: str) -> str:
    place = next(p for p in _PLACES if name.startswith(p))
    rest = name.removeprefix(place)
    if ".resnets." in place:
        part = next(p for p in _INSIDE_RESNET if rest.startswith(p))
        rest = _INSIDE_RESNET[part] + rest.removeprefix(part)
    return _PLACES[place] + rest
