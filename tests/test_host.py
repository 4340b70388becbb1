"""The pack and the base models in a real ComfyUI, old and new."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host import Host, HostError, Prompt

CHECKPOINT = "thin_sd15.safetensors"


def _sampling(checkpoint: str) -> Prompt:
    sampler = {"seed": 1, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal"}
    wires = {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0]}
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a dog"}},
        "3": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1},
        },
        "4": {
            "class_type": "KSampler",
            "inputs": {**sampler, **wires, "latent_image": ["3", 0], "denoise": 1.0},
        },
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {
            "class_type": "SaveImage",
            "inputs": {"images": ["5", 0], "filename_prefix": "test_host"},
        },
    }


@pytest.mark.parametrize("which", ["host", "old_host"])
def test_checkpoint_thin_sd15_loads_whole_and_samples(
    which: str, request: pytest.FixtureRequest
) -> None:
    host: Host = request.getfixturevalue(which)
    (picture,) = host.images(host.run(_sampling(CHECKPOINT)))
    assert picture.stat().st_size > 1000
    log = host.log()
    assert "model_type EPS" in log
    assert "unet missing" not in log
    assert "unet unexpected" not in log
    assert "clip missing" not in log.replace("clip missing: ['text_projection.weight']", "")


def test_run_missing_checkpoint_names_node_and_value(host: Host) -> None:
    with pytest.raises(HostError, match=r"CheckpointLoaderSimple: .*nothing\.safetensors") as error:
        host.run(_sampling("nothing.safetensors"))
    assert error.value.kind == "invalid prompt"


def test_run_broken_checkpoint_carries_the_exception(host: Host, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors here")
    host.add_model("checkpoints", broken)
    with pytest.raises(HostError, match="CheckpointLoaderSimple") as error:
        host.run(_sampling("broken.safetensors"))
    assert "Traceback" not in error.value.kind
    assert error.value.details["traceback"]


def test_add_model_replaces_a_file_of_that_name(tmp_path: Path) -> None:
    model = tmp_path / "a.safetensors"
    model.write_bytes(b"new")
    host = Host(tmp_path, base=tmp_path, pack=None)
    there = tmp_path / "models" / "checkpoints" / "a.safetensors"
    there.write_bytes(b"old")
    host.add_model("checkpoints", model)
    assert there.read_bytes() == b"new"


def test_start_dying_host_raises_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("raise SystemExit('no such luck')")
    with pytest.raises(HostError, match="no such luck"):
        Host(tmp_path, pack=None).start()
