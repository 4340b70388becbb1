"""Files: metadata, and that no failure leaves half of one."""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from tests import tiny
from tests.dataset_files import batch
from trainers.errors import SaveError
from trainers.methods.adapters.variants import held_layers
from trainers.methods.results import Adapter
from trainers.models.architectures import GENERIC, SD2, SD15, SDXL, Architecture
from trainers.runs.files import (
    check_finite,
    checked_prefix,
    content_hashes,
    save_tensors,
    write_whole,
)
from trainers.runs.metadata import lora_metadata, merged_metadata, times_metadata


def metadata(
    captions: list[str], architecture: Architecture = SD15, **settings: Any
) -> dict[str, str]:
    dataset = batch(len(captions), captions=captions)
    return lora_metadata(tiny.run_config(**settings), architecture, dataset, "v")


def test_metadata_is_text_alone() -> None:
    made = metadata(["a", "b"], train_text_encoder=True, min_snr_gamma=5.0)
    assert all(type(value) is str and value for value in made.values())
    assert all(name.startswith(("ss_", "modelspec.")) for name in made)


# As LyCORIS' own trainer writes them: ss_network_args is JSON.
@pytest.mark.parametrize(
    ("settings", "module", "arguments", "size"),
    [
        ({"variant": "dora"}, "networks.lora", None, ("4", "2.0")),
        ({"initialization": "pissa"}, "networks.lora", None, ("8", "4.0")),
        ({"variant": "lokr"}, "lycoris.kohya", {"algo": "lokr", "factor": "-1"}, ("4", "2.0")),
        ({"variant": "loha"}, "lycoris.kohya", {"algo": "loha"}, ("4", "2.0")),
        ({"variant": "oft"}, "lycoris.kohya", {"algo": "diag-oft"}, ("4", "0.0")),
    ],
)
def test_metadata_says_which_kind_it_is(
    settings: dict[str, Any], module: str, arguments: dict[str, str] | None, size: tuple[str, str]
) -> None:
    made = metadata(["a"], rank=4, alpha=2.0, **settings)
    assert made["ss_network_module"] == module
    assert json.loads(made.get("ss_network_args", "null")) == arguments
    assert (made["ss_network_dim"], made["ss_network_alpha"]) == size
    resized = merged_metadata([made], [2])
    assert resized["ss_network_module"] == "networks.lora"
    assert "ss_network_args" not in resized


# kohya's sense of the two: the LoRA of its file counts alpha / dim.
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rank_stabilized": True},
        {"rank_stabilized": True, "variant": "dora"},
        {"rank_stabilized": True, "initialization": "pissa"},
    ],
    ids=["plain", "rslora", "dora", "pissa"],
)
def test_metadata_alpha_by_rank_is_the_scale_of_the_training(settings: dict[str, Any]) -> None:
    made = metadata(["a"], rank=4, alpha=2.0, **settings)
    scale = float(made["ss_network_alpha"]) / int(made["ss_network_dim"])
    ready, _ = tiny.trained(tiny.run_config(steps=1, rank=4, alpha=2.0, **settings))
    module = ready.parts.modules["denoiser"]
    for name, held in held_layers(module, kohya=True):
        layer: Any = module.get_submodule(name)
        added = sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
        up, down = held["lora_up.weight"].flatten(1), held["lora_down.weight"].flatten(1)
        torch.testing.assert_close(scale * up @ down, added.flatten(1), rtol=0, atol=1e-6)
        assert len(down) == int(made["ss_network_dim"])
        assert float(held["alpha"]) == pytest.approx(float(made["ss_network_alpha"]))


def test_metadata_says_how_it_was_trained() -> None:
    made = metadata(
        ["a"], rank=3, alpha=1.5, learning_rate=2e-4, seed=11, batch_size=2, min_snr_gamma=5.0,
        gradient_accumulation=4, optimizer="adafactor", lr_schedule="cosine",
    )  # fmt: skip
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "3",
        "ss_network_alpha": "1.5",
        "ss_learning_rate": "0.0002",
        "ss_seed": "11",
        "ss_batch_size_per_device": "2",
        "ss_gradient_accumulation_steps": "4",
        "ss_min_snr_gamma": "5.0",
        "ss_optimizer": "adafactor",
        "ss_lr_scheduler": "cosine",
        "ss_base_model_version": "sd_v1",
        "ss_num_train_images": "1",
        "ss_resolution": "(192, 192)",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.resolution": "192x192",
        "modelspec.prediction_type": "v",
    }
    assert {name: made[name] for name in expected} == expected


def test_metadata_says_what_an_adapter_trained_in_where_that_is_not_fp32() -> None:
    assert metadata(["a"], adapter_weights="bf16")["personalize.adapter_weights"] == "bf16"
    assert not [name for name in metadata(["a"]) if "adapter_weights" in name]


@pytest.mark.parametrize(
    ("architecture", "named", "version", "is_v2"),
    [
        (SD15, "stable-diffusion-v1", "sd_v1", "False"),
        (SD2, "stable-diffusion-v2-768-v", "sd_v2", "True"),
        (SDXL, "stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "False"),
        (GENERIC, "generic", None, "False"),
    ],
    ids=["sd15", "sd2", "sdxl", "generic"],
)
def test_metadata_names_the_architecture(
    architecture: Architecture, named: str, version: str | None, is_v2: str
) -> None:
    made = metadata(["a"], architecture)
    assert made["modelspec.architecture"] == f"{named}/lora"
    assert (made.get("ss_base_model_version"), made["ss_v2"]) == (version, is_v2)


def test_metadata_trigger_phrase_is_the_most_frequent_caption() -> None:
    made = metadata(["a dog", "sks dog", "sks dog"])
    assert made["modelspec.trigger_phrase"] == "sks dog"
    (counts,) = json.loads(made["ss_tag_frequency"]).values()
    assert counts == {"a dog": 1, "sks dog": 2}


# What kohya's trainer writes and managers of LoRAs list (AddNet's and A1111's tables of labels),
# and what modelspec 1.0.1 requires ("MUST") and recommends ("SHOULD") of any file and of images'.
KOHYA_LISTED = (
    "ss_output_name", "ss_learning_rate", "ss_text_encoder_lr", "ss_unet_lr",
    "ss_num_train_images", "ss_num_epochs", "ss_batch_size_per_device", "ss_total_batch_size",
    "ss_gradient_checkpointing", "ss_gradient_accumulation_steps", "ss_max_train_steps",
    "ss_lr_warmup_steps", "ss_lr_scheduler", "ss_network_module", "ss_network_dim",
    "ss_network_alpha", "ss_mixed_precision", "ss_v2", "ss_resolution", "ss_seed", "ss_optimizer",
    "ss_max_grad_norm", "ss_noise_offset", "ss_caption_dropout_rate", "ss_prior_loss_weight",
    "ss_min_snr_gamma", "ss_cache_latents", "ss_base_model_version", "ss_steps",
    "ss_training_started_at", "ss_training_finished_at", "ss_network_dropout", "ss_dataset_dirs",
    "ss_tag_frequency", "sshs_model_hash",
)  # fmt: skip
MODELSPEC = (
    "sai_model_spec", "architecture", "implementation", "title", "resolution", "description",
    "date", "hash_sha256", "prediction_type", "trigger_phrase",
)  # fmt: skip


def test_metadata_has_what_managers_and_modelspec_list() -> None:
    made = metadata(["sks dog"], train_text_encoder=True)
    made |= times_metadata(3, 2.0) | content_hashes({"a": torch.ones(2)}, torch.float16)
    made["ss_output_name"] = "x"  # Save LoRA's, of its file
    wanted = {*KOHYA_LISTED, *(f"modelspec.{name}" for name in MODELSPEC)}
    assert wanted - set(made) == set()
    assert json.loads(made["ss_dataset_dirs"]) == {"batch": {"n_repeats": 1, "img_count": 1}}


def test_hash_is_that_of_the_tensors_in_the_file(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(2), "a.alpha": torch.tensor(1.0)}
    hashes = content_hashes(tensors, torch.float16)
    save_tensors(tmp_path / "x", tensors, {"some": "words", **hashes}, torch.float16)
    content = (tmp_path / "x").read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert hashes["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert hashes["modelspec.hash_sha256"] == "0x" + hashes["sshs_model_hash"]


@pytest.mark.parametrize(
    "prefix", ["../../x", "loras/dog", "a\\b", "%year%/x", "犬/v1.5 b", "loras/"]
)
def test_prefixes_that_every_system_takes_are_kept(prefix: str) -> None:
    assert checked_prefix(prefix) == prefix.replace("\\", "/")


@pytest.mark.parametrize(
    "prefix",
    ["", ".", "/", "/x", "\\x", "C:/x", "a:b", "a\0b", "a\nb", "a*", "con", "x/NUL.txt", "lpt1/x",
     "x.", "x /y", "\ud800", "x" * 201],
)  # fmt: skip
def test_prefixes_that_some_system_does_not_take_are_refused(prefix: str) -> None:
    with pytest.raises(SaveError, match="cannot be used"):
        checked_prefix(prefix)


def test_metadata_date_has_a_time_zone() -> None:
    date = datetime.datetime.fromisoformat(metadata(["a"])["modelspec.date"])
    assert date.utcoffset() == datetime.timedelta(0)


def test_adapter_is_a_plain_dict_with_metadata() -> None:
    tensors, facts = {"a.alpha": torch.tensor(1.0)}, {"ss_seed": "0"}
    adapter = Adapter(tensors, facts)
    assert adapter == tensors
    assert adapter.metadata == facts
    assert adapter.metadata is not facts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_save_tensors_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "loras" / "new" / "dog.safetensors"
    matrix = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    tensors = {
        "a.lora_up.weight": matrix,
        "a.lora_down.weight": matrix.T,
        "a.alpha": torch.ones(()),
    }
    save_tensors(path, tensors, {"note": "犬"}, dtype)
    tiny.assert_equal(
        safetensors.torch.load_file(path), {name: t.to(dtype) for name, t in tensors.items()}
    )
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"note": "犬"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_stay_exact_in_a_narrow_file(tmp_path: Path, dtype: torch.dtype) -> None:
    # A DoRA's divide a norm that its reader takes in fp32: rounded, it would change every weight.
    path = tmp_path / "dora.safetensors"
    tensors = {"a.dora_scale": torch.tensor([[0.1234], [7e4]]), "a.alpha": torch.tensor(0.1)}
    check_finite(path, tensors, dtype)
    save_tensors(path, tensors, {}, dtype)
    tiny.assert_equal(safetensors.torch.load_file(path), tensors)


def test_trained_lora_file_comes_back(tmp_path: Path) -> None:
    ready, _ = tiny.trained(tiny.run_config(steps=1, train_text_encoder=True))
    learned = ready.trainable.export()
    save_tensors(tmp_path / "dog.safetensors", learned, {}, torch.float32)
    tiny.assert_equal(safetensors.torch.load_file(tmp_path / "dog.safetensors"), learned)


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (float("nan"), torch.float32, "not finite numbers: a.\nUse another"),
        (float("inf"), torch.bfloat16, "not finite numbers: a.\nUse another"),
        (1e5, torch.float16, "not finite numbers as torch.float16: a.\nSave them as bf16 or fp32"),
    ],
)
def test_file_of_what_is_no_number_is_refused(
    tmp_path: Path, value: float, dtype: torch.dtype, words: str
) -> None:
    tensors = {"a": torch.tensor([1.0, value]), "b": torch.ones(2), "c.alpha": torch.tensor(1e6)}
    with pytest.raises(SaveError, match=f"1 of 3 tensors are {words}"):
        check_finite(tmp_path / "x.safetensors", tensors, dtype)
    check_finite(tmp_path / "x.safetensors", {"c.alpha": tensors["c.alpha"]}, torch.float16)


# -- nothing half-written -----------------------------------------------------------------


def test_write_whole_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "result"
    for content in (b"first and long", b"second"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_write_whole_others_may_read_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "result", b"x")
    assert (tmp_path / "result").stat().st_mode & 0o444 == 0o444


def fails_with(number: int) -> Any:
    def failing(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return failing


FAILURES = [
    (errno.ENOSPC, "the disk is full, 2.0 MB are needed"),
    (errno.EDQUOT, "the disk is full, 2.0 MB are needed"),
    (errno.EIO, "Input/output error"),
]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(("number", "reason"), FAILURES)
def test_write_whole_failing_keeps_the_old_file(
    tmp_path: Path, call: str, number: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result"
    path.write_bytes(b"old")
    monkeypatch.setattr(
        *((os, "fsync") if call == "fsync" else (Path, "replace")), fails_with(number)
    )
    with pytest.raises(SaveError, match=reason) as error:
        write_whole(path, b"x" * 2_000_000)
    assert f"{tmp_path.name}/result" in str(error.value)
    assert str(tmp_path) not in str(error.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_whole_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "result", b"x")
    assert not list(tmp_path.iterdir())


def test_save_tensors_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "loras").write_text("a file")
    with pytest.raises(SaveError, match="was not saved") as error:
        save_tensors(tmp_path / "loras" / "dog.safetensors", {}, {}, torch.float32)
    assert "Make its folder writable" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["loras"]
