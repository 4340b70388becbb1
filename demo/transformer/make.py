"""Train the transformer from nothing: `python -m demo.transformer.make --comfyui PATH`.

It goes on where it was stopped. `made` is for those who want the files and wait where there are
none: some minutes on two cores.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import autoencoder, world
from ..autoencoder import Codec
from ..checkpoint import BASE_FILES
from ..fit import Batch, Plan, autocast, fit
from ..make_base import Pool, encode_captions
from ..text import PromptEncoder
from . import files, network

PLAN = Plan(800, batch_size=64, lr=1e-3, ema=0.99, save_every=200, decay_fraction=0.4)


def made(work: Path, comfyui: Path) -> dict[str, Path]:
    """The files of a trained transformer in a folder, trained now if it has none."""
    if (work / files.TRANSFORMER).exists():
        return files.compose(work)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return files.compose(work, train(work, comfyui, torch.device(device), PLAN))


def train(work: Path, comfyui: Path, device: torch.device, plan: Plan) -> nn.Module:
    """Train on the demo base's pool; sheets of held-out prompts lie beside the state."""
    work.mkdir(parents=True, exist_ok=True)
    codec = Codec.from_host(load_file(BASE_FILES / "vae.safetensors"))
    pool = Pool(codec, work / "latents.pt")
    shown = world.HELD_OUT_TRIPLES
    prompts = [world.caption(t.shape, t.colour, t.background) for t in shown]
    encoded = encode_captions(
        [*pool.captions, *prompts],
        lambda texts: PromptEncoder(comfyui).for_sd3(texts),
        work / "texts.pt",
    )
    encodings = torch.stack([encoded[caption] for caption in pool.captions])

    def draw(generator: torch.Generator, count: int) -> Batch:
        latents, places = pool.draw(generator, count)
        return latents, encodings[places].float()

    noise = torch.randn((len(shown), *network.LATENT_SHAPE), generator=_generator())
    wanted = torch.stack([encoded[prompt] for prompt in prompts]).float().to(device)
    empty = encoded[""].float().to(device)

    def report(averaged: nn.Module, step: int) -> None:
        with autocast(device):
            latents = network.sample(averaged, wanted, empty, noise.to(device))
        pictures = autoencoder.to_pictures(codec.decode(latents.float().cpu()))
        world.grid(pictures, 10).save(work / f"transformer_{step:05d}.png")
        print(f"step {step}: {time.process_time() / 60:.1f} CPU minutes")

    model = network.build().to(device)
    batch = tuple(part.to(device) for part in draw(_generator(), 256))
    before = mean_loss(model, batch)
    trained = fit(model, draw, network.sample_loss, plan, work / "transformer.pt", report)
    print(f"loss of 256 pictures: {before:.3f} before, {mean_loss(trained, batch):.3f} after")
    return trained


@torch.no_grad()
def mean_loss(model: nn.Module, batch: Batch) -> float:
    """The loss of a batch, always at the same noise."""
    losses: Tensor = network.sample_loss(model, batch, _generator())
    return losses.mean().item()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def main() -> None:
    """Train and write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"))
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    asked = parser.parse_args()
    for path in made(asked.work, asked.comfyui).values():
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
