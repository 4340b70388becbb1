"""Runs in one ComfyUI, and bad input: the queue stays usable."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image, ImageColor

from tests.conftest import on_a_cpu
from tests.events import Event
from tests.graphs import Graph, every_base
from tests.host import Host, HostError
from trainers.runs.pictures.plot import LOOKS


def folder_of(host: Host, name: str, *sizes: tuple[int, int]) -> Path:
    folder = host.base / "input" / name
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (40 * number, 90, 160)).save(folder / f"{number}.png")
    return folder


def training(
    folder: str = "dog",
    dataset: dict[str, Any] | None = None,
    base: str = "sd15",
    **settings: Any,
) -> Graph:
    graph = Graph()
    checkpoint = settings.pop("checkpoint", "")
    model, clip, vae = graph.load(checkpoint) if checkpoint else graph.base(base)
    graph.train(model, clip, vae, graph.dataset(folder, **(dataset or {})), **settings)
    return graph


def cancel_midway(host: Host, graph: Graph) -> None:
    """Cancel as soon as the second step was reported."""

    def on_event(event: Any) -> None:
        if event.kind == "progress" and event.data["value"] >= 2:
            host.interrupt()

    with pytest.raises(HostError) as failed:
        host.follow(graph, on_event)
    assert failed.value.kind == "interrupted"


@on_a_cpu
@every_base
def test_pictures_of_their_own_are_watched_and_not_trained(host: Host, base: str) -> None:
    folder_of(host, "dog", (80, 72), (72, 80))
    folder_of(host, "others", (64, 64), (72, 72), (80, 80))
    runs = []
    for watched in (False, True):
        graph = Graph()
        sockets = [*graph.base(base), graph.dataset("dog")]
        extra: dict[str, Any] = {}
        if watched:
            extra = {"validation_dataset": graph.dataset("others", prompt="a cat")}
            extra |= {"validate_every": 2, "hand_out": "best step"}
        graph.train(*sockets, seed=70, **extra)
        before = set((host.base / "output" / "personalize").glob("lora-*"))
        host.run(graph)
        (run,) = set((host.base / "output" / "personalize").glob("lora-*")) - before
        runs.append([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()])
    without, with_watched = runs
    assert [row["step"] for row in with_watched if "validation" in row] == [2, 4]
    assert [row["loss"] for row in with_watched] == [row["loss"] for row in without]


@on_a_cpu
def test_deterministic_run_is_one_of_its_own_and_the_same_on_a_cpu(host: Host) -> None:
    folder_of(host, "dog", (80, 72), (72, 80))
    folder, graph = host.base / "output" / "personalize", Graph()
    sockets = [*graph.load(), graph.dataset("dog")]
    before = set(folder.glob("lora-*"))
    for wanted in (False, True):
        graph.train(*sockets, seed=71, deterministic=wanted)
    host.run(graph)
    runs = set(folder.glob("lora-*")) - before
    assert len(runs) == 2
    asked = [json.loads((run / "run.json").read_text()) for run in runs]
    assert {run["training"]["deterministic"] for run in asked} == {False, True}
    assert asked[0]["base_model"] == asked[1]["base_model"]
    assert len({(run / "metrics.jsonl").read_text() for run in runs}) == 1


def test_plot_without_a_page_is_dark_unless_the_graph_says_light(host: Host) -> None:
    folder_of(host, "dog", (80, 72))
    graph = Graph()
    loss_map = graph.train(*graph.load(), graph.dataset("dog"), steps=2)[3]
    themes: list[tuple[dict[str, str], str]] = [
        ({}, "dark"), ({"theme": "auto"}, "dark"), ({"theme": "light"}, "light")
    ]  # fmt: skip
    looks = {
        graph.add("PersonalizeLossPlot", loss_map=loss_map, **theme)[0][0]: look
        for theme, look in themes
    }
    shown = host.run(graph)["outputs"]
    for node, look in looks.items():
        (plot,) = host.images({"outputs": {node: shown[node]}})
        background = ImageColor.getrgb(LOOKS[look].background)
        assert Image.open(plot).getpixel((0, 0)) == background, look


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, "rank"),
        ({"steps": 0}, "steps"),
        pytest.param({"precision": "fp16"}, "fp16 is not possible on a CPU", marks=on_a_cpu),
        ({"warmup_steps": 5}, "constant_with_warmup"),
        ({"timestep_min": 500, "timestep_max": 400}, "timestep_min is 500, above timestep_max 400"),
        (
            {"timestep_sampling": "uniform", "discrete_flow_shift": 3.0},
            "discrete_flow_shift is 3, but timestep_sampling 'uniform' has none",
        ),
        ({"timestep_sampling": "uniform", "logit_mean": 1.0}, "timestep_sampling 'uniform' has"),
        ({"logit_mean": 1.0}, r"'auto' is uniform for this model \(epsilon prediction\)"),
        ({"timestep_sampling": "shift"}, r"this model \(epsilon prediction\) has none"),
        ({"base": "chroma", "min_snr_gamma": 5.0}, "for which min-SNR is not defined"),
    ],
)
def test_bad_settings_are_named(host: Host, settings: dict[str, Any], words: str) -> None:
    folder_of(host, "cat", (64, 64))
    runs = finished_runs(host)
    with pytest.raises(HostError, match=words):
        host.run(training("cat", **settings))
    assert finished_runs(host) == runs


def test_settings_that_contradict_each_other_are_refused_before_anything_runs(host: Host) -> None:
    folder_of(host, "cat", (64, 64))
    graph = training("cat", warmup_steps=5, lr_schedule="constant")
    node = next(node for node in graph.values() if node["class_type"] == "PersonalizeOptimizer")
    given = host.object_info("PersonalizeOptimizer")["input"]["optional"]
    # As the editor queues it, with a value for every widget.
    node["inputs"] = {name: facts[1]["default"] for name, facts in given.items()} | node["inputs"]
    with pytest.raises(HostError, match="warmup_steps is 5 but lr_schedule 'constant'") as refused:
        host.run(graph)
    assert refused.value.kind == "invalid prompt"


def test_settings_of_two_nodes_that_contradict_each_other_load_no_model(host: Host) -> None:
    folder_of(host, "cat", (64, 64))
    graph = Graph()
    settings = {"fused_backward": True, "gradient_accumulation": 2}
    graph.dreambooth(*graph.load(), graph.dataset("cat"), **settings)
    sent: list[Event] = []
    with pytest.raises(HostError, match="fused_backward keeps no"):
        host.follow(graph, sent.append)
    ran = {
        graph[e.data["node"]]["class_type"]
        for e in sent
        if e.kind == "executing" and e.data["node"]
    }
    assert "CheckpointLoaderSimple" not in ran
    assert [e for e in sent if e.kind == "personalize.error"]


def test_errors_and_hostile_names_reach_the_page_as_text(host: Host) -> None:
    hostile = "<img src=x onerror=alert(1)> a photo of <sks>"
    folder_of(host, "a <b>bold<b> cat", (64, 64))
    graph = training("a <b>bold<b> cat", steps=1, seed=77)
    (dataset,) = (n for n in graph.values() if n["class_type"] == "PersonalizeFolderDataset")
    dataset["inputs"]["prompt"] = hostile
    sent: list[Event] = []
    host.follow(graph, sent.append)
    assert hostile in host.log()

    folder_of(host, "unreadable", (64, 64))
    (host.base / "input" / "unreadable" / "<i>.png").write_bytes(b"no picture")
    sent.clear()
    with pytest.raises(HostError, match="cannot be read"):
        host.follow(training("unreadable"), sent.append)
    ((node, text),) = (e.data.values() for e in sent if e.kind == "personalize.error")
    assert text.startswith("Dataset 'unreadable': 1 of 2 images cannot be read: <i>.png.")
    under = [e.data for e in sent if e.kind == "progress_text" and e.data["node"] == node]
    assert [shown["text"] for shown in under] == [text]
    assert not any(sign in under[0]["sent"] for sign in "<>*_`[]|")


def test_loss_that_is_not_finite_stops_the_run_at_its_step(
    host: Host, checkpoint_files: dict[str, Path], tmp_path: Path
) -> None:
    folder_of(host, "cat", (64, 64))
    weights = safetensors.torch.load_file(checkpoint_files["thin_sd15_fp16.safetensors"])
    weights["model.diffusion_model.out.2.bias"][:] = torch.nan
    safetensors.torch.save_file(weights, tmp_path / "diverging.safetensors")
    diverging = host.add_model("checkpoints", tmp_path / "diverging.safetensors")
    runs = finished_runs(host)
    with pytest.raises(HostError, match="the loss is nan at step 1"):
        host.run(training("cat", checkpoint=diverging))
    assert finished_runs(host) == runs


def test_saved_file_tells_of_pictures_only_when_asked_and_is_not_written_twice(host: Host) -> None:
    folder_of(host, "cat", (64, 64))
    told = ("ss_tag_frequency", "modelspec.trigger_phrase")
    found = {}
    for captions in (False, True, False):
        graph = training("cat", steps=1, seed=78)
        trainer = next(key for key, node in graph.items() if "Train" in node["class_type"])
        graph.add(
            "PersonalizeSaveLora", lora=[trainer, 2], filename_prefix=f"told/%dataset% {captions}",
            format="kohya fp16", captions=captions,
        )  # fmt: skip
        sent: list[Event] = []
        host.follow(graph, sent.append)
        (path,) = (host.base / "output/told").glob(f"cat {captions}_*.safetensors")
        with safetensors.safe_open(path, "pt") as file:
            found[captions] = file.metadata()
        host.free()
    assert not any(name in found[False] for name in told)
    assert found[False]["modelspec.title"] == "cat False_00001_"
    assert found[True]["modelspec.title"] == "cat"
    assert all(name in found[True] for name in told)
    said = [event.data["text"] for event in sent if event.kind == "progress_text"]
    assert any(
        re.fullmatch(rf"is there already: output/told/{path.name}, \d\.\d MB", text)
        for text in said
    )


@pytest.fixture
def full_disk(host: Host) -> Iterator[Path]:
    """A folder in the host's output, on a file system of 16 KB."""
    folder = host.base / "output" / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_on_save_leaves_nothing_half_written(host: Host, full_disk: Path) -> None:
    folder_of(host, "cat", (64, 64))
    graph = training("cat", steps=1)
    trainer = next(key for key, node in graph.items() if "Train" in node["class_type"])
    graph.add(
        "PersonalizeSaveLora", lora=[trainer, 2], filename_prefix="full/x", format="kohya fp32"
    )
    with pytest.raises(HostError, match="the disk is full"):
        host.run(graph)
    assert not [path for path in full_disk.rglob("*") if path.stat().st_size]


def finished_runs(host: Host) -> set[Path]:
    return set((host.base / "output" / "personalize").glob("*/result-*.safetensors"))
