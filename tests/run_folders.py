"""Folders of runs as trainings leave them, made without one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin

from tests import tiny
from tests.dataset_files import batch
from trainers.runs.catalog.listing import Catalog
from trainers.runs.catalog.rows import Live
from trainers.runs.folder import Result, RunFolder, run_facts

BASE = {"model": "0f0f", "clip": "1e1e"}
TENSORS = {"a.lora_up.weight": torch.arange(6.0).reshape(2, 3), "a.alpha": torch.tensor(4.0)}
GRAPH = {
    "node": "4",
    "nodes": {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sub/base.sft"}},
        "2": {"class_type": "LoraLoader",
              "inputs": {"model": ["1", 0], "clip": ["1", 1], "lora_name": "style.safetensors"}},
        "3": {"class_type": "PersonalizeFolderDataset", "inputs": {"folder": "dog"}},
        "4": {"class_type": "PersonalizeTrainLora",
              "inputs": {"model": ["2", 0], "clip": ["2", 1], "vae": ["1", 2],
                         "dataset": ["3", 0]}},
    },
    "custom_nodes": [],
    "files": [{"folder": "loras", "name": "style.safetensors", "bytes": 10},
              {"folder": "checkpoints", "name": "sub/base.sft", "bytes": 20}],
}  # fmt: skip


def rows(steps: int, planned: int = 0, validate_every: int = 0) -> list[dict[str, Any]]:
    """What metrics.jsonl has of so many steps; the loss falls and swings."""
    found = []
    for step in range(1, steps + 1):
        loss = 0.1 + 0.1 * math.exp(-3 * step / steps) + 0.02 * math.sin(step)
        row = {"step": step, "num_steps": planned or steps, "loss": loss, "learning_rate": 1e-4,
               "grad_norm": 0.5}  # fmt: skip
        if validate_every and step % validate_every == 0:
            row["validation"] = 0.1 + (step / steps - 0.5) ** 2  # lowest in the middle
        found.append(row)
    return found


def make_run(
    parent: Path,
    name: str = "dog",
    steps: int = 40,
    status: str = "done",
    states: Sequence[int] = (),
    previews: Sequence[int] = (),
    validate_every: int = 0,
    **settings: Any,
) -> Path:
    """The folder of a LoRA's run in `parent`: a result where it is done, states and previews of
    two prompts at these steps."""
    config = tiny.run_config(**{"steps": steps, **settings})
    facts = run_facts(config, "sd15", BASE, batch(2))
    facts["dataset"]["name"] = name
    folder = RunFolder.of(parent, name, facts)
    metrics = rows(steps, config.training.steps, validate_every)
    if status == "done":
        told = {"ss_training_time": "90", "ss_training_started_at": "1700000000"}
        folder.write_result(Result(steps, TENSORS, told, {}, metrics))
    else:
        folder.write_metrics(metrics)
    for step in states:
        folder.write_state({"step": step}, metrics[:step], len(states))
    for step in previews:
        for number, prompt in enumerate(("a dog", "a <b>dog</b>")):
            save_preview(folder.previews / f"step_{step:08}_{number}.png", prompt)
    folder.describe({**facts, "graph": GRAPH}, status=status, stopped={}, processes=1)
    told = json.loads((folder.path / "run.json").read_text()) | {"began": 1.7e9, "seconds": 90.0}
    (folder.path / "run.json").write_text(json.dumps(told))
    return folder.path


def save_preview(file: Path, prompt: str, seed: int = 5) -> None:
    facts = PngImagePlugin.PngInfo()
    facts.add_itxt("prompt", prompt)
    facts.add_text("seed", str(seed))
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(file, pnginfo=facts)


def parent_in(tmp_path: Path) -> Path:
    parent = tmp_path / "personalize"
    parent.mkdir()
    return parent


def row_of(parent: Path, name: str, live: Live | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Catalog(parent).listing(live))
    return next(row for row in found["runs"] if row["run"] == name)


def detail_of(parent: Path, name: str, live: Live | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Catalog(parent).detail(name, live))
    return found


def everything(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
