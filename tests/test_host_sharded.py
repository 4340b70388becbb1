"""Two processes that have but parts of a transformer's weights, by the command line."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.graphs import Graph
from tests.host import Host
from tests.test_host_headless import (
    ENVIRONMENT,
    LAUNCH,
    PATIENCE_SECONDS,
    command,
    squares,
    trained,
)
from tests.test_processes import far
from tests.tiny_transformers import CHROMA, Z_IMAGE

SETTINGS = {"precision": "fp32", "steps": 4, "state_every": 4, "max_grad_norm": 0.1}


def captioned(host: Host) -> str:
    """Four pictures whose captions go through this model one by one, or two at a time."""
    folder = host.base / "input" / "captioned"
    folder.mkdir(exist_ok=True)
    words = ("a dog", "a cat", "a small dog on a long white beach", "one more dog")
    for number, caption in enumerate(words):
        Image.new("RGB", (64, 64), (40 * number, 90, 160)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder.name


def launched(host: Host, *own: object, output: Path) -> subprocess.CompletedProcess[str]:
    """Two processes of the command line, come to their end."""
    _, *asked = command(host, *own, output=output)
    return subprocess.run(
        [*LAUNCH, *asked], env=os.environ | ENVIRONMENT, capture_output=True, text=True,
        check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip


def test_parts_of_a_transformer_train_as_the_whole_of_it(host: Host, tmp_path: Path) -> None:
    graph = Graph()
    spoken, dataset = graph.dataset(captioned(host)), graph.dataset(squares(host))
    (preview,) = graph.add(
        "PersonalizePreview", prompts="a dog", every_steps=4, seed=1, width=64, height=64,
        steps=2, cfg=5.0, sampler_name="euler", scheduler="normal",
    )  # fmt: skip
    graph.train(*graph.made(Z_IMAGE), spoken, batch_size=4, preview=preview, **SETTINGS)
    base = graph.made(CHROMA)
    more = {"weights": "fp32", "fused_backward": False, "gradient_checkpointing": True}
    graph.dreambooth(*base, dataset, batch_size=4, **more, **SETTINGS)
    files = trained(host, graph)
    assert len(files) == 2
    done = launched(host, *files, "--set", "batch_size=2", "--shard", output=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "each of 2 processes keeps" in done.stdout + done.stderr
    for file in files:
        (run,) = (tmp_path / "personalize").glob(f"{file.parent.name.split('-')[0]}-*")
        rows, expected = (
            [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
            for one in (run, file.parent)
        )
        for row, other in zip(rows, expected, strict=True):
            assert row == pytest.approx(other, rel=1e-4)
        ours, theirs = (
            load_file(folder / "result-00000004.safetensors") for folder in (run, file.parent)
        )
        assert far(ours, theirs) < 1e-4
    assert len(list(tmp_path.glob("personalize/lora-*/previews/*.png"))) == 1
    longer = ("--set", "batch_size=2", "--set", "steps=6")
    more = launched(host, files[0], *longer, output=tmp_path)  # each has all of it now
    assert more.returncode == 0, more.stdout + more.stderr
    assert "going on from step 4" in more.stdout
    assert "each of 2 processes keeps" not in more.stdout + more.stderr
