"""Models whose weights are quantized, in every format that the host has, in a real ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch

from tests import tiny_transformers as transformers
from tests.base_models import METHODS, Row, transformer
from tests.conftest import model_file
from tests.graphs import Graph, Link
from tests.host import Host, HostError
from tests.test_host_lora import difference, latents, pictures
from tests.test_host_models import sample

pytestmark = pytest.mark.host


class Case(NamedTuple):
    """A base model in a format.

    Attributes:
        told: of the small model's recipe; None is the UNet of SD1.5, in fp8 without a scale.
        method: in METHODS, tried through the nodes.
        bound: how far gradients may be from those of the model widened.
        settings: of a training.
    """

    told: Mapping[str, Any] | None
    method: str = "lora"
    bound: float = 1e-3
    settings: Mapping[str, Any] = {}

    def load(self, host: Host, graph: Graph) -> list[Link]:
        """MODEL, CLIP and VAE."""
        if self.told is not None:
            return graph.made({**transformers.Z_IMAGE, **self.told})
        _, clip, vae = graph.load()
        path = model_file("thin_sd15", "fp16")
        file = host.add_model("diffusion_models", path, "to_fp8.safetensors")
        model = graph.add("UNETLoader", unet_name=file, weight_dtype="fp8_e4m3fn")[0]
        return [model, clip, vae]


CASES = {
    "float8_e4m3fn": Case({"held": "float8_e4m3fn"}),
    "float8_e5m2": Case({"held": "float8_e5m2"}, "loha"),
    "mxfp8": Case({"held": "mxfp8"}, "dora"),
    "nvfp4": Case({"held": "nvfp4"}, "oft"),
    "nvfp4, smoothed": Case({"held": "nvfp4, smoothed"}, "pissa"),
    "int8": Case({"held": "int8"}, "lokr"),
    "int8, by rows": Case({"held": "int8, by rows"}),
    "int8, rotated": Case({"held": "int8, rotated"}, "dora"),
    "int4, rotated": Case({"held": "int4, rotated"}, bound=1e-2),
    "plain float8_e4m3fn": Case({"dtype": "float8_e4m3fn"}, "pissa"),
    "plain float8_e5m2": Case({"dtype": "float8_e5m2"}),
    "UNet in float8_e4m3fn": Case(None),
    "quantized to int8": Case({}, settings={"quantize_base": "int8"}),
    "quantized to fp8": Case({"dtype": "bfloat16"}, "lokr", settings={"quantize_base": "fp8"}),
    "text encoder": Case({"quantized": True}, "textlora"),
    "inversion": Case({"quantized": True, "held": "nvfp4"}, "inversion"),
}
OF_DENOISERS = {name: case for name, case in CASES.items() if "quantized" not in (case.told or {})}
# The others came to it later, or are alike.
OLD = ("float8_e4m3fn", "nvfp4", "plain float8_e5m2", "quantized to fp8", "text encoder")
GGUF = Case({"held": "gguf"})


def measured(host: Host, graph: Graph) -> dict[str, Any]:
    """What the probes of a prompt found, by name."""
    outputs = host.run(graph)["outputs"].values()
    shown = (json.loads(output["found"][0]) for output in outputs if "found" in output)
    return {name: value for one in shown for name, value in one.items()}


def test_gradients_are_those_of_the_model_widened(host: Host) -> None:
    graph = Graph()
    cases = {**OF_DENOISERS, "gguf": GGUF}
    for name, case in cases.items():
        model, clip, _ = case.load(host, graph)
        settings = json.dumps({"targets": "all with convolutions", **case.settings})
        graph.add("ProbeQuantized", model=model, clip=clip, name=name, settings=settings)
    told = measured(host, graph)
    for name, case in cases.items():
        assert told[name]["difference"] < case.bound, name
        assert told[name]["trained"] > 20, name
        assert told[name]["most"] == 1, name  # layers at a time
        if not case.settings:
            assert told[name]["held"] < 1.01 * told[name]["file"], name
    # Of fp32 and of bf16; half of a model this small is what stays.
    assert told["quantized to int8"]["held"] < 0.45 * told["quantized to int8"]["file"]
    assert told["quantized to fp8"]["held"] < 0.65 * told["quantized to fp8"]["file"]


@pytest.mark.parametrize("place", ["host", "old_host"])
def test_files_sample_as_the_sockets(place: str, request: pytest.FixtureRequest) -> None:
    host: Host = request.getfixturevalue(place)
    cases = CASES if place == "host" else {name: CASES[name] for name in OLD}
    graph = Graph()
    for name, case in cases.items():
        base = case.load(host, graph)
        dataset = graph.dataset(pictures(host))
        sample(graph, *base[:2], prefix=f"{name}-before")
        sample(graph, *trained(graph, base, dataset, name, case), prefix=f"{name}-sockets")
    host.run(graph)
    graph = Graph()
    for name, case in cases.items():
        base = case.load(host, graph)
        sample(graph, *base[:2], prefix=f"{name}-after", anew=True)
        loaded = METHODS[case.method].load(host, graph, TINY, base, name)
        sample(graph, *loaded, prefix=f"{name}-file")
    host.run(graph)
    for name in cases:
        before = latents(host, f"{name}-before")
        sockets = latents(host, f"{name}-sockets")
        assert torch.equal(latents(host, f"{name}-after"), before), name
        assert difference(sockets, before) > 1e-2, name
        assert difference(latents(host, f"{name}-file"), sockets) < 1e-5, name


TINY: Row = transformer("z-image", "z_image", transformers.Z_IMAGE)


def trained(graph: Graph, base: list[Link], dataset: Link, name: str, case: Case) -> Any:
    method = METHODS[case.method]
    if case.settings:
        method = method._replace(settings={**method.settings, **case.settings})  # type: ignore[attr-defined]
    return method.train(graph, base, dataset, name)


def test_loras_before_the_trainer_count(host: Host) -> None:
    graph = Graph()
    names = ("int8", "nvfp4, smoothed", "plain float8_e4m3fn", "gguf")
    cases = {name: GGUF if name == "gguf" else CASES[name] for name in names}
    settings = {"targets": "attention and feed-forward"}
    for name, case in cases.items():
        base = case.load(host, graph)
        *_, lora, _, _ = graph.train(
            *base, graph.dataset(pictures(host)), steps=1, learning_rate=1e-2, **settings
        )
        patched = graph.add(
            "PersonalizeApplyLora", 2, model=base[0], clip=base[1], lora=lora, strength_model=1.0,
            strength_clip=1.0,
        )[0]  # fmt: skip
        graph.add(
            "ProbePatched", model=base[0], clip=base[1], lora=lora, patched=patched, name=name,
            settings=json.dumps(settings),
        )  # fmt: skip
    told = measured(host, graph)
    assert {name: told[name]["patched"] < 1e-5 for name in cases} == dict.fromkeys(cases, True)


def test_a_host_without_a_kitchen_is_told_what_it_lacks(host: Host) -> None:
    graph = Graph()
    graph.add("ProbeNoKitchen")
    said = measured(host, graph)
    assert said.keys() == {"int8", "fp8"}
    for name, text in said.items():
        assert f"quantize_base is '{name}', but this ComfyUI has no kernels for it" in text
        assert "package comfy_kitchen" in text
        assert text.endswith("or set quantize_base to none.")


def test_what_is_quantized_is_not_quantized_again(host: Host) -> None:
    graph = Graph()
    base = CASES["nvfp4"].load(host, graph)
    graph.train(*base, graph.dataset(pictures(host)), quantize_base="int8")
    with pytest.raises(HostError, match="the base that is wired in is quantized already; allowed"):
        host.run(graph)


def test_previews_are_made_with_the_layers_that_train(host: Host) -> None:
    graph = Graph()
    base = CASES["int4, rotated"].load(host, graph)
    preview = graph.add(
        "PersonalizePreview", prompts="a dog", every_steps=2, seed=1, width=64, height=64, steps=2,
        cfg=1.0, sampler_name="euler", scheduler="normal",
    )[0]  # fmt: skip
    dataset = graph.dataset(pictures(host))
    settings = {"steps": 4, "checkpointing": "all", "precision": "bf16"}
    graph.train(*base, dataset, preview=preview, seed=11, **settings)
    pattern, runs = "lora-*/previews/step_00000004_0.png", host.base / "output" / "personalize"
    before = set(runs.glob(pattern))
    host.run(graph)
    (picture,) = set(runs.glob(pattern)) - before
    assert picture.stat().st_size > 100


# -- text encoders ------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["host", "old_host"])
def test_quantized_text_encoders_stay_frozen_as_they_are(
    place: str, request: pytest.FixtureRequest
) -> None:
    host: Host = request.getfixturevalue(place)
    graph = Graph()
    base = Case({"quantized": True}).load(host, graph)
    settings = {"learning_rate": 1e-2, "targets": "all with convolutions"}
    model, clip, *_ = graph.train(*base, graph.dataset(pictures(host)), **settings)
    sample(graph, base[0], base[1], prefix="quantized/before")
    sample(graph, model, clip, prefix="quantized/trained")
    host.run(graph)
    before, trained = (latents(host, f"quantized/{name}") for name in ("before", "trained"))
    assert difference(trained, before) > 1e-2


def test_dreambooth_of_quantized_text_encoders_is_refused(host: Host) -> None:
    graph = Graph()
    base = Case({"quantized": True}).load(host, graph)
    graph.dreambooth(*base, graph.dataset(pictures(host)), train_text_encoder=True)
    words = r"Input 'clip' holds quantized weights \(float8_e4m3fn\).*\nTurn train_text_encoder off"
    with pytest.raises(HostError, match=words):
        host.run(graph)
