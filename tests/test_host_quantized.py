"""Text encoders in fp8, which most people load beside a large model."""

from __future__ import annotations

import json

import pytest

from tests import tiny_transformers as transformers
from tests.graphs import Graph, Link
from tests.host import Host
from tests.test_host_lora import difference, latents, pictures
from tests.test_host_models import sample
from tests.test_host_refusals import refused

pytestmark = pytest.mark.host

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


def test_quantized_text_encoders_do_not_train(host: Host) -> None:
    graph = Graph()
    words = r"Input 'clip' holds quantized weights \(float8_e4m3fn\).*\nTurn train_text_encoder off"
    refused(host, graph, base_of(graph), words)
