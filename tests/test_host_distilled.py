"""Distilled models: a training adapter is wired in before the trainer, and left out afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import safetensors.torch
import torch

from tests.graphs import Graph, Link
from tests.host import Host
from tests.test_host_lora import difference, latents, pictures, probe, saved_lora
from tests.test_host_models import found, sample
from tests.tiny_transformers import WIDTH, Z_IMAGE

SIBLING = {**Z_IMAGE, "seed": 1}  # as Krea 2's Raw and Turbo are: the same layers, other weights
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "pissa": {"initialization": "pissa"},
    "lokr": {"variant": "lokr"},
    "loha": {"variant": "loha", "learning_rate": 3e-2},  # a product of four starts slowly
    "oft": {"variant": "oft"},
}


def with_adapter(host: Host, graph: Graph, model: Link) -> Link:
    """`model` behind the host's loader of a random LoRA: the training adapter."""
    random = torch.Generator().manual_seed(5)
    path = host.base / "models" / "loras" / "training_adapter.safetensors"
    lora = {
        f"diffusion_model.layers.{number}.attention.{layer}.{factor}.weight": 0.3
        * torch.randn(shape, generator=random)
        for number in (0, 1)
        for layer, num_out in (("qkv", 3 * WIDTH), ("out", WIDTH))
        for factor, shape in (("lora_A", (4, WIDTH)), ("lora_B", (num_out, 4)))
    }
    safetensors.torch.save_file(lora, path)
    return graph.add("LoraLoaderModelOnly", model=model, lora_name=path.name, strength_model=1.0)[0]


def applied(graph: Graph, model: Link, clip: Link, lora: Link) -> Link:
    return graph.add(
        "PersonalizeApplyLora", 2, model=model, clip=clip, lora=lora, strength_model=1.0,
        strength_clip=1.0,
    )[0]  # fmt: skip


def trained(host: Host, graph: Graph, **settings: Any) -> tuple[list[Link], Link, list[Link]]:
    """Base, the base with the adapter, and what training on that gives."""
    base = graph.made(Z_IMAGE)
    adapted = with_adapter(host, graph, base[0])
    dataset = graph.dataset(pictures(host), "a photo of a dog")
    settings = {"steps": 2, "learning_rate": 1e-2, "targets": "attention", **settings}
    return base, adapted, graph.train(adapted, *base[1:], dataset, **settings)


@pytest.mark.parametrize("kind", ["lora", "pissa"])
def test_what_was_learned_with_a_training_adapter_goes_onto_models_without(
    host: Host, kind: str
) -> None:
    graph = Graph()
    base, adapted, (made, clip, lora, *_) = trained(host, graph, **KINDS[kind])
    probe(graph, adapted, clip)
    sibling = graph.made(SIBLING)[0]
    prefix = f"distilled {kind}"
    sample(graph, adapted, clip, prefix=f"{prefix} adapted")
    sample(graph, made, clip, prefix=f"{prefix} made")
    for name, model in (("plain", base[0]), ("sibling", sibling)):
        sample(graph, model, clip, prefix=f"{prefix} {name}")
        sample(graph, applied(graph, model, clip, lora), clip, prefix=f"{prefix} {name} sockets")
    graph.add(
        "PersonalizeSaveLora", lora=lora, filename_prefix=f"loras/{prefix}", format="kohya fp32"
    )
    assert found(host.run(graph))["prediction"] < 1e-5, "training sees the adapter"

    graph = Graph()
    for name, recipe in (("plain", Z_IMAGE), ("sibling", SIBLING)):
        model, clip, _ = graph.made(recipe)
        with_file = graph.add(
            "LoraLoaderModelOnly", model=model, lora_name=saved_lora(host, prefix).name,
            strength_model=1.0,
        )[0]  # fmt: skip
        sample(graph, with_file, clip, prefix=f"{prefix} {name} file")
    host.run(graph)

    def drawn(name: str) -> torch.Tensor:
        return latents(host, f"{prefix} {name}")

    assert difference(drawn("adapted"), drawn("plain")) > 1e-2
    assert difference(drawn("made"), drawn("adapted")) > 1e-2
    for name in ("plain", "sibling"):
        assert difference(drawn(f"{name} file"), drawn(f"{name} sockets")) < 1e-5
        assert difference(drawn(f"{name} sockets"), drawn(name)) > 1e-3


def test_what_was_not_trained_holds_nothing_of_the_training_adapter(host: Host) -> None:
    graph = Graph()
    for kind, settings in KINDS.items():
        untrained = {**settings, "steps": 1, "learning_rate": 1e-30}
        (plain, *_), _, (_, clip, lora, *_) = trained(host, graph, **untrained)
        sample(graph, applied(graph, plain, clip, lora), clip, prefix=f"untrained {kind}")
    sample(graph, plain, clip, prefix="untrained")
    host.run(graph)
    away = {
        kind: difference(latents(host, f"untrained {kind}"), latents(host, "untrained"))
        for kind in KINDS
    }
    assert max(away.values()) < 1e-5, away


def test_dora_is_said_to_be_for_the_model_with_the_adapter(host: Host) -> None:
    graph = Graph()
    _, _, (made, clip, lora, *_) = trained(host, graph, variant="dora")
    again = applied(graph, with_adapter(host, graph, graph.made(Z_IMAGE)[0]), clip, lora)
    sample(graph, made, clip, prefix="dora made")
    sample(graph, again, clip, prefix="dora again")
    log_from = len(host.log())
    host.run(graph)
    assert difference(latents(host, "dora again"), latents(host, "dora made")) < 1e-5
    assert "A DoRA's magnitudes are those of the weights with it" in host.log()[log_from:]
