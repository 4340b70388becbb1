"""run.json without the server: the same bytes as in the graph, also after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conftest import HOST_ARGUMENTS
from tests.graphs import SMALL_LORA, Graph
from tests.host import PACK_NAME, Host, HostError
from tests.test_host_class_images import SMALL
from tests.tiny_transformers import CHROMA

PATIENCE_SECONDS = 300
LONG = {"steps": 24, "state_every": 3, "keep_states": 100}


def pictures(host: Host, name: str = "headless") -> str:
    folder = host.base / "input" / name
    folder.mkdir(exist_ok=True)
    for number, size in enumerate([(80, 72), (72, 80), (64, 64)]):
        Image.new("RGB", size, (40 * number, 90, 160)).save(folder / f"{number}.png")
    return name


def command(host: Host, *own: object, output: Path | None = None) -> list[str]:
    """The command line that runs headless over a host's folders."""
    pack = host.base / "custom_nodes" / PACK_NAME
    theirs = [*HOST_ARGUMENTS, "--base-directory", str(host.base)]
    theirs += ["--output-directory", str(output)] if output else []
    asked = [sys.executable, pack, *own, "--comfyui", host.comfyui, "--", *theirs]
    return [str(part) for part in asked]


ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


def headless(
    host: Host, *own: object, output: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(host, *own, output=output), env=os.environ | ENVIRONMENT, capture_output=True,
        text=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip


def stopped(host: Host, run: Path, number: int, *own: object, output: Path) -> int:
    """The exit code of a training that got a signal as soon as it wrote a new state."""
    before = states(run)
    process = subprocess.Popen(
        command(host, *own, output=output), env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    until(process, lambda: states(run) != before)
    process.send_signal(number)
    said = process.communicate(timeout=PATIENCE_SECONDS)[0].decode()
    assert states(run) != before, said
    return process.returncode


def until(process: subprocess.Popen[Any], done: Callable[[], Any]) -> None:
    """Wait for something that a process does; in vain if it ends before."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def member(launcher: subprocess.Popen[str], rank: str) -> psutil.Process:
    """One of the processes that a launcher started."""
    (found,) = (
        child
        for child in psutil.Process(launcher.pid).children()
        if child.environ().get("RANK") == rank
    )
    return found


def states(run: Path) -> set[str]:
    return {path.name for path in run.glob("state/*.pt")}


def runs(host: Host) -> set[Path]:
    return set((host.base / "output" / "personalize").glob("*/run.json"))


def trained(host: Host, graph: Graph) -> list[Path]:
    """The run.json of each training that the graph has made."""
    before = runs(host)
    host.run(graph)
    return sorted(runs(host) - before)


def check_equal(file: Path, output: Path) -> None:
    """Headless, the run of this run.json has come to the same."""
    ours, theirs = output / "personalize" / file.parent.name, file.parent
    (result,) = theirs.glob("result-*[0-9].safetensors")
    assert (ours / "metrics.jsonl").read_bytes() == (theirs / "metrics.jsonl").read_bytes()
    one, other = (load_file(folder / result.name) for folder in (ours, theirs))
    assert one.keys() == other.keys()
    assert [name for name in one if not one[name].equal(other[name])] == []
    told = [json.loads((folder / "run.json").read_text()) for folder in (ours, theirs)]
    assert told[0]["fingerprint"] == told[1]["fingerprint"]
    assert told[0]["graph"]["files"] == told[1]["graph"]["files"]


@pytest.mark.parametrize("place", ["host", "old_host"])
def test_every_method_replayed_gives_the_same_bytes(
    request: pytest.FixtureRequest, place: str, tmp_path: Path
) -> None:
    host: Host = request.getfixturevalue(place)
    graph = Graph()
    dataset = graph.dataset(pictures(host))
    graph.train(*graph.made(CHROMA), dataset)  # a node of another pack, which run.json names
    if place == "host":
        base = graph.load()
        graph.train(*base, dataset, lr_schedule="cosine", train_text_encoder=True)
        graph.dreambooth(*base, dataset, steps=2, keep_states=0)  # of gigabytes
        word_clip = graph.invert(*base, dataset)[0]
        graph.train(base[0], word_clip, base[2], graph.dataset("headless", "a photo of <sks>"))
    files = trained(host, graph)
    assert len(files) == (5 if place == "host" else 1)
    done = headless(host, *files, output=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for file in files:
        check_equal(file, tmp_path)
        assert f"in {tmp_path / 'personalize' / file.parent.name}" in done.stdout


def test_killed_interrupted_or_left_alone_it_goes_on(host: Host, tmp_path: Path) -> None:
    """After a kill and a Cancel to the same bytes; in one process where one of two was killed."""
    graph = Graph()
    graph.train(*graph.made(CHROMA), graph.dataset(pictures(host)), seed=11, **LONG)
    (file,) = trained(host, graph)
    run = tmp_path / "personalize" / file.parent.name
    assert stopped(host, run, signal.SIGKILL, file, output=tmp_path) == -signal.SIGKILL
    assert stopped(host, run, signal.SIGINT, file, output=tmp_path) == 130
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert not list(run.glob("result-*"))
    left_alone, newest = one_of_two_is_killed(host, tmp_path)
    done = headless(host, file, file, left_alone, output=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from step" in done.stdout
    assert "trained before, 24 steps: taken from disk" in done.stdout
    check_equal(file, tmp_path)
    assert f"going on from step {newest}" in done.stdout
    assert "1 process(es) train; an update sees 2 pictures" in done.stdout + done.stderr


def one_of_two_is_killed(host: Host, folder: Path) -> tuple[Path, int]:
    """A training to go on with, for two steps more; the step that it has come to."""
    told = {
        "method": "lora", "base": {"checkpoint": "thin_sd15.safetensors"}, **SMALL_LORA,
        "dataset": {"folder": squares(host, "left alone"), "resolution": 64, "prompt": "a dog"},
        "steps": 1000, "state_every": 2,
    }  # fmt: skip
    file = folder / "left alone.json"
    file.write_text(json.dumps(told))
    _, *asked = command(host, file, output=folder)
    process = subprocess.Popen(
        [*LAUNCH, *asked], env=os.environ | ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    until(process, lambda: list(folder.glob("personalize/lora-left*/state/*.pt")))
    member(process, "1").kill()
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "another process ended or cannot be reached" in said, said
    (run,) = (folder / "personalize").glob("lora-left*")
    newest = max(int(Path(name).stem) for name in states(run))
    file.write_text(json.dumps(told | {"steps": newest + 2}))
    return file, newest


def squares(host: Host, name: str = "together") -> str:
    """Three pictures of one shape."""
    folder = host.base / "input" / name
    folder.mkdir(exist_ok=True)
    for number in range(3):
        Image.new("RGB", (64, 64), (40 * number, 90, 160)).save(folder / f"{number}.png")
    return folder.name


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def test_two_processes_train_one_run_and_then_one_of_them_hears_a_cancel(
    host: Host, tmp_path: Path
) -> None:
    graph = Graph()
    base = graph.load()
    sockets = dict(zip(("model", "clip", "vae"), base, strict=True))
    asked_for = {**SMALL, "prompt": "a cup", "count": 5, "batch_size": 2}
    (classes,) = graph.add("PersonalizeClassImages", **sockets, **asked_for)
    dataset = graph.dataset(squares(host))
    settings = {"class_dataset": classes, "batch_size": 2, "seed": 14, "state_every": 2}
    graph.train(*base, dataset, **settings)
    (file,) = trained(host, graph)
    told = {
        "method": "lora", "base": {"checkpoint": "thin_sd15.safetensors"}, **SMALL_LORA,
        "dataset": {
            "folder": squares(host, "cancelled"), "resolution": 64, "prompt": "a photo of sks dog"
        },
        "steps": 1000, "state_every": 5,
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(told))
    both = (file, tmp_path / "a.json")
    _, *asked = command(host, *both, "--set", "batch_size=1", output=tmp_path)
    process = subprocess.Popen(
        [*LAUNCH, *asked], env=os.environ | ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    until(process, lambda: list(tmp_path.glob("personalize/lora-cancelled-*/state/*.pt")))
    (cancelled,) = (tmp_path / "personalize").glob("lora-cancelled-*")
    member(process, "1").send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    check_that_one_wrote(said, file, tmp_path)
    assert "another process ended" not in said, said
    (step,) = re.findall(r"cancelled at step (\d+); run again goes on", said)
    assert max(int(Path(name).stem) for name in states(cancelled)) == int(step)
    assert json.loads((cancelled / "run.json").read_text())["status"] == "interrupted"


def check_that_one_wrote(said: str, file: Path, output: Path) -> None:
    """Two processes have come to what the run of this run.json has, and one of them told it."""
    assert said.count("done: 4 steps in") == 1, said
    assert "2 process(es) train; an update sees 2 pictures" in said
    (made,) = (output / "personalize" / "class_images").iterdir()
    theirs = file.parents[1] / "class_images" / made.name
    assert {p.name: p.read_bytes() for p in made.iterdir()} == {
        p.name: p.read_bytes() for p in theirs.iterdir()
    }
    (run,) = (output / "personalize").glob("lora-together-*")
    told = json.loads((run / "run.json").read_text())
    assert (told["status"], told["processes"]) == ("done", 2)
    rows, expected = (
        [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
        for one in (run, file.parent)
    )
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-4)


def exported(host: Host, graph: Graph, **inputs: Any) -> Path:
    """The folder that Export Run writes for the graph's training."""
    (target,) = (key for key, node in graph.items() if "Train" in node["class_type"])
    graph.add("PersonalizeExportRun", run=[target, 4], name=inputs.get("name", "%run%"))
    host.run(graph)
    return max((host.base / "output/personalize/exports").iterdir(), key=os.path.getmtime)


def test_an_export_names_its_files_and_what_became_of_them(host: Host) -> None:
    name = pictures(host, "exported")
    words = host.base / "models" / "embeddings" / "deeper"
    words.mkdir(parents=True)
    for word in ("mood", "style", "other"):
        save_file({"emb_params": torch.zeros(1, 768)}, words / f"{word}.safetensors")
    graph = Graph()
    prompts = "a (embedding:mood:1.2), dog\n[(embedding:deeper/style.safetensors)], embedding:none"
    (preview,) = graph.add(
        "PersonalizePreview", prompts=prompts, every_steps=100, seed=1, width=64, height=64,
        steps=2, cfg=5.0, sampler_name="euler", scheduler="normal",
    )  # fmt: skip
    graph.train(*graph.load(), graph.dataset(name), seed=12, steps=1, preview=preview)
    folder = exported(host, graph)
    listed = json.loads((folder / "files.json").read_text())["files"]
    named = {(file["folder"], file["name"]) for file in listed}
    assert named == {
        ("checkpoints", "thin_sd15.safetensors"),
        ("embeddings", "deeper/mood.safetensors"),
        ("embeddings", "deeper/style.safetensors"),
        *(("input", f"exported/{number}.png") for number in range(3)),
    }
    assert all(len(file["sha256"]) == 64 and file["bytes"] for file in listed)
    text = (folder / "README.txt").read_text()
    assert f'python "$COMFYUI/custom_nodes/{PACK_NAME}" run.json --dry-run' in text
    assert "models/checkpoints/thin_sd15.safetensors" in text
    assert str(host.base) not in "".join(file.read_text() for file in folder.iterdir())

    pictures_there = host.base / "input" / "exported"
    (pictures_there / "0.png").unlink()
    (pictures_there / "1.png").write_bytes(b"x" * 5)
    content = bytearray((pictures_there / "2.png").read_bytes())
    content[-1] ^= 1
    (pictures_there / "2.png").write_bytes(content)
    done = headless(host, folder / "run.json", "--dry-run")
    assert done.returncode == 1
    assert "input/exported/0.png is not there" in done.stderr
    assert "input/exported/1.png has 5 bytes, had " in done.stderr
    assert "input/exported/2.png has another content" in done.stderr
    assert "Traceback" not in done.stderr


def test_names_that_lead_away_and_folders_that_are_no_runs_are_not_exported(host: Host) -> None:
    graph = Graph()
    graph.train(*graph.load(), graph.dataset(pictures(host)), seed=13, steps=1)
    with pytest.raises(HostError, match="leads out of"):
        exported(host, Graph(graph), name="../../x")
    graph = Graph()
    graph.add("PersonalizeExportRun", run=str(host.base), name="x")
    with pytest.raises(HostError, match="is not the folder of a run"):
        host.run(graph)


def test_a_training_by_hand_is_planned_and_refused_without_its_files(
    host: Host, tmp_path: Path
) -> None:
    told = {
        "method": "lora", "base": {"checkpoint": "thin_sd15.safetensors"}, **SMALL_LORA,
        "dataset": {"folder": pictures(host), "resolution": 64, "prompt": "a photo of sks dog"},
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(told))
    wrong = {**told, "base": {"checkpoint": "thin_sd15.safetensor"}}
    (tmp_path / "b.json").write_text(json.dumps(wrong))
    asked = (tmp_path / "a.json", tmp_path / "b.json", "--dry-run", "--set", "steps=9")
    done = headless(host, *asked, output=tmp_path)
    assert done.returncode == 1
    assert "9 steps of 1 picture (" in done.stdout
    assert "2.png  64x64  'a photo of sks dog'" in done.stdout
    assert "which would be new" in done.stdout
    told = re.findall(r"^    ([a-z ]+?) +(\d+\.\d\d)\b", done.stdout, re.MULTILINE)
    *parts, (together, peak), (free, _) = told
    assert (together, free) == ("together", "free now")
    assert float(peak) == pytest.approx(sum(float(size) for _, size in parts), abs=0.03)
    assert float(peak) > 0.05  # the UNet's weights
    assert "auto takes weights_in 'device', checkpointing 'none'" in done.stdout
    assert "a step is 0.0" in done.stdout  # TFLOP: that of such a UNet at 64 px
    assert "ckpt_name is 'thin_sd15.safetensor', which is not there; near it: thin_sd15" in (
        done.stderr
    )
    assert not list(tmp_path.glob("personalize/lora*"))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
