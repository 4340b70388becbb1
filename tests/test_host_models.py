"""Every kind of base model with every method, in a real ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from tests.base_models import (
    EDITS,
    KOALA,
    METHODS,
    ROWS,
    SD2,
    SD2_FILE,
    SD15,
    SDXL,
    SMALL,
    SSD1B,
    TEXT,
    TRANSFORMERS,
    Row,
)  # fmt: skip
from tests.conftest import on_the_cpu
from tests.graphs import Graph, Link
from tests.host import Host
from tests.scanned.pictures import PICTURES
from tests.scanned.videos import VIDEOS
from tests.test_host_lora import PROMPT, difference, latents, pictures

COMPLAINTS = (
    "lora key not loaded", "NOT LOADED", "clip missing", "unet missing", "unet unexpected",
    "left over keys",
)  # fmt: skip
WITH_GRADIENTS = [SD15, SD2, SDXL, SSD1B, KOALA, *TRANSFORMERS, *EDITS]
every_row = pytest.mark.parametrize("row", ROWS, ids=str)
files_and_edits_too = pytest.mark.parametrize(
    "row", [*ROWS, pytest.param(SD2_FILE, marks=pytest.mark.large), *EDITS], ids=str
)


# -- what is measured ---------------------------------------------------------------------


def sample(
    graph: Graph,
    model: Link,
    clip: Link,
    prompt: str = PROMPT,
    prefix: str = "samples",
    anew: bool = False,
    encode: Callable[[Link, str], Link] | None = None,
) -> None:
    """Two steps at 64 px without guidance, so that one prompt is all there is to encode.

    Args:
        anew: compute it even if the host has it from an earlier prompt.
        encode: a prompt's conditioning, where it is more than its text.
    """
    said = (encode or graph.encode)(clip, prompt)
    if anew:  # the same all the way through
        said = graph.add("ConditioningSetTimestepRange", conditioning=said, start=0.0, end=1.0)[0]
    empty = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)[0]
    made = graph.add(
        "KSampler", model=model, positive=said, negative=said, latent_image=empty, seed=1,
        steps=2, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )[0]  # fmt: skip
    graph.add("SaveLatent", samples=made, filename_prefix=prefix)


def found(entry: dict[str, Any]) -> dict[str, Any]:
    """What the probes of a prompt measured, all in one."""
    shown = (json.loads(o["found"][0]) for o in entry["outputs"].values() if "found" in o)
    return {name: value for measured in shown for name, value in measured.items()}


def hosts_of(place: str, row: Row, request: pytest.FixtureRequest) -> tuple[Host, Sequence[str]]:
    """A host, and what is trained there; the test is skipped where that is nothing."""
    names = row.methods if place == "host" else row.old_methods
    if not names:
        pytest.skip("not tried in the oldest ComfyUI")
    host: Host = request.getfixturevalue(place)
    return host, names


each_host = pytest.mark.parametrize("place", ["host", "old_host"])


@each_host
@files_and_edits_too
def test_files_sample_as_the_sockets(request: pytest.FixtureRequest, place: str, row: Row) -> None:
    host, names = hosts_of(place, row, request)
    log_from = len(host.log())
    graph = Graph()
    base = row.load(host, graph)
    encode = partial(row.encode, host, graph, base)
    dataset = graph.dataset(row.pictures(host), "a photo of a dog")
    sample(graph, *base[:2], prefix="before", encode=encode)
    for name in names:
        trained = METHODS[name].train(graph, base, dataset, name)
        sample(graph, *trained, prefix=f"{name}-sockets", encode=encode)
    as_trained = found(host.run(graph))

    graph = Graph()
    base = row.load(host, graph)
    encode = partial(row.encode, host, graph, base)
    sample(graph, *base[:2], prefix="after", anew=True, encode=encode)
    for name in names:
        loaded = METHODS[name].load(host, graph, row, base, name)
        sample(graph, *loaded, prefix=f"{name}-file", encode=encode)
    host.run(graph)

    before = latents(host, "before")
    assert torch.equal(latents(host, "after"), before)
    sockets = {name: latents(host, f"{name}-sockets") for name in names}
    changed = {name: difference(sockets[name], before) for name in names}
    away = {name: difference(latents(host, f"{name}-file"), sockets[name]) for name in names}
    assert all(changed[name] > 1e-2 for name in names), {
        n: float(c) for n, c in changed.items() if c <= 1e-2
    }
    assert all(away[name] < 1e-5 for name in names), away
    if "textlora" in names:
        assert as_trained["unused keys"] == 0
        assert max(as_trained["text"], as_trained["prediction"]) < 2e-3  # the host rounds to fp16
    said = host.log()[log_from:]
    assert [words for words in COMPLAINTS if words in said] == []


PROBED: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}


def probed(host: Host, place: str, row: Row) -> dict[str, dict[str, Any]]:
    """What each probe of twins measured: all in one prompt, since models take long to make."""
    if (place, row.name) in PROBED:
        return PROBED[place, row.name]
    graph = Graph()
    model, clip, _ = base = row.load(host, graph)
    said, shown = row.encode(host, graph, base, clip, PROMPT), row.shown(host, graph, base)
    parts = {"model": model, "clip": clip}
    graph.add("ProbePrediction", conditioning=said, text=PROMPT, **parts, **shown)
    graph.add("ProbeSharing", **parts)
    if place == "host" and row in WITH_GRADIENTS:
        graph.add("ProbeGradients", text=PROMPT, **parts, **shown)
        if row.encoder is None:
            graph.add("ProbeRouted", text=PROMPT, **parts)
    if place == "host" and row in ROWS:
        graph.add("ProbeStep", text=PROMPT, **parts)
    outputs = host.run(graph)["outputs"].items()
    measured = {
        graph[node]["class_type"]: json.loads(o["found"][0]) for node, o in outputs if "found" in o
    }
    return PROBED.setdefault((place, row.name), measured)


@each_host
@files_and_edits_too
def test_twins_compute_as_the_host(request: pytest.FixtureRequest, place: str, row: Row) -> None:
    told = probed(hosts_of(place, row, request)[0], place, row)
    measured = {**told["ProbePrediction"], **told["ProbeSharing"]}
    assert measured.pop("prediction") < 1e-5
    assert measured.pop("text") < 1e-5
    assert measured.pop("frozen text") < 1e-5
    assert measured.pop("batch") < 1e-5
    assert measured.pop("architecture") == row.architecture
    assert measured.pop("objective") == row.objective
    # The denoiser and each text encoder; some have none, but read the words themselves.
    assert len(measured) > (row.recipe.get("sizes") != {})
    for shared, total in measured.values():
        assert shared == (total if on_the_cpu() else 0)


@pytest.mark.parametrize("row", WITH_GRADIENTS, ids=str)
def test_gradients_are_those_of_the_loss(host: Host, row: Row) -> None:
    told = probed(host, "host", row)
    measured = told["ProbeGradients"]
    assert measured["difference"] < 5e-5  # sums in another order
    assert measured["streamed"] == 0
    assert measured["numeric"] < 1e-3
    assert measured["without"] == row.unused
    if row.encoder is None:
        assert_routed(told["ProbeRouted"], can_be=row in TRANSFORMERS)


def assert_routed(measured: dict[str, Any], can_be: bool) -> None:
    """What ProbeRouted found is right: tokens skip blocks, or an error says that they cannot."""
    if not can_be:
        assert "it is not known how tokens go through its blocks" in measured["not routed"]
        return
    assert measured["as before"]
    assert measured["all kept"]
    assert measured["away"] == round(0.4 * measured["tokens"]) > 1
    assert measured["routed"] < 1e-5
    assert measured["differs"] > 1e-3
    assert measured["routed gradients"] < 5e-5
    assert measured["routed numeric"] < 2e-2  # no text encoder trains, so rounding counts for more


OTHER_ROUTES = (
    "Lumina Image 2", "ERNIE-Image", "PixArt Sigma", "HunyuanDiT 1.2", "HunyuanImage 2.1",
    "HiDream I1", "Wan 2.1, and 2.2 14B, text to video", "Wan 2.1 VACE",
)  # fmt: skip


@pytest.mark.parametrize("name", OTHER_ROUTES)
def test_tokens_of_other_transformers_skip_blocks(host: Host, name: str) -> None:
    graph = Graph()
    model, clip, _ = graph.made({**PICTURES, **VIDEOS}[name])
    graph.add("ProbeRouted", model=model, clip=clip, text=PROMPT)
    assert_routed(found(host.run(graph)), can_be=True)


@every_row
def test_step_is_that_of_plain_torch(host: Host, row: Row) -> None:
    measured = probed(host, "host", row)["ProbeStep"]
    assert measured["loss"] < 1e-5
    assert measured["moved"] < 1e-2  # AdamW moves the least gradient as far as any other


@pytest.mark.large
@pytest.mark.usefixtures("much_memory")
def test_dreambooth_of_sdxl_trains_its_text_encoders(host: Host) -> None:
    graph = Graph()
    base = graph.load("thin_sdxl.safetensors")
    dataset = graph.dataset(pictures(host), "a photo of a dog")
    model, clip, *_ = graph.dreambooth(*base, dataset, **SMALL, **TEXT, steps=1, learning_rate=1e-4)
    sample(graph, base[0], base[1], prefix="before")
    sample(graph, base[0], clip, prefix="text")
    sample(graph, model, clip, prefix="all")
    host.run(graph)
    graph = Graph()
    base = graph.load("thin_sdxl.safetensors")
    sample(graph, *base[:2], prefix="after", anew=True)
    host.run(graph)
    assert torch.equal(latents(host, "before"), latents(host, "after"))
    assert difference(latents(host, "text"), latents(host, "before")) > 1e-2
    assert difference(latents(host, "all"), latents(host, "text")) > 1e-2
