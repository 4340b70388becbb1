"""What a step of the host's own modules is said to hold, before it starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests import tiny_transformers as transformers
from tests.base_models import SD15, Row, transformer
from tests.graphs import Graph
from tests.host import Host
from tests.test_host_lora import pictures
from tests.test_host_models import found

CHECKPOINTED = {"gradient_checkpointing": True}
SMALL = {"weights": "bf16", "fused_backward": True, "optimizer": "adafactor"}
OF_SD15 = {
    "lora": ("lora", {}),
    "lora, checkpointed": ("lora", CHECKPOINTED),
    "dreambooth": ("dreambooth", SMALL),
    "dreambooth, checkpointed": ("dreambooth", {**SMALL, **CHECKPOINTED}),
    "textual inversion": ("textual_inversion", {}),
    "textual inversion, checkpointed": ("textual_inversion", CHECKPOINTED),
}
TREAD = {"tread_selection_ratio": 0.5}
OF_FLUX = {
    "lora": ("lora", {"batch_size": 2}),
    "lora, tread, checkpointed": ("lora", {**TREAD, **CHECKPOINTED}),
}
QUANTIZED = {
    "lora": ("lora", {}),
    "dora, checkpointed": ("lora", {"variant": "dora", **CHECKPOINTED}),
}
OF_QUANTIZED = {
    "int4, rotated": QUANTIZED,
    "nvfp4, smoothed": {"lora": ("lora", {"train_text_encoder": True})},
    "": {name: ("lora", {"quantize_base": name}) for name in ("int8", "fp8")},
}
TINY_FLUX = transformer("flux", "flux", transformers.FLUX)
HIDREAM_O1 = transformer("hidream-o1", "generic", transformers.HIDREAM_O1)


def plans(host: Host, row: Row, trainings: Mapping[str, Any]) -> dict[str, Any]:
    graph = Graph()
    model, clip, vae = row.load(host, graph)
    dataset = graph.dataset(pictures(host), "a photo of a dog")
    graph.add(
        "ProbePlans", model=model, clip=clip, vae=vae, dataset=dataset,
        trainings=json.dumps(trainings),
    )  # fmt: skip
    measured = found(host.run(graph))
    assert measured["untouched"]
    told: dict[str, Any] = measured["plans"]
    return told


@pytest.mark.parametrize(
    ("row", "trainings"), [(SD15, OF_SD15), (TINY_FLUX, OF_FLUX)], ids=["sd15", "flux"]
)
def test_plans_are_what_steps_hold(host: Host, row: Row, trainings: Mapping[str, Any]) -> None:
    for name, told in plans(host, row, trainings).items():
        planned, measured = told["planned"], told["measured"]
        sizes = ("frozen", "trained", "gradients", "states", "activations")
        together, really = (sum(one[size] for size in sizes) for one in (planned, measured))
        assert together == pytest.approx(really, rel=0.05), (name, told)
        assert planned["trained"] == measured["trained"], name
        assert planned["flops"] == measured["flops"], name


@pytest.mark.parametrize("held", OF_QUANTIZED)
def test_plans_of_quantized_models_are_what_steps_hold(host: Host, held: str) -> None:
    recipe = {**transformers.Z_IMAGE, "held": held, "quantized": bool(held)}
    row = transformer("z-image", "z_image", recipe)
    for name, told in plans(host, row, OF_QUANTIZED[held]).items():
        sizes = ("frozen", "trained", "gradients", "states", "activations")
        planned, measured = (
            sum(told[one][size] for size in sizes) for one in ("planned", "measured")
        )
        assert planned == pytest.approx(measured, rel=0.05), (name, told)
        assert told["planned"]["frozen"] == told["measured"]["frozen"], name


def test_a_model_that_looks_at_numbers_has_no_plan(host: Host) -> None:
    told = plans(host, HIDREAM_O1, {"lora": ("lora", {})})["lora"]
    assert "nonzero" in told["failed"]
