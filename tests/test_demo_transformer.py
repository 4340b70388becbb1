"""The drawn world's transformer: the host's own loaders make of its files what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from demo import world
from demo.autoencoder import Codec, to_tensor
from demo.checkpoint import BASE_FILES
from demo.evidence import told_of
from demo.recipes import FLOW_LORA, PLAIN, Recipe, sockets
from demo.text import PromptEncoder
from demo.transformer import files, network
from tests.graphs import Graph
from tests.host import Host

CAPTION = "a photo of a red star on a teal background"


@pytest.fixture
def model() -> nn.Module:
    """A transformer that predicts something, with weights that fp16 holds exactly."""
    made = network.build()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=random))
    return made.half().float().eval()


def drawn() -> Tensor:
    return to_tensor([picture for picture, _ in world.instance_pictures("star")])


def test_autoencoder_of_copies_has_the_narrow_ones_latents() -> None:
    narrow = load_file(BASE_FILES / "vae.safetensors")
    wide, codec = files.autoencoder_weights(narrow), Codec.from_host(narrow)
    raw = codec.model.encoder(drawn().float() / 127.5 - 1).detach()
    seen = (raw / wide["vae_scale"] + wide["vae_shift"] - files.SD3_SHIFT) * files.SD3_SCALE
    assert torch.allclose(seen, codec.encode(drawn()), atol=1e-5)
    weight, kernels = narrow["taesd_decoder.1.weight"].float(), wide["taesd_decoder.1.weight"]
    into, copies = nn.functional.conv2d(raw, weight), network.widened(raw)
    assert torch.allclose(nn.functional.conv2d(copies, kernels.float()), into, atol=1e-4)
    assert torch.equal(network.narrowed(copies), raw)


def test_loss_of_a_network_that_knows_nothing_is_that_of_noise_and_latents() -> None:
    batch = (torch.randn(64, 4, 8, 8), torch.randn(64, 78, network.TEXT_WIDTH))
    losses = network.sample_loss(network.build(), batch, torch.Generator().manual_seed(0))
    assert losses.shape == (64,)
    assert losses.mean().item() == pytest.approx(2.0, abs=0.1)


def test_levels_cover_all_noise_evenly() -> None:
    levels = network.draw_levels(1000, torch.Generator().manual_seed(0))
    middle = torch.tensor(network.MIDDLE).sigmoid().item()
    assert levels.median().item() == pytest.approx(middle, abs=0.01)
    assert 0 < levels.min() < 0.1
    assert 0.9 < levels.max() < 1


def test_what_was_measured_on_the_unet_keeps_its_key() -> None:
    assert PLAIN.key("star", 0) == "star-358d2fc070af"
    assert Recipe("LoRA", transformer=True).key("star", 0) != PLAIN.key("star", 0)


def test_fall_of_the_loss_is_told() -> None:
    graph = Graph()
    sockets(graph, FLOW_LORA, "star", 0)
    losses = {"loss": [1.0] * 60 + [0.25] * 60}
    (shown,) = [i for i, node in graph.items() if node["class_type"] == "PreviewAny"]
    told = told_of(graph, {"outputs": {shown: {"text": [json.dumps(losses)]}}})
    assert told == "a loss of 1.000 in the first 50 steps, of 0.250 in the last 50"


def test_host_loads_the_files_as_what_was_trained(
    host: Host, model: nn.Module, tmp_path: Path
) -> None:
    files.offer(host, files.compose(tmp_path, model))
    picture = world.instance_pictures("star")[0][0]
    picture.save(tmp_path / "star.png")
    graph = Graph()
    made, clip, vae = files.load(graph)
    texts = {"positive": graph.encode(clip, CAPTION), "negative": graph.encode(clip, "")}
    blank = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)[0]
    sampled = graph.add(
        "KSampler", model=made, latent_image=blank, **texts, seed=5, steps=1, cfg=1.0,
        sampler_name="euler", scheduler="simple", denoise=1.0,
    )[0]  # fmt: skip
    image = graph.add("LoadImage", image=host.add_input(tmp_path / "star.png"))[0]
    encoded = graph.add("VAEEncode", pixels=image, vae=vae)[0]
    for name, link in {"flow": sampled, "star": encoded}.items():
        graph.add("SaveLatent", samples=link, filename_prefix=name)
    host.run(graph)

    noise = torch.randn((1, *network.LATENT_SHAPE), generator=torch.Generator().manual_seed(5))
    ones, texts = torch.ones(1), PromptEncoder(host.comfyui).for_sd3([CAPTION])
    with torch.no_grad():
        expected = noise - network.predict(model, noise, ones, texts)
    codec = Codec.from_host(load_file(BASE_FILES / "vae.safetensors"))
    assert torch.allclose(latents(host, "flow"), expected, atol=1e-3)
    widened = network.widened(codec.encode(to_tensor([picture])))
    assert torch.allclose(latents(host, "star"), widened, atol=1e-2)


def latents(host: Host, name: str) -> Tensor:
    """What SaveLatent wrote, as the transformer sees it."""
    (path,) = (host.base / "output").glob(f"{name}_*.latent")
    return (load_file(path)["latent_tensor"] - files.SD3_SHIFT) * files.SD3_SCALE
