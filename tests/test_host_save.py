"""Save LoRA and Save Embedding in a real ComfyUI: what is written is what it says, or is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.conftest import model_file
from tests.graphs import Graph, Link, as_new
from tests.host import Host, HostError
from tests.test_host_lora import PROMPT, difference, latents, pictures, saved_lora
from tests.test_host_stack import add_lora, lora_tensors

TEXT_TOO = {"train_text_encoder": True, "text_encoder_learning_rate": 1e-3}


@pytest.fixture(params=["host", "old_host"])
def any_host(request: pytest.FixtureRequest) -> Host:
    """Every supported ComfyUI in turn."""
    return request.getfixturevalue(request.param)


def save(graph: Graph, lora: Link, name: str, model: Link | None, clip: Link | None, **more: Any):
    wired = {key: link for key, link in (("model", model), ("clip", clip)) if link}
    inputs = {"lora": lora, "filename_prefix": f"loras/{name}", "thumbnail": False, **wired}
    graph.add("PersonalizeSaveLora", **inputs, **{"format": "kohya fp32", **more})


def sample_file(host: Host, base: str, path: Path, name: str) -> torch.Tensor:
    """What ComfyUI's own loader and sampler make with a file."""
    graph = Graph()
    model, clip, _ = graph.load(base)
    loaded = graph.add(
        "LoraLoader", 2, model=model, clip=clip, lora_name=path.name, strength_model=1.0,
        strength_clip=1.0,
    )  # fmt: skip
    graph.sample(*loaded, name, as_new(PROMPT))
    log_from = len(host.log())
    host.run(graph)
    assert "lora key not loaded" not in host.log()[log_from:]
    return latents(host, name)


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        ("thin_sd15.safetensors", {**TEXT_TOO, "alpha": 3.0}),
        ("thin_sd15.safetensors", {"targets": "all with convolutions", "rank_stabilized": True}),
        ("thin_sdxl.safetensors", {**TEXT_TOO, "alpha": 1.0}),
    ],
    ids=["SD15 with text", "SD15 convolutions", "SDXL"],
)
def test_both_spellings_are_read_alike(any_host: Host, base: str, settings: dict[str, Any]) -> None:
    host, graph = any_host, Graph()
    model, clip, vae = graph.load(base)
    trained = graph.train(model, clip, vae, graph.dataset(pictures(host)), **settings)
    graph.sample(trained[0], trained[1], "live", PROMPT)
    graph.sample(model, clip, "base", PROMPT)
    formats = [f"{name} {dtype}" for name in ("kohya", "diffusers") for dtype in ("fp32", "bf16")]
    for spelling in formats:
        save(graph, trained[2], spelling.replace(" ", "_"), model, clip, format=spelling)
    host.run(graph)
    live = latents(host, "live")
    assert difference(latents(host, "base"), live) > 1e-3
    for spelling in formats[::2]:
        path = saved_lora(host, spelling.replace(" ", "_"))
        assert difference(sample_file(host, base, path, "file"), live) < 1e-5
