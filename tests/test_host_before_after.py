"""Before and After in a real ComfyUI: both sides are what the stock nodes make of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.graphs import Graph, Link
from tests.host import Host, HostError
from tests.test_host_compare import pixels, save, saved, stock
from tests.test_host_lora import any_host, pictures

__all__ = ["any_host"]  # a fixture

SMALL = {
    "prompt": "a photo of sks dog", "negative_prompt": "", "count": 2, "width": 64, "height": 96,
    "steps": 2, "cfg": 4.0, "sampler_name": "euler_ancestral", "scheduler": "normal", "seed": 51,
}  # fmt: skip


def before_after(graph: Graph, base: list[Link], **more: Any) -> list[Link]:
    """Before, after and the sheet."""
    sockets = dict(zip(("model", "clip", "vae"), base, strict=True))
    return graph.add("PersonalizeBeforeAfter", 3, **sockets, **{**SMALL, **more})


def by_stock(graph: Graph, base: list[Link], prompt: str, prefix: str) -> None:
    """The picture of each seed by the nodes that ComfyUI comes with."""
    for seed in (51, 52):
        stock(graph, base, prompt, prefix, **{**SMALL, "seed": seed})


def test_sides_are_those_of_ksampler(any_host: Host) -> None:
    host, graph = any_host, Graph()
    base = graph.load()
    dataset = graph.dataset(pictures(host))
    lora = graph.train(*base, dataset, steps=2, learning_rate=1e-2, train_text_encoder=True)
    token = graph.invert(*base, dataset, token="<sks>", steps=1, learning_rate=1.0)[0]
    word, plain = "a photo of <sks> dog", "a photo of a dog"

    by_stock(graph, base, SMALL["prompt"], "ba base")
    by_stock(graph, [*lora[:2], base[2]], SMALL["prompt"], "ba lora")
    by_stock(graph, base, plain, "ba plain")
    by_stock(graph, [base[0], token, base[2]], word, "ba word")
    same = before_after(graph, base, trained_model=base[0], trained_clip=base[1])
    both = before_after(graph, base, trained_model=lora[0], trained_clip=lora[1])
    text = before_after(graph, base, trained_clip=token, prompt=word, base_prompt=plain)
    model = before_after(graph, base, trained_model=lora[0])
    for name, out in {"same": same, "both": both, "text": text, "model": model}.items():
        for side, images in zip(("before", "after", "sheet"), out, strict=True):
            save(graph, images, f"ba {name} {side}")
    # To the bit: what is equal has the same hash, before Save Image rounds it.
    entry = host.run(graph)

    files = {
        f"{name} {side}": saved(host, f"ba {name} {side}")
        for name in ("same", "both", "text", "model")
        for side in ("before", "after")
    }
    base_files, lora_files = saved(host, "ba base"), saved(host, "ba lora")
    assert files["same before"] == files["same after"] == base_files
    assert files["both before"] == files["model before"] == base_files
    assert files["both after"] == lora_files
    assert files["text before"] == saved(host, "ba plain")
    assert files["text after"] == saved(host, "ba word")
    assert files["model after"] not in (base_files, lora_files), "with the base's own clip"
    every = [*base_files, *lora_files, *files["text before"], *files["text after"]]
    assert len({*every}) == len(every) == 8, "each seed and each side differ"
