"""The folder of a run, and what tells one base model from another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from tests import tiny
from tests.dataset_files import batch
from trainers.checkpoint import PACKAGES, RunFolder, run_facts, weights_fingerprint
from trainers.contracts import DENOISER
from trainers.errors import SaveError


def facts(**overrides: Any) -> dict[str, Any]:
    return run_facts(tiny.run_config(**overrides), "sd15", "0f0f", batch(2))


def test_run_facts_hold_settings_base_and_pictures() -> None:
    stored = facts(steps=9, rank=3)
    assert stored["method"] == "lora"
    assert stored["training"]["steps"] == 9
    assert stored["own"]["rank"] == 3
    assert (stored["family"], stored["base_model"]) == ("sd15", "0f0f")
    assert stored["dataset"]["fingerprint"] == batch(2).fingerprint()
    assert len(stored["dataset"]["pictures"]) == 2


def test_run_facts_are_json() -> None:
    assert json.loads(json.dumps(facts()))["own"] == facts()["own"]


def test_run_folder_same_facts_same_folder(tmp_path: Path) -> None:
    first, again = (RunFolder.create(tmp_path, "dog", facts()) for _ in range(2))
    assert first == again
    assert [path.name for path in tmp_path.iterdir()] == [first.path.name]


@pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 3}, {"rank": 4}, {"noise_offset": 0.1}])
def test_run_folder_other_facts_other_folder(tmp_path: Path, change: dict[str, Any]) -> None:
    folders = {RunFolder.create(tmp_path, "dog", f).path for f in (facts(), facts(**change))}
    assert len(folders) == 2


def test_run_folder_name_and_settings(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "dog", facts())
    stored = json.loads((folder.path / "run.json").read_text())
    assert folder.path.name == f"lora-dog-{stored['fingerprint'][:8]}"
    assert stored["training"] == facts()["training"]
    assert stored["versions"].keys() == set(PACKAGES)
    assert torch.__version__.startswith(stored["versions"]["torch"])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("my dog", "my_dog"),
        ("../../etc/passwd", "etc_passwd"),
        ("a/b\\c:d*e", "a_b_c_d_e"),
        ("犬 1", "犬_1"),
        ("..", "run"),
        ("", "run"),
    ],
)
def test_run_folder_stays_in_its_parent(tmp_path: Path, name: str, shown: str) -> None:
    folder = RunFolder.create(tmp_path / "runs", name, facts())
    assert folder.path.parent == tmp_path / "runs"
    assert folder.path.resolve().parent == (tmp_path / "runs").resolve()
    assert folder.path.name.startswith(f"lora-{shown}-")


def test_run_folder_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(SaveError, match="was not saved"):
        RunFolder.create(tmp_path / "runs", "dog", facts())
    assert (tmp_path / "runs").read_text() == "not a folder"


def test_write_result_stores_tensors_metadata_and_metrics(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "dog", facts())
    tensors = {"a.lora_up.weight": torch.arange(6.0).reshape(2, 3), "a.alpha": torch.tensor(4.0)}
    metrics = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    folder.write_result(tensors, {"trigger": "sks"}, metrics)
    result = folder.path / "result.safetensors"
    tiny.assert_equal(safetensors.torch.load_file(result), tensors)
    with safe_open(result, "pt") as file:
        assert file.metadata() == {"trigger": "sks"}
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == metrics


def test_weights_fingerprint_same_weights() -> None:
    assert weights_fingerprint(tiny.parts().modules) == weights_fingerprint(tiny.parts().modules)


def test_weights_fingerprint_other_weights() -> None:
    prints = {weights_fingerprint(tiny.parts(seed=seed).modules) for seed in range(3)}
    assert len(prints) == 3


@pytest.mark.parametrize("module", [DENOISER, "clip_l"])
def test_weights_fingerprint_one_tensor_changed(module: str) -> None:
    base = tiny.parts()
    before = weights_fingerprint(base.modules)
    with torch.no_grad():
        list(base.modules[module].parameters())[-1].mul_(1.01)
    assert weights_fingerprint(base.modules) != before


def test_weights_fingerprint_depends_on_which_module() -> None:
    unet, text = tiny.parts().modules.values()
    assert weights_fingerprint({"a": unet, "b": text}) != weights_fingerprint(
        {"b": unet, "a": text}
    )
    assert weights_fingerprint({"a": unet, "b": text}) == weights_fingerprint(
        {"b": text, "a": unet}
    )
