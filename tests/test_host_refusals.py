"""Models that cannot be trained, in a real ComfyUI: each is named before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.conftest import model_file
from tests.events import Event
from tests.graphs import Graph, Link
from tests.host import Host, HostError
from tests.scanned import MODELS
from tests.test_host_lora import pictures
from tests.tiny_transformers import CHROMA, FLUX, SD3

Loaded = list[Link]  # MODEL, CLIP and VAE
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
CAN_BE = r"\nSupported: text-to-image models in fp32, fp16 or bf16"


def refused(host: Host, graph: Graph, base: Loaded, words: str, **settings: Any) -> None:
    """Train on `base`: the error has `words`, and nothing was loaded for it."""
    dataset = graph.dataset(pictures(host))
    (trainer, _), *_ = graph.train(*base, dataset, train_text_encoder=True, **settings)
    runs = set((host.base / "output").glob("personalize/*"))
    log_from = 0

    def on_event(event: Event) -> None:
        nonlocal log_from
        if event.kind == "executing" and event.data["node"] == trainer:
            log_from = len(host.log())  # loaders, which load text encoders themselves, are done

    with pytest.raises(HostError, match=words) as failed:
        host.follow(graph, on_event)
    assert failed.value.node == "PersonalizeTrainLora"
    assert failed.value.kind.endswith("UnsupportedModelError")
    assert log_from
    assert "Requested to load" not in host.log()[log_from:]
    assert set((host.base / "output").glob("personalize/*")) == runs


def takes_more(host: Host, folder: Path, channels: int) -> str:
    """Offers a thin SD1.5 that takes so many channels, as its published relatives do."""
    weights = safetensors.torch.load_file(model_file("thin_sd15"))
    more = {k: w for k, w in weights.items() if k.startswith("model.")}
    width, given = more[FIRST].shape[:2]
    zeros = torch.zeros(width, channels - given, 3, 3, dtype=more[FIRST].dtype)
    more[FIRST] = torch.cat([more[FIRST], zeros], dim=1)
    path = folder / f"takes_{channels}.safetensors"
    safetensors.torch.save_file(more, path)
    return host.add_model("diffusion_models", path)


@pytest.mark.parametrize(
    ("channels", "kind"), [(9, "SD15"), (8, "SD15_instructpix2pix")], ids=["inpainting", "edit"]
)
def test_model_that_takes_a_picture_is_refused(
    host: Host, tmp_path: Path, channels: int, kind: str
) -> None:
    graph = Graph()
    _, clip, vae = graph.load()
    file = takes_more(host, tmp_path, channels)
    model = graph.add("UNETLoader", unet_name=file, weight_dtype="default")[0]
    words = rf"Input 'model' is a {kind} that takes a picture beside the noise"
    refused(host, graph, [model, clip, vae], words + r".*" + CAN_BE)


def test_tokens_of_a_unet_that_should_skip_blocks_are_refused(host: Host) -> None:
    graph = Graph()
    words = r"tread_selection_ratio is 0.5, but input 'model' has a UNetModel.*\nSet it to 0"
    refused(host, graph, graph.load(), words, tread_selection_ratio=0.5)


def of_class(name: str, **more: Any) -> Callable[[Host, Graph, Link], Link]:
    told = {"name": name, "gguf": False, **more}
    return lambda host, graph, model: graph.add("ProbeOfClass", **told)[0]


def small(name: str) -> Callable[[Host, Graph, Link], Link]:
    told = json.dumps(MODELS[name])
    return lambda host, graph, model: graph.add("ProbeTiny", 3, recipe=told)[0]


def fp8(host: Host, graph: Graph, model: Link) -> Link:
    file = host.add_model("diffusion_models", model_file("thin_sd15"), "thin_sd15.safetensors")
    return graph.add("UNETLoader", unet_name=file, weight_dtype="fp8_e4m3fn")[0]


def continuous(sampling: str) -> Callable[[Host, Graph, Link], Link]:
    return lambda host, graph, model: graph.add(
        "ModelSamplingContinuousEDM", model=model, sampling=sampling, sigma_max=120.0,
        sigma_min=0.002,
    )[0]  # fmt: skip


def bypassed(host: Host, graph: Graph, model: Link) -> Link:
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = {
        f"{layer}.lora_down.weight": torch.ones(1, 320),
        f"{layer}.lora_up.weight": torch.ones(320, 1),
        f"{layer}.alpha": torch.tensor(1.0),
    }
    path = host.base / "models" / "loras" / "by_hand.safetensors"
    safetensors.torch.save_file(lora, path)
    return graph.add(
        "LoraLoaderBypassModelOnly", model=model, lora_name=path.name, strength_model=1.0
    )[0]


SAMPLES = "Input 'model' samples with ModelSamplingContinuousEDM and "
DISCRETE = r", which .*\nSupported: epsilon and v prediction at discrete timesteps, and flow"


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            of_class("SDXLRefiner"),
            "is a SDXLRefiner, which goes on from another model's latents.*" + CAN_BE,
        ),
        (
            of_class("SVD_img2vid"),
            "is a SVD_img2vid that takes a picture beside the noise.*" + CAN_BE,
        ),
        (of_class("SD15", latents="StableAudio1"), "is a SD15, which makes no pictures.*" + CAN_BE),
        (of_class("SD15", latents="LatentFormat"), "is a SD15, which makes no pictures.*" + CAN_BE),
        (small("ACE-Step"), "is a ACEStep, which makes no pictures.*" + CAN_BE),
        (small("TripoSplat"), "is a TripoSplat, which makes no pictures.*" + CAN_BE),
        (small("LTX-2"), "is a LTXAV, which makes or follows sound.*" + CAN_BE),
        (small("PiD (decoder of pixels)"), "is a PiD that takes a picture beside.*" + CAN_BE),
        (of_class("SD15", gguf=True), "Input 'model' holds GGUF weights.*" + CAN_BE),
        (of_class("SD15", experts=True), "weight in a layer of kind MoEExperts, which.*" + CAN_BE),
        (continuous("v_prediction"), SAMPLES + "V_PREDICTION" + DISCRETE),
        (continuous("edm"), SAMPLES + "EDM" + DISCRETE),
        (bypassed, r"Input 'model' carries injections \(bypass_lora\).*\n.*with Load LoRA"),
    ],
    ids=[
        "refiner",
        "video",
        "sound",
        "no latents",
        "music",
        "shapes",
        "film",
        "decoder",
        "gguf",
        "experts",
        "v edm",
        "edm",
        "bypass",
    ],  # fmt: skip
)
def test_model_that_cannot_be_trained_is_refused(
    host: Host, made: Callable[[Host, Graph, Link], Link], words: str
) -> None:
    graph = Graph()
    model, clip, vae = graph.load()
    refused(host, graph, [made(host, graph, model), clip, vae], words)


def test_dreambooth_of_a_model_in_fp8_is_refused(host: Host) -> None:
    # What it learned would be handed out, and saved, in the dtype of the base.
    graph = Graph()
    model, clip, vae = graph.load()
    graph.dreambooth(fp8(host, graph, model), clip, vae, graph.dataset(pictures(host)))
    with pytest.raises(HostError, match=r"holds quantized weights \(float8_e4m3fn\).*" + CAN_BE):
        host.run(graph)


@pytest.mark.parametrize(
    ("of_model", "of_clip", "words"),
    [
        ("thin_sdxl", "thin_sd15", r"768 wide \(clip_l 768\), but 'model' takes 2048"),
        ("thin_sd15", "thin_sdxl", r"2048 wide \(clip_l 768, clip_g 1280\), but 'model' takes 768"),
    ],
    ids=["sd15 with sdxl", "sdxl with sd15"],
)
def test_clip_of_another_model_is_refused(
    host: Host, of_model: str, of_clip: str, words: str
) -> None:
    graph = Graph()
    model, _, vae = graph.load(f"{of_model}.safetensors")
    _, clip, _ = graph.load(f"{of_clip}.safetensors")
    words = rf"Input 'clip' gives encodings {words}\.\nWire model and clip from the same checkpoint"
    refused(host, graph, [model, clip, vae], words)


@pytest.mark.parametrize(
    ("clip_of", "named"), [(CHROMA, "t5xxl"), (SD3, "clip_g")], ids=["T5 alone", "SD3's"]
)
def test_text_encoder_that_a_file_cannot_name_is_refused(
    host: Host, clip_of: dict[str, Any], named: str
) -> None:
    graph = Graph()
    model, _, vae = graph.made(FLUX)
    clip = graph.made(clip_of)[1]
    words = rf"Input 'clip' has {named}, .* FLUX\.1 has no names .*\n.*\(clip_l, t5xxl\), all of"
    refused(host, graph, [model, clip, vae], words)
