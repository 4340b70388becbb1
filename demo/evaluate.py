"""How well the base follows held-out prompts in a real ComfyUI: `python -m demo.evaluate`."""

import argparse
import os
from collections import Counter
from pathlib import Path

from safetensors.torch import load_file

from tests.graphs import Graph
from tests.host import Host

from . import meters, world
from .autoencoder import Codec, to_tensor
from .checkpoint import BASE_FILES, DEMO_CHECKPOINT, compose
from .panel import Shot, add_shots, run_shots
from .transformer import files as sd3
from .transformer.make import made


def held_out_shots(num_seeds: int) -> list[Shot]:
    """Every triple that training never saw, `num_seeds` pictures each."""
    return [
        Shot("held out", world.caption(t.shape, t.colour, t.background), i, num_seeds, t)
        for i, t in enumerate(world.HELD_OUT_TRIPLES)
    ]


def main() -> None:
    """Sample the held-out prompts, print the scores, write a sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"))
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--base", type=Path, default=BASE_FILES)
    parser.add_argument("--seeds", type=int, default=5, help="pictures of each of 40 prompts")
    parser.add_argument("--transformer", action="store_true", help="demo.transformer instead")
    options = parser.parse_args()
    wanted = held_out_shots(options.seeds)
    graph, host = Graph(), Host(options.comfyui, pack=None)
    if options.transformer:
        sd3.offer(host, made(options.work / "transformer", options.comfyui))
        base = sd3.load(graph)
    else:
        checkpoint = compose(options.work / DEMO_CHECKPOINT, options.base)
        host.add_model("checkpoints", checkpoint, DEMO_CHECKPOINT)
        base = graph.load(DEMO_CHECKPOINT)
    add_shots(graph, *base, wanted)
    with host:
        pictures = run_shots(host, graph, wanted)
    world.grid(pictures, 4 * options.seeds).save(options.work / "held_out.png")
    codec = Codec.from_host(load_file(options.base / "vae.safetensors"))
    reader = meters.load_reader(options.work / "reader.pt", codec)
    print("classifier on drawn pictures:", meters.reader_accuracy(reader, codec))
    levels, asked = to_tensor(pictures), [s.asked for s in wanted for _ in range(s.count)]
    print("base on held-out prompts:", meters.prompt_following(reader, levels, asked))
    seen = meters.read(reader, levels)
    pairs = Counter((a.shape, s.shape) for a, s in zip(asked, seen, strict=True))
    print("shapes mistaken:", {pair: n for pair, n in pairs.items() if pair[0] != pair[1]})


if __name__ == "__main__":
    main()
