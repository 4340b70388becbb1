"""Models whose weights are quantized, in every format that the host has, in a real ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from tests import tiny_transformers as transformers
from tests.base_models import newest
from tests.graphs import Graph, Link
from tests.host import Host, HostError
from tests.test_host_lora import difference, latents, pictures
from tests.test_host_models import sample

pytestmark = pytest.mark.host

Recipe = Mapping[str, Any]
# By name: what makes a small model in it, and how far gradients may be from the widened model's.
FORMATS: dict[str, tuple[Recipe, float]] = {
    name: ({**transformers.Z_IMAGE, **told}, bound)
    for name, told, bound in (
        ("float8_e4m3fn", {"held": "float8_e4m3fn"}, 1e-3),
        ("float8_e5m2", {"held": "float8_e5m2"}, 1e-3),
        ("mxfp8", {"held": "mxfp8"}, 1e-3),
        ("nvfp4", {"held": "nvfp4"}, 1e-3),
        ("nvfp4, smoothed", {"held": "nvfp4, smoothed"}, 1e-3),
        ("int8", {"held": "int8"}, 1e-3),
        ("int8, by rows", {"held": "int8, by rows"}, 1e-3),
        ("int8, rotated", {"held": "int8, rotated"}, 1e-3),
        ("int4, rotated", {"held": "int4, rotated"}, 1e-2),
        ("plain float8_e4m3fn", {"dtype": "float8_e4m3fn"}, 1e-3),
        ("plain float8_e5m2", {"dtype": "float8_e5m2"}, 1e-3),
    )
}
OLD_FORMATS = ["float8_e4m3fn", "nvfp4", "plain float8_e5m2"]  # the others came later, or are alike


def measured(host: Host, graph: Graph) -> dict[str, Any]:
    """What the probes of a prompt found, by name."""
    outputs = host.run(graph)["outputs"].values()
    shown = (json.loads(output["found"][0]) for output in outputs if "found" in output)
    return {name: value for one in shown for name, value in one.items()}


def test_gradients_are_those_of_the_model_widened(host: Host) -> None:
    graph = Graph()
    for name, (recipe, _) in FORMATS.items():
        model, clip, _ = graph.made(recipe)
        graph.add("ProbeQuantized", model=model, clip=clip, name=name, settings="{}")
    told = measured(host, graph)
    for name, (_, bound) in FORMATS.items():
        assert told[name]["difference"] < bound, name
        assert told[name]["trained"] > 20, name
        assert {"torch.float32"} < set(told[name]["kinds"]) or "plain" in name, name
        assert told[name]["held"] < 1.01 * told[name]["file"], name
        assert told[name]["most"] == 1, name


@pytest.mark.parametrize("place", ["host", "old_host"])
def test_files_sample_as_the_sockets(place: str, request: pytest.FixtureRequest) -> None:
    host: Host = request.getfixturevalue(place)
    names = list(FORMATS) if place == "host" else OLD_FORMATS
    graph = Graph()
    for name in names:
        base = graph.made(FORMATS[name][0])
        settings = {"steps": 1, "learning_rate": 1e-2, "targets": "attention and feed-forward"}
        model, clip, lora, *_ = graph.train(*base, graph.dataset(pictures(host)), **settings)
        graph.add(
            "PersonalizeSaveLora", lora=lora, filename_prefix=f"loras/{name}", format="kohya fp32"
        )
        sample(graph, *base[:2], prefix=f"{name}-before")
        sample(graph, model, clip, prefix=f"{name}-sockets")
    host.run(graph)
    graph = Graph()
    for name in names:
        base = graph.made(FORMATS[name][0])
        model, clip = graph.add(
            "LoraLoader", 2, model=base[0], clip=base[1], strength_model=1.0, strength_clip=1.0,
            lora_name=newest(host, "loras", name).name,
        )  # fmt: skip
        sample(graph, *base[:2], prefix=f"{name}-after", anew=True)
        sample(graph, model, clip, prefix=f"{name}-file")
    host.run(graph)
    for name in names:
        before = latents(host, f"{name}-before")
        sockets = latents(host, f"{name}-sockets")
        assert torch.equal(latents(host, f"{name}-after"), before), name
        assert difference(sockets, before) > 1e-2, name
        assert difference(latents(host, f"{name}-file"), sockets) < 1e-5, name


# -- text encoders ------------------------------------------------------------------------

QUANTIZED = json.dumps({**transformers.Z_IMAGE, "quantized": True})


def base_of(graph: Graph) -> list[Link]:
    return graph.add("ProbeTiny", 3, recipe=QUANTIZED)


@pytest.mark.parametrize("place", ["host", "old_host"])
def test_quantized_text_encoders_stay_frozen_as_they_are(
    place: str, request: pytest.FixtureRequest
) -> None:
    host: Host = request.getfixturevalue(place)
    graph = Graph()
    base = base_of(graph)
    settings = {"learning_rate": 1e-2, "targets": "all with convolutions"}
    model, clip, *_ = graph.train(*base, graph.dataset(pictures(host)), **settings)
    sample(graph, base[0], base[1], prefix="quantized/before")
    sample(graph, model, clip, prefix="quantized/trained")
    host.run(graph)
    before, trained = (latents(host, f"quantized/{name}") for name in ("before", "trained"))
    assert difference(trained, before) > 1e-2


def test_dreambooth_of_quantized_text_encoders_is_refused(host: Host) -> None:
    graph = Graph()
    base = base_of(graph)
    graph.dreambooth(*base, graph.dataset(pictures(host)), train_text_encoder=True)
    words = r"Input 'clip' holds quantized weights \(float8_e4m3fn\).*\nTurn train_text_encoder off"
    with pytest.raises(HostError, match=words):
        host.run(graph)
