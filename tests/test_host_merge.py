"""Merge, Extract and Resize LoRA in a real ComfyUI: what they make is an ordinary LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from PIL import Image

from tests.base_models import load_unet
from tests.graphs import Graph, Link, as_new
from tests.host import Host, HostError
from tests.scanned.recipes import CLIP_L
from tests.test_host_lora import PROMPT, any_host, difference, latents, pictures, saved_lora
from tests.test_plot import num_pixels
from trainers.runs.pictures.plot import LOOKS

__all__ = ["any_host"]  # a fixture

TEXT_ENCODER = {"train_text_encoder": True, "text_encoder_learning_rate": 1e-3}
CONVOLUTIONS = {"targets": "all with convolutions", "rank_stabilized": True, "seed": 8}
STRENGTHS = (0.8, -0.5)


def shallow(host: Host, graph: Graph, checkpoint: Path) -> list[Link]:
    """The thin SD1.5 with three of its text encoder's twelve layers, which take long to factor."""
    _, clip, vae = graph.made({"model": "SD15", **CLIP_L, "vae": "taesd"})
    return [load_unet(host, graph, checkpoint, "thin_sd15_fp32"), clip, vae]


def two_loras(graph: Graph, host: Host, sockets: list[Link]) -> list[Link]:
    """LoRAs of other ranks, layers and parts."""
    dataset = graph.dataset(pictures(host))
    settings: list[dict[str, Any]] = [TEXT_ENCODER, {**CONVOLUTIONS, "rank": 2}]
    return [graph.train(*sockets, dataset, **own)[2] for own in settings]


def applied(graph: Graph, model: Link, clip: Link, lora: Link, strength: float) -> list[Link]:
    return graph.add(
        "PersonalizeApplyLora", 2, model=model, clip=clip, lora=lora,
        strength_model=strength, strength_clip=strength,
    )  # fmt: skip


def merged(graph: Graph, loras: list[Link], **settings: Any) -> list[Link]:
    wired = {
        name: value
        for number, lora in enumerate(loras, 1)
        for name, value in ((f"lora_{number}", lora), (f"strength_{number}", STRENGTHS[number - 1]))
    }
    return graph.add("PersonalizeMergeLoras", 2, **wired, **settings)


def resized(graph: Graph, lora: Link, **settings: Any) -> list[Link]:
    own = {"keep": "rank", "rank": 2, "energy": 0.99, **settings}
    return graph.add("PersonalizeResizeLora", 3, lora=lora, **own)


def extracted(graph: Graph, sockets: dict[str, Link], **settings: Any) -> list[Link]:
    own = {"keep": "rank", "rank": 400, "energy": 0.99, **settings}
    return graph.add("PersonalizeExtractLora", 3, **sockets, **own)


def save(graph: Graph, lora: Link, name: str) -> None:
    graph.add(
        "PersonalizeSaveLora", lora=lora, filename_prefix=f"loras/{name}", format="kohya fp32"
    )


def show(graph: Graph, text: Link) -> str:
    """The id of a node that hands `text` out."""
    return graph.add("PreviewAny", source=text)[0][0]


def sample_file(host: Host, name: str, checkpoint: Path | None = None) -> None:
    """Sample with a file as the stock loader reads it, at strength 1, under `name`_file.

    Args:
        checkpoint: for the base that `shallow` makes of it.
    """
    graph = Graph()
    model, clip, _ = shallow(host, graph, checkpoint) if checkpoint else graph.load()
    loaded = graph.add(
        "LoraLoader", 2, model=model, clip=clip, lora_name=saved_lora(host, name).name,
        strength_model=1.0, strength_clip=1.0,
    )  # fmt: skip
    graph.sample(*loaded, f"{name}_file", as_new(PROMPT))
    host.run(graph)


def tensors(path: Path) -> dict[str, Any]:
    return safetensors.torch.load_file(path)


def test_exact_merge_samples_as_one_lora_behind_the_other(any_host: Host) -> None:
    host, graph = any_host, Graph()
    log_from = len(host.log())
    model, clip, vae = graph.load()
    loras = two_loras(graph, host, [model, clip, vae])
    graph.sample(model, clip, "base", PROMPT)
    chained = [model, clip]
    for lora, strength in zip(loras, STRENGTHS, strict=True):
        chained = applied(graph, *chained, lora, strength)
    graph.sample(*chained, "chained", PROMPT)
    lora, text = merged(graph, loras)
    graph.sample(*applied(graph, model, clip, lora, 1.0), "merged", PROMPT)
    save(graph, lora, "merged")
    shown = show(graph, text)
    entry = host.run(graph)
    sample_file(host, "merged")

    assert difference(latents(host, "merged"), latents(host, "chained")) < 1e-5
    assert difference(latents(host, "merged_file"), latents(host, "merged")) < 1e-5
    assert difference(latents(host, "merged"), latents(host, "base")) > 1e-3
    assert entry["outputs"][shown]["text"][0].endswith("rank 2 to 6; nothing is lost")
    assert "lora key not loaded" not in host.log()[log_from:]


def test_merges_and_resizes_are_read_by_the_stock_loader(host: Host) -> None:
    log_from, graph = len(host.log()), Graph()
    model, clip, vae = graph.load()
    loras = two_loras(graph, host, [model, clip, vae])
    made = {
        "ties": merged(graph, loras, method="ties", rank=4)[0],
        "dare": merged(graph, loras, method="dare_linear", rank=4, seed=3)[0],
        "small": resized(graph, loras[1], keep="energy", energy=0.9)[0],
    }
    for name, lora in made.items():
        graph.sample(*applied(graph, model, clip, lora, 1.0), name, PROMPT)
        save(graph, lora, name)
    host.run(graph)
    for name in made:
        sample_file(host, name)
        assert difference(latents(host, f"{name}_file"), latents(host, name)) < 1e-5
    assert "lora key not loaded" not in host.log()[log_from:]
    with safetensors.safe_open(saved_lora(host, "small"), "pt") as file:
        assert file.metadata()["ss_base_model_version"] == "sd_v1"
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-v1/lora"


def test_extract_of_a_dreambooth_samples_as_the_dreambooth(
    any_host: Host, checkpoint: Path
) -> None:
    host, graph = any_host, Graph()
    log_from = len(host.log())
    model, clip, vae = shallow(host, graph, checkpoint)
    settings = {"train_text_encoder": True, "text_encoder_learning_rate": 1e-4, "seed": 31}
    trained = graph.dreambooth(model, clip, vae, graph.dataset(pictures(host)), **settings)
    graph.sample(model, clip, "base", PROMPT)
    graph.sample(*trained[:2], "dreambooth", PROMPT)
    pair = {"model": trained[0], "base_model": model, "clip": trained[1], "base_clip": clip}
    lora, text, plot = extracted(graph, pair)
    graph.add("SaveImage", images=plot, filename_prefix="plot")
    graph.sample(*applied(graph, model, clip, lora, 1.0), "extracted", PROMPT)
    small = extracted(graph, {"model": trained[0], "base_model": model}, rank=2)[0]
    save(graph, lora, "extracted")
    save(graph, small, "small")
    shown = show(graph, text)
    entry = host.run(graph, timeout=1200)
    sample_file(host, "extracted", checkpoint)

    whole = difference(latents(host, "dreambooth"), latents(host, "base"))
    assert difference(latents(host, "extracted"), latents(host, "dreambooth")) < 0.1 * whole
    assert difference(latents(host, "extracted_file"), latents(host, "extracted")) < 1e-5
    (drawn,) = host.images(entry)
    with Image.open(drawn) as picture:
        assert picture.size == (960, 540)
        assert num_pixels(picture.convert("RGB"), LOOKS["dark"].smooth) > 10_000
    assert "norms and biases" in entry["outputs"][shown]["text"][0]
    assert "lora key not loaded" not in host.log()[log_from:]
    assert all(key.startswith("lora_unet_") for key in tensors(saved_lora(host, "small")))


def test_extract_of_an_applied_dora_gives_its_effect(host: Host) -> None:
    graph = Graph()
    model, clip, vae = graph.load()
    trained = graph.train(model, clip, vae, graph.dataset(pictures(host)), variant="dora")
    graph.sample(model, clip, "base", PROMPT)
    graph.sample(trained[0], clip, "dora", PROMPT)
    lora = extracted(graph, {"model": trained[0], "base_model": model})[0]
    graph.sample(*applied(graph, model, clip, lora, 1.0), "effect", PROMPT)
    host.run(graph)
    assert difference(latents(host, "dora"), latents(host, "base")) > 1e-3
    assert difference(latents(host, "effect"), latents(host, "dora")) < 1e-5


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("dora", "LoRA 2 is a DoRA"),
        ("same", "no layer that differs"),
        ("one clip", "base_clip is wired and clip is not"),
        ("other kind", "are not of one kind: [0-9]+ weights have other names or shapes"),
    ],
)
def test_what_cannot_be_done_is_named(host: Host, kind: str, words: str) -> None:
    graph = Graph()
    model, clip, vae = graph.load()
    if kind == "dora":
        dataset = graph.dataset(pictures(host))
        loras = [
            graph.train(model, clip, vae, dataset, **own)[2] for own in ({}, {"variant": kind})
        ]
        text = merged(graph, loras)[1]
    else:
        pair = {"model": model, "base_model": model}
        if kind == "one clip":
            pair["base_clip"] = clip
        if kind == "other kind":
            pair["base_model"] = graph.load("thin_sdxl.safetensors")[0]
        text = extracted(graph, pair)[1]
    show(graph, text)
    with pytest.raises(HostError, match=words):
        host.run(graph)
