"""Make the demo base model from nothing: `python -m demo.make_base --comfyui PATH`.

Four stages, each of which goes on where it was stopped: the autoencoder (on quarters of pictures),
latents of a pool of pictures, the UNet, and the two files that are kept.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import Tensor, nn

from . import autoencoder, denoiser, world
from .checkpoint import BASE_FILES
from .fit import Batch, Plan, autocast, fit
from .text import PromptEncoder

POOL_SIZE = 8_000  # 40 placements of each of the 200 trained triples
CROP_PX = 32  # a quarter of a picture holds every edge there is at a quarter of the cost
CROPS = Plan(1600, batch_size=16, lr=1e-3, muon_lr=0.01, save_every=200, decay_fraction=0.4)
UNET = Plan(1500, batch_size=16, lr=7e-4, warmup_steps=200, decay_fraction=0.35)
# How often a caption names less than all: the class prompts of personalization need it.
PART_CAPTIONS = {"no background": 0.08, "no colour": 0.08, "neither": 0.06, "empty": 0.10}


def train_autoencoder(work: Path, device: str) -> autoencoder.Codec:
    """Train on crops of pictures of any surface; a sample sheet lies beside the state."""

    def crops(generator: torch.Generator, count: int) -> Batch:
        levels = draw_levels(generator, count)
        top, left = torch.randint(0, world.SIZE_PX - CROP_PX + 1, (2,), generator=generator)
        return (levels[:, :, top : top + CROP_PX, left : left + CROP_PX],)

    def report(averaged: nn.Module, step: int) -> None:
        write_rebuilt(averaged, work / f"crops_{step:05d}.png")

    model = autoencoder.build().to(device, memory_format=torch.channels_last)
    averaged = fit(model, crops, autoencoder.sample_loss, CROPS, work / "crops.pt", report)
    levels = draw_levels(torch.Generator().manual_seed(1), 256)
    return autoencoder.Codec.measure(averaged, levels)


def draw_levels(generator: torch.Generator, count: int) -> Tensor:
    """Bytes (count, 3, 64, 64) of pictures of any surface."""
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    return autoencoder.to_tensor([world.draw_anything(rng) for _ in range(count)])


def write_rebuilt(model: AutoencoderTiny, path: Path) -> None:
    """A sheet of drawn pictures, subjects among them, each row followed by its reconstruction."""
    rng = np.random.default_rng(2)
    drawn = [world.draw_triple(t, rng) for t in world.HELD_OUT_TRIPLES[::5]]
    drawn += [world.draw_subject(n, b, rng) for n in world.SUBJECTS for b in ("navy", "cream")]
    codec = autoencoder.Codec(model, 1.0, 0.0)
    levels = autoencoder.to_tensor(drawn)
    rebuilt = codec.decode(codec.encode(levels))
    error = (rebuilt - autoencoder.to_pixels(levels)).abs().mean().item() * 127.5
    print(f"autoencoder: mean error {error:.2f} of 255 levels, sheet {path}")
    pictures = autoencoder.to_pictures(rebuilt)
    rows = [r for i in range(0, len(drawn), 8) for r in drawn[i : i + 8] + pictures[i : i + 8]]
    world.grid(rows, 8).save(path)


def encode_pool(codec: autoencoder.Codec, path: Path) -> tuple[Tensor, Tensor]:
    """Latents (N, 4, 8, 8) of N drawn pictures and the index of each one's triple (N,)."""
    if not path.exists():
        rng = np.random.default_rng(3)
        kinds = torch.arange(POOL_SIZE) % len(world.TRAIN_TRIPLES)
        latents = []
        for part in kinds.split(500):
            drawn = [world.draw_triple(world.TRAIN_TRIPLES[k], rng) for k in part]
            with autocast(next(codec.model.parameters()).device):
                latents.append(codec.encode(autoencoder.to_tensor(drawn)).float().cpu())
            print(f"latents {sum(map(len, latents))}/{POOL_SIZE}")
        torch.save({"latents": torch.cat(latents), "kinds": kinds}, path)
    pool = torch.load(path, weights_only=True)
    return pool["latents"], pool["kinds"]


def part_captions(triple: world.Triple) -> list[str]:
    """The full caption of a triple, then those of PART_CAPTIONS in order."""
    return [
        world.caption(triple.shape, triple.colour, triple.background),
        world.caption(triple.shape, triple.colour),
        world.caption(triple.shape, "", triple.background),
        world.caption(triple.shape),
        "",
    ]


class Pool:
    """Pictures of the trained triples with captions that name all or some of their parts.

    Attributes:
        latents: (N, 4, 8, 8).
        captions: all captions, for `place`s to count.
    """

    def __init__(self, codec: autoencoder.Codec, path: Path) -> None:
        self.latents, self._kinds = encode_pool(codec, path)
        rows = [part_captions(triple) for triple in world.TRAIN_TRIPLES]
        self.captions = sorted({caption for row in rows for caption in row})
        self._index = torch.tensor([[self.captions.index(c) for c in row] for row in rows])
        parts = PART_CAPTIONS.values()
        self._shares = torch.tensor([1 - sum(parts), *parts])

    def draw(self, generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Latents (count, 4, 8, 8) and the place (count,) of a caption of each."""
        picked = torch.randint(len(self.latents), (count,), generator=generator)
        part = torch.multinomial(self._shares, count, replacement=True, generator=generator)
        return self.latents[picked], self._index[self._kinds[picked], part]


def encode_captions(
    captions: list[str], encode: Callable[[list[str]], Tensor], path: Path
) -> dict[str, Tensor]:
    """Encodings of captions, kept in bf16."""
    if not path.exists():
        unique = sorted(set(captions))
        made = encode(unique).to(torch.bfloat16)
        torch.save(dict(zip(unique, made, strict=True)), path)
    return torch.load(path, weights_only=True)


def train_unet(
    work: Path, device: str, codec: autoencoder.Codec, comfyui: Path, plan: Plan
) -> nn.Module:
    """Train the UNet on the pool and write sheets of held-out prompts beside the state."""
    pool = Pool(codec, work / "latents.pt")
    shown = world.HELD_OUT_TRIPLES[::2]
    prompts = [world.caption(t.shape, t.colour, t.background) for t in shown]
    captions = [*pool.captions, *prompts]
    encoded = encode_captions(
        captions, lambda texts: PromptEncoder(comfyui)(texts), work / "encodings.pt"
    )
    encodings = torch.stack([encoded[caption] for caption in pool.captions])

    def draw(generator: torch.Generator, count: int) -> Batch:
        latents, places = pool.draw(generator, count)
        return latents, encodings[places].float()

    noise = torch.randn((len(shown), 4, 8, 8), generator=torch.Generator().manual_seed(4))
    wanted = torch.stack([encoded[p] for p in prompts]).float().to(device)
    empty = encoded[""].float().to(device)

    def report(averaged: nn.Module, step: int) -> None:
        with autocast(torch.device(device)):
            made = denoiser.sample(averaged, wanted, empty, noise.to(device))
        pictures = autoencoder.to_pictures(codec.decode(made.float()))
        world.grid(pictures, 10).save(work / f"unet_{step:05d}.png")

    model = denoiser.build().to(device, memory_format=torch.channels_last)
    return fit(model, draw, denoiser.sample_loss, plan, work / "unet.pt", report)


def export(codec: autoencoder.Codec, unet: nn.Module) -> None:
    """Write the two files of the base, fp16, under the host's names."""
    BASE_FILES.mkdir(exist_ok=True)
    for name, weights in (
        ("vae", codec.to_host()),
        ("unet", denoiser.to_host(unet.state_dict())),
    ):
        halves = {k: v.detach().cpu().half().contiguous() for k, v in weights.items()}
        path = BASE_FILES / f"{name}.safetensors"
        save_file(halves, path)
        print(f"wrote {path}")


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"))
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--unet-steps", type=int, default=UNET.steps, help="more goes on training")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    codec = train_autoencoder(asked.work, asked.device)
    unet_plan = replace(UNET, steps=asked.unet_steps)
    unet = train_unet(asked.work, asked.device, codec, asked.comfyui, unet_plan)
    export(codec, unet)


if __name__ == "__main__":
    main()
