"""Save LoRA and Save Embedding in a real ComfyUI: what is written is what it says, or is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.base_models import SDXL
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


# What kohya's trainer calls the layers of these UNets and text encoders (networks/lora.py): the
# blocks with attention, diffusers' names for SD1.5 and the published ones for SDXL; and how many
# layers each text encoder has, few in this SDXL. The thin SD1.5 has one level of one block.
KOHYA = {
    "thin_sd15.safetensors": (
        ["down_blocks_0_attentions_0", "mid_block_attentions_0", "up_blocks_0_attentions_0",
         "up_blocks_0_attentions_1"],
        {"lora_te": 12},
    ),
    "sdxl": (
        [*(f"input_blocks_{n}_1" for n in (4, 5, 7, 8)), "middle_block_1",
         *(f"output_blocks_{n}_1" for n in range(6))],
        {"lora_te1": 3, "lora_te2": 3},
    ),
}  # fmt: skip


def check_kohya_keys(path: Path, base: str, alpha: float) -> None:
    """A LoRA of attention, text encoders included, has the keys of kohya's format, no others."""
    tensors = safetensors.torch.load_file(path)
    endings = ("lora_up.weight", "lora_down.weight", "alpha")
    layers = {key.split(".")[0] for key in tensors}
    assert set(tensors) == {f"{layer}.{ending}" for layer in layers for ending in endings}
    blocks, encoders = KOHYA[base]
    projections = [f"{a}_{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v")]
    projections += [f"{a}_to_out_0" for a in ("attn1", "attn2")]
    unet = {re.sub(r"_transformer_blocks_\d+_", " ", n) for n in layers if "_unet_" in n}
    assert unet == {f"lora_unet_{block} {p}" for block in blocks for p in projections}
    assert {name for name in layers if "_unet_" not in name} == {
        f"{start}_text_model_encoder_layers_{number}_self_attn_{p}_proj"
        for start, depth in encoders.items()
        for number in range(depth)
        for p in ("q", "k", "v", "out")
    }
    assert {float(value) for key, value in tensors.items() if key.endswith(".alpha")} == {alpha}


def save(graph: Graph, lora: Link, name: str, model: Link | None, clip: Link | None, **more: Any):
    wired = {key: link for key, link in (("model", model), ("clip", clip)) if link}
    inputs = {"lora": lora, "filename_prefix": f"loras/{name}", "thumbnail": False, **wired}
    graph.add("PersonalizeSaveLora", **inputs, **{"format": "kohya fp32", **more})


def load(host: Host, graph: Graph, base: str) -> list[Link]:
    """MODEL, CLIP and VAE of one of KOHYA's."""
    return SDXL.load(host, graph) if base == "sdxl" else graph.load(base)


def sample_file(host: Host, base: str, path: Path, name: str) -> torch.Tensor:
    """What ComfyUI's own loader and sampler make with a file."""
    graph = Graph()
    model, clip, _ = load(host, graph, base)
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
        ("sdxl", {**TEXT_TOO, "alpha": 1.0}),
    ],
    ids=["SD15 with text", "SD15 convolutions", "SDXL"],
)
def test_both_spellings_are_read_alike(any_host: Host, base: str, settings: dict[str, Any]) -> None:
    host, graph = any_host, Graph()
    model, clip, vae = load(host, graph, base)
    trained = graph.train(model, clip, vae, graph.dataset(pictures(host)), **settings)
    graph.sample(trained[0], trained[1], "live", PROMPT)
    graph.sample(model, clip, "base", PROMPT)
    formats = [f"{name} {dtype}" for name in ("kohya", "diffusers") for dtype in ("fp32", "bf16")]
    for spelling in formats:
        save(graph, trained[2], spelling.replace(" ", "_"), model, clip, format=spelling)
    host.run(graph)
    if settings.get("train_text_encoder"):
        check_kohya_keys(saved_lora(host, "kohya_fp32"), base, settings["alpha"])
    live = latents(host, "live")
    assert difference(latents(host, "base"), live) > 1e-3
    for spelling in formats[::2]:
        path = saved_lora(host, spelling.replace(" ", "_"))
        assert difference(sample_file(host, base, path, "file"), live) < 1e-5


def test_dora_is_read_by_both_hosts_and_refused_in_diffusers_spelling(any_host: Host) -> None:
    host, graph = any_host, Graph()
    model, clip, vae = graph.load()
    trained = graph.train(model, clip, vae, graph.dataset(pictures(host)), variant="dora", seed=8)
    graph.sample(trained[0], trained[1], "live", PROMPT)
    for dtype in ("fp32", "fp16", "bf16"):
        save(graph, trained[2], f"dora_{dtype}", model, clip, format=f"kohya {dtype}")
    host.run(graph)
    path = saved_lora(host, "dora_fp32")
    file = sample_file(host, "thin_sd15.safetensors", path, "file")
    assert difference(file, latents(host, "live")) < 1e-5
    save(graph, trained[2], "dora_diffusers", model, clip, format="diffusers fp32")
    with pytest.raises(HostError, match="holds plain LoRAs alone.*dora_scale"):
        host.run(graph)
    assert not list((host.base / "output" / "loras").glob("dora_diffusers*"))


def lora_graph(host: Host, name: str) -> tuple[Graph, Link, list[Link]]:
    """A graph with a LoRA that no training made: the LoRA, and the base it is for."""
    tensors = lora_tensors(model_file("thin_sd15", "fp32"), seed=5)
    file = add_lora(host, {key: value * 0.3 for key, value in tensors.items()})
    graph = Graph()
    return graph, graph.add("ProbeLora", name=file)[0], graph.load()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", r"read back, it is not what was written, in all of it"),
        ("number", r"read back, it is not what was written, in \S+\.\n"),
        ("scale", r"ComfyUI predicts otherwise than with the LoRA in the graph"),
        ("half", r"ComfyUI's loader misses \S+to_v_lora.down.weight"),
        ("name", r"has no place in this model for 2 of its \d+ tensors: \S+to_w_lora"),
    ],
)
def test_file_that_is_tampered_with_is_refused_and_gone(
    any_host: Host, how: str, words: str
) -> None:
    host = any_host
    graph, lora, (model, clip, _) = lora_graph(host, how)
    save(graph, lora, f"tampered_{how}", model, clip, format="diffusers fp16")
    tampering = Graph()
    tampering.add("ProbeTamper", how=how)
    host.run(tampering)
    try:
        with pytest.raises(HostError, match=words):
            host.run(graph)
    finally:
        tampering["1"]["inputs"]["how"] = "no"
        host.run(tampering)
    assert not list((host.base / "output" / "loras").glob(f"tampered_{how}*"))
    host.run(graph)
    assert saved_lora(host, f"tampered_{how}")


def test_check_leaves_the_models_as_they_were(any_host: Host) -> None:
    host = any_host
    graph, lora, (model, clip, _) = lora_graph(host, "left")
    graph.sample(model, clip, "before", as_new(PROMPT))
    host.run(graph)
    save(graph, lora, "left", model, clip)
    graph.sample(model, clip, "after", as_new(PROMPT))
    host.run(graph)
    assert torch.equal(latents(host, "before"), latents(host, "after"))


def test_diffusers_spelling_asks_for_the_model(host: Host) -> None:
    graph, lora, (_, clip, _) = lora_graph(host, "alone")
    save(graph, lora, "alone", None, clip, format="diffusers fp32", bundle_embedding=True)
    with pytest.raises(HostError) as refused:
        host.run(graph)
    for words in ("input 'model' has no names", "diffusers reads no file with a token in it"):
        assert words in str(refused.value)


PREFIXES = {
    "../../x": "leads out of ComfyUI's output folder",
    "loras/../../x": "leads out of ComfyUI's output folder",
    "..\\..\\x": "leads out of ComfyUI's output folder",
    "link/x": "leads out of ComfyUI's output folder",
    "a:b": "a name cannot have ':'",
    "C:\\x": "a name cannot have ':'",
    "/tmp/x": "it is a whole path",
    "loras./x": "'loras.' ends in a dot or a blank",
    "x..": "'x..' ends in a dot or a blank",
    "a\0b": r"a name cannot have '\x00'",
    "nul": "'nul' is a name of Windows' own",
    "loras/Com1.x": "'Com1.x' is a name of Windows' own",
    "": "it is empty",
    "a" * 300: "longer than 200 bytes",
}


def test_names_that_lead_elsewhere_are_refused(any_host: Host) -> None:
    host, outside = any_host, any_host.base / "outside"
    outside.mkdir(exist_ok=True)
    link = host.base / "output" / "link"
    if not link.is_symlink():
        link.symlink_to(outside)
    graph, lora, (model, clip, _) = lora_graph(host, "names")
    trained = graph.load()
    token = graph.invert(*trained, graph.dataset(pictures(host)), steps=1)[1]
    before = files(host)
    for prefix, words in PREFIXES.items():
        for node, socket in (("Lora", {"lora": lora}), ("Embedding", {"embedding": token})):
            one = Graph(graph)
            more = {"format": "kohya fp32"} if node == "Lora" else {}
            one.add(f"PersonalizeSave{node}", filename_prefix=prefix, **socket, **more)
            with pytest.raises(HostError) as refused:
                host.run(one)
            assert words in refused.value.summary, (prefix, refused.value.summary)
            assert str(host.base) not in refused.value.summary
    assert {f for f in files(host) - before if "personalize" not in f.parts} == set()


def files(host: Host) -> set[Path]:
    """All that lies in a host's folders, but its log and its database."""
    found = {path for path in host.base.rglob("*") if path.is_file()}
    return {path for path in found if path.parent != host.base and "user" not in path.parts}
