"""Train DreamBooth in a real ComfyUI: its sockets are an ordinary MODEL and CLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests import tiny_transformers
from tests.conftest import on_a_cpu
from tests.graphs import Graph, Link, as_new
from tests.host import Host, HostError
from tests.test_host_lora import PROMPT, any_host, difference, latents, pictures
from tests.test_host_runs import folder_of

__all__ = ["any_host"]  # a fixture

TEXT_ENCODER = {"train_text_encoder": True, "text_encoder_learning_rate": 1e-4}


def new_files(host: Host, pattern: str, before: set[Path]) -> Path:
    (file,) = set((host.base / "output").glob(pattern)) - before
    return file


@pytest.mark.parametrize("checkpoint", ["thin_sd15.safetensors", "thin_sd15_fp16.safetensors"])
@pytest.mark.parametrize("settings", [{}, TEXT_ENCODER], ids=["unet", "text encoder"])
def test_saved_checkpoint_samples_as_the_sockets_do(
    any_host: Host, settings: dict[str, Any], checkpoint: str
) -> None:
    host, graph = any_host, Graph()
    model, clip, vae = graph.load(checkpoint)
    graph.sample(model, clip, "before", PROMPT)
    trained = graph.dreambooth(model, clip, vae, graph.dataset(pictures(host)), **settings)
    graph.sample(trained[0], trained[1], "sockets", PROMPT)
    graph.add(
        "CheckpointSave", model=trained[0], clip=trained[1], vae=vae, filename_prefix="saved/db"
    )
    host.run(graph)
    saved = max((host.base / "output" / "saved").glob("db_*.safetensors"))
    name = host.add_model("checkpoints", saved, f"{host.base.name}-{saved.name}")

    graph = Graph()
    model, clip, _ = graph.load(checkpoint)
    graph.sample(model, clip, "after", as_new(PROMPT))
    graph.sample(*graph.load(name)[:2], "file", PROMPT)
    host.run(graph)
    assert torch.equal(latents(host, "before"), latents(host, "after"))
    assert difference(latents(host, "file"), latents(host, "sockets")) < 1e-3
    assert difference(latents(host, "sockets"), latents(host, "before")) > 1e-2


def test_lora_stacks_on_the_sockets(any_host: Host) -> None:
    host, graph = any_host, Graph()
    model, clip, vae = graph.load()
    dataset = graph.dataset(pictures(host))
    lora = graph.train(model, clip, vae, dataset, learning_rate=1e-2)[2]
    trained = graph.dreambooth(model, clip, vae, dataset, **TEXT_ENCODER)
    stacked = graph.add(
        "PersonalizeApplyLora", 2, model=trained[0], clip=trained[1], lora=lora,
        strength_model=1.0, strength_clip=1.0,
    )  # fmt: skip
    graph.sample(*trained[:2], "alone", PROMPT)
    graph.sample(*stacked, "stacked", PROMPT)
    # a LoRA trained on the trained model's sockets
    second = graph.train(*trained[:2], vae, dataset, learning_rate=1e-2, seed=9)
    graph.sample(*second[:2], "second", PROMPT)
    host.run(graph)
    assert difference(latents(host, "stacked"), latents(host, "alone")) > 1e-3
    assert difference(latents(host, "second"), latents(host, "alone")) > 1e-3


@on_a_cpu
def test_run_folder_holds_the_weights_in_the_dtype_of_the_base(host: Host) -> None:
    folder = host.base / "output" / "personalize"
    before = set((host.base / "output").glob("personalize/dreambooth-*"))
    graph = Graph()
    sockets = graph.load("thin_sd15_fp16.safetensors")
    graph.dreambooth(*sockets, graph.dataset(pictures(host)), **TEXT_ENCODER, seed=21)
    host.run(graph)
    run = new_files(host, "personalize/dreambooth-*", before)
    assert run.parent == folder
    with safetensors.safe_open(run / "result-00000004.safetensors", "pt") as file:
        keys = list(file.keys())
        assert {key.split(".")[0] for key in keys} == {"denoiser", "clip_l"}
        kept = {key: file.get_tensor(key).dtype for key in keys}
        # On a CPU the host widens the UNet.
        wide = {key for key, dtype in kept.items() if dtype == torch.float32}
        assert wide == {key for key in keys if key.startswith("denoiser")}
        assert set(kept.values()) == {torch.float16, torch.float32}
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-v1"
        assert file.metadata()["ss_steps"] == "4"
    stored = json.loads((run / "run.json").read_text())
    assert stored["own"]["train_text_encoder"] is True


def test_training_starts_from_the_lora_wired_in_before(host: Host) -> None:
    graph = Graph()
    model, clip, vae = graph.load()
    dataset = graph.dataset(pictures(host))
    first = graph.train(model, clip, vae, dataset)
    trained = graph.dreambooth(first[0], first[1], vae, dataset, steps=1, learning_rate=1e-30)
    graph.sample(first[0], first[1], "lora", PROMPT)
    graph.sample(trained[0], trained[1], "trained", PROMPT)
    host.run(graph)
    assert difference(latents(host, "trained"), latents(host, "lora")) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"weights": "bf16", "precision": "auto", "fused_backward": True, "optimizer": "adafactor"},
        {"fused_backward": True, "gradient_checkpointing": True, "ema_decay": 0.5},
        {"prior": "teacher", "class_prompt": "a photo of a dog", "prior_samples": 3},
    ],
    ids=["bf16", "ema", "teacher"],
)
def test_other_ways_to_train_change_the_pictures(host: Host, settings: dict[str, Any]) -> None:
    graph = Graph()
    model, clip, vae = graph.load()
    trained = graph.dreambooth(model, clip, vae, graph.dataset(pictures(host)), **settings)
    graph.sample(model, clip, "before", PROMPT)
    graph.sample(trained[0], trained[1], "after", PROMPT)
    host.run(graph)
    assert latents(host, "after").isfinite().all()
    assert difference(latents(host, "after"), latents(host, "before")) > 1e-3


# -- bad input ----------------------------------------------------------------------------


def failing(host: Host, settings: dict[str, Any], class_dataset: dict[str, Any] | None) -> Graph:
    folder_of(host, "class", (64, 64))
    graph = Graph()
    sockets: list[Link] = graph.load()
    if class_dataset is not None:
        settings = {**settings, "class_dataset": graph.dataset("class", **class_dataset)}
    graph.dreambooth(*sockets, graph.dataset(pictures(host)), **settings)
    return graph


@pytest.mark.parametrize(
    ("settings", "class_dataset", "words"),
    [
        ({}, {"resolution": 128}, r"resolution 128, but 'dataset' \('dog'\) has 64"),
        ({"prior_weight": -0.5}, {}, "prior_weight"),
        ({"fused_backward": True, "gradient_accumulation": 2}, None, "gradient_accumulation is 2"),
        ({"prior": "teacher"}, None, "class_prompt is empty"),
        ({"prior": "teacher", "class_prompt": "a dog"}, {}, "takes no class_dataset"),
    ],
)
def test_bad_input_is_named_before_anything_runs(
    host: Host, settings: dict[str, Any], class_dataset: dict[str, Any] | None, words: str
) -> None:
    before = set((host.base / "output").glob("personalize/dreambooth-*"))
    with pytest.raises(HostError, match=words):
        host.run(failing(host, settings, class_dataset))
    assert set((host.base / "output").glob("personalize/dreambooth-*")) == before


def test_clip_that_is_not_wired_is_named(host: Host) -> None:
    graph = failing(host, TEXT_ENCODER, None)
    trainer = next(n for n in graph.values() if n["class_type"] == "PersonalizeTrainDreamBooth")
    del trainer["inputs"]["clip"]
    with pytest.raises(HostError, match="clip"):
        host.run(graph)


@pytest.mark.parametrize(
    ("part", "words"),
    [("cond_stage_model", "Input 'clip' is empty"), ("first_stage_model", "Input 'vae' is empty")],
)
def test_checkpoint_without_a_part_is_named(
    any_host: Host, checkpoint_files: dict[str, Path], tmp_path: Path, part: str, words: str
) -> None:
    host = any_host
    weights = safetensors.torch.load_file(checkpoint_files["thin_sd15_fp16.safetensors"])
    without = {k: w for k, w in weights.items() if not k.startswith(part)}
    safetensors.torch.save_file(without, tmp_path / f"no_{part}.safetensors")
    bare = host.add_model("checkpoints", tmp_path / f"no_{part}.safetensors")
    graph = Graph()
    graph.dreambooth(*graph.load(bare), graph.dataset(pictures(host)), **TEXT_ENCODER)
    with pytest.raises(HostError, match=words):
        host.run(graph)


def test_disk_that_cannot_hold_the_weights_is_told_before_the_training(host: Host) -> None:
    small = Graph()
    small.add("ProbeDisk", free_bytes=1000)
    host.run(small)
    try:
        with pytest.raises(HostError, match=r"has 0\.0 GB left; the trained weights need 0\.1 GB"):
            host.run(failing(host, {"seed": 90}, None))
    finally:
        small["1"]["inputs"]["free_bytes"] = 0
        host.run(small)


@pytest.mark.parametrize(
    ("recipe", "trained"),
    [(tiny_transformers.FLUX, "clip_l"), (tiny_transformers.CHROMA, "t5xxl")],
    ids=["flux", "chroma"],
)
def test_disk_is_asked_for_what_trains_alone(
    host: Host, recipe: dict[str, Any], trained: str
) -> None:
    graph = Graph()
    model, clip, _ = graph.made(recipe)
    graph.add("ProbeSaved", model=model, clip=clip, trained=trained)
    (measured,) = [json.loads(o["found"][0]) for o in host.run(graph)["outputs"].values()]
    assert measured["said"] == measured["needed"]
