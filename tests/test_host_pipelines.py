"""LoRAs of transformers, trained in a real ComfyUI, in diffusers' pipelines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers.loaders import lora_pipeline
from diffusers.utils import logging
from torch import Tensor, nn

from tests import tiny_transformers as transformers
from tests.base_models import newest
from tests.graphs import Graph
from tests.host import Host, HostError
from tests.pipelines import ROWS, Row, at_our_width
from tests.test_host_lora import PROMPT, difference, pictures
from tests.test_host_stack import add_lora

ALIKE = 1e-4


@pytest.fixture
def warnings_of_diffusers(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """A function that gives what diffusers has warned of."""
    logging.enable_propagation()
    # Said of the text encoders, which are not there.
    harmless = "No LoRA keys associated to NoneType"
    yield lambda: [r.message for r in caplog.records if harmless not in r.getMessage()]
    logging.disable_propagation()


def trained(host: Host, row: Row) -> dict[str, Path]:
    """A LoRA in each format; and what the host's module gives without one and with each."""
    graph = Graph()
    model, clip, vae = graph.add("ProbeTiny", 3, recipe=json.dumps(row.recipe))
    dataset = graph.dataset(pictures(host), PROMPT)
    said = graph.encode(clip, PROMPT)
    graph.add("ProbeCalled", model=model, conditioning=said, name=f"{row}-base")
    graph.add("ModelSave", model=model, filename_prefix=f"saved/{row}")
    # An alpha that is not the rank, whose part in it has to be in the numbers.
    settings = {"steps": 1, "learning_rate": 3e-2, "alpha": 3.0}
    loras = {
        targets: graph.train(model, clip, vae, dataset, **settings, targets=targets)[2]
        for targets in sorted({*row.files.values()})
    }
    for name, targets in row.files.items():
        graph.add(
            "PersonalizeSaveLora", lora=loras[targets], filename_prefix=f"loras/{row}-{name}",
            format=f"{name} fp32", model=model,
        )  # fmt: skip
    host.run(graph)
    files = {name: newest(host, "loras", f"{row}-{name}") for name in row.files}
    graph = Graph()
    model, clip, _ = graph.add("ProbeTiny", 3, recipe=json.dumps(row.recipe))
    said = graph.encode(clip, PROMPT)
    for name, file in files.items():
        with_lora = graph.add(
            "LoraLoaderModelOnly", model=model, strength_model=1.0, lora_name=file.name
        )[0]
        graph.add("ProbeCalled", model=with_lora, conditioning=said, name=f"{row}-{name}")
    host.run(graph)
    return files


def kept(host: Host, row: Row, name: str) -> dict[str, Tensor]:
    return safetensors.torch.load_file(host.base / "output" / f"{row}-{name}.safetensors")


def base_weights(host: Host, row: Row) -> dict[str, Tensor]:
    saved = safetensors.torch.load_file(newest(host, "saved", row.name))
    start = "model.diffusion_model."
    return {k.removeprefix(start): w for k, w in saved.items() if k.startswith(start)}


def outputs(tensors: dict[str, Tensor], *endings: str) -> int:
    """How many outputs a LoRA's layers have in all."""
    return sum(len(tensor) for key, tensor in tensors.items() if key.endswith(endings))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_diffusers_predicts_with_a_lora_as_the_host(
    host: Host,
    row: Row,
    warnings_of_diffusers: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kohya = "_convert_kohya_flux_lora_to_diffusers"
    monkeypatch.setattr(lora_pipeline, kohya, at_our_width(getattr(lora_pipeline, kohya)))
    files = trained(host, row)
    pipe = row.made(base_weights(host, row))
    base = kept(host, row, "base")
    with torch.no_grad():
        plain = row.call(pipe, base)
    assert difference(plain, base["output"]) < ALIKE
    for name, file in files.items():
        caplog.clear()
        pipe.load_lora_weights(file.parent, weight_name=file.name)
        loaded = sum(
            outputs(part.state_dict(), ".lora_B.default_0.weight")
            for part in pipe.components.values()
            if isinstance(part, nn.Module)
        )
        tensors = safetensors.torch.load_file(file)
        assert loaded == outputs(tensors, "lora_B.weight", "_up.weight")
        theirs = kept(host, row, name)
        with torch.no_grad():
            ours = row.call(pipe, theirs)
        assert difference(ours, theirs["output"]) < ALIKE, name
        assert difference(ours - plain, theirs["output"] - base["output"]) < ALIKE, name
        assert difference(ours, plain) > 1e-2, name
        assert warnings_of_diffusers() == []
        pipe.unload_lora_weights()


@pytest.mark.parametrize(
    ("recipe", "layer", "words"),
    [
        (transformers.AURA_FLOW, "init_x_linear", "input 'model' is of a kind without names"),
        (transformers.KLEIN, "final_layer.adaLN_modulation.1", "no name for 1 of the LoRA's 1"),
    ],
    ids=["no record", "read wrongly"],
)
def test_what_diffusers_does_not_read_is_refused(
    host: Host, recipe: transformers.Recipe, layer: str, words: str
) -> None:
    name = f"diffusion_model.{layer}"
    tensors = {f"{name}.lora_A.weight": torch.ones(1, 2), f"{name}.lora_B.weight": torch.ones(2, 1)}
    graph = Graph()
    lora = graph.add("ProbeLora", name=add_lora(host, tensors))[0]
    model = graph.add("ProbeTiny", 3, recipe=json.dumps(recipe))[0]
    graph.add(
        "PersonalizeSaveLora", lora=lora, filename_prefix="loras/refused",
        format="diffusers fp32", model=model,
    )  # fmt: skip
    with pytest.raises(HostError, match=words):
        host.run(graph)
