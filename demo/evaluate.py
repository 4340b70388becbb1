"""How well the base follows held-out prompts in a real ComfyUI: `python -m demo.evaluate`."""

import argparse
import os
from collections import Counter
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file

from tests.graphs import Graph
from tests.host import Host

from . import meters, world
from .autoencoder import Codec, to_tensor
from .checkpoint import BASE, compose

CHECKPOINT = "personalize_demo.safetensors"
SAMPLING = {
    "steps": 20,
    "cfg": 3.0,  # follows the prompt; 5 drives cream to white and teal to cyan
    "sampler_name": "euler",
    "scheduler": "normal",
    "denoise": 1.0,
}


def sample_prompts(host: Host, prompts: list[tuple[str, int]]) -> list[Image.Image]:
    """Pictures of prompts and seeds by the host's stock nodes, in their order."""
    pictures = []
    for start in range(0, len(prompts), 20):  # 20 a graph: progress now and then, little talk
        entry = host.run(_sampling_graph(prompts[start : start + 20]))
        paths = sorted(host.images(entry), key=lambda path: path.name)
        pictures += [Image.open(path).convert("RGB") for path in paths]
        print(f"sampled {len(pictures)}/{len(prompts)}")
    return pictures


def _sampling_graph(prompts: list[tuple[str, int]]) -> Graph:
    graph = Graph()
    model, clip, vae = graph.load(CHECKPOINT)
    empty = graph.add("CLIPTextEncode", clip=clip, text="")[0]
    size = {"width": world.SIZE_PX, "height": world.SIZE_PX, "batch_size": 1}
    blank = graph.add("EmptyLatentImage", **size)[0]
    for i, (text, seed) in enumerate(prompts):
        wanted = graph.add("CLIPTextEncode", clip=clip, text=text)[0]
        sockets = {"model": model, "positive": wanted, "negative": empty, "latent_image": blank}
        latents = graph.add("KSampler", **sockets, seed=seed, **SAMPLING)[0]
        pixels = graph.add("VAEDecode", samples=latents, vae=vae)[0]
        # A prefix of its own: the host runs the nodes in an order of its own.
        graph.add("SaveImage", images=pixels, filename_prefix=f"demo_{i:03d}")
    return graph


def main() -> None:
    """Sample the held-out prompts, print the scores, write a sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"))
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--seeds", type=int, default=5, help="seeds for each of 40 prompts")
    options = parser.parse_args()
    checkpoint = compose(options.work / CHECKPOINT, options.base)
    asked = world.held_out_prompts(options.seeds)
    prompts = [(world.caption(t.shape, t.colour, t.background), seed) for t, seed in asked]
    with Host(options.comfyui, pack=None, checkpoints={CHECKPOINT: checkpoint}) as host:
        pictures = sample_prompts(host, prompts)
    codec = Codec.from_host(load_file(options.base / "vae.safetensors"))
    reader = meters.load_reader(options.work / "reader.pt", codec)
    levels, triples = to_tensor(pictures), [t for t, _ in asked]
    print(meters.prompt_following(reader, levels, triples))
    seen = meters.read(reader, levels)
    wrong = Counter((t.shape, s.shape) for t, s in zip(triples, seen, strict=True))
    print("shapes asked and seen:", dict(wrong))
    world.grid(pictures[:80], 10).save(options.work / "held_out.png")


if __name__ == "__main__":
    main()
