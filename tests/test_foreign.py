"""LoRA files of any program: what they say of themselves, and what cannot be used."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

from trainers.errors import AdapterError
from trainers.models.architectures import GENERIC, SDXL
from trainers.runs.foreign import (
    TEXT,
    check_numbers,
    made_for,
    read_lora,
    said_architecture,
    trigger_words,
)


def kohya(tags: dict[str, dict[str, int]], pictures: dict[str, int]) -> dict[str, str]:
    folders = {name: {"n_repeats": 10, "img_count": count} for name, count in pictures.items()}
    return {"ss_tag_frequency": json.dumps(tags), "ss_dataset_dirs": json.dumps(folders)}


def test_the_trigger_phrase_is_what_a_prompt_needs() -> None:
    tags = kohya({"10_dog": {"red": 4}}, {"10_dog": 4})
    assert trigger_words({"modelspec.trigger_phrase": " a sks dog ", **tags}) == ["a sks dog"]


def test_without_a_phrase_tags_of_every_picture_are() -> None:
    tags = {"10_dog": {"sks dog": 6, "grass": 5, " red ": 6}, "5_cat": {"zwx cat": 3, "grass": 1}}
    assert trigger_words(kohya(tags, {"10_dog": 6, "5_cat": 3})) == ["sks dog", "red", "zwx cat"]


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"modelspec.trigger_phrase": " "},
        kohya({"1_dog": {"sks": 1, "grass": 1}}, {"1_dog": 1}),
        kohya({"reg": {"dog": 9}}, {}),
        kohya({"10_dog": {"grass": 3}}, {"10_dog": 4}),
        {"ss_tag_frequency": "{cut", "ss_dataset_dirs": "[]"},
        {"ss_tag_frequency": '{"a": 3}', "ss_dataset_dirs": '{"a": {"img_count": 3}}'},
        {"ss_tag_frequency": '{"a": {"b": 3}}', "ss_dataset_dirs": '{"a": "b"}'},
    ],
)
def test_what_a_file_does_not_say_is_not_guessed(metadata: dict[str, str]) -> None:
    assert trigger_words(metadata) == []


@pytest.mark.parametrize(
    ("metadata", "key", "words"),
    [
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "x", "Diffusion XL"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "lora_te_x", "Diffusion XL"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "x", "FLUX.1"),
        ({"modelspec.architecture": "kolors/lora"}, "x", "'kolors/lora'"),
        ({}, "lora_te2_text_model_x.alpha", "Diffusion XL"),
        ({}, "lora_unet_down_blocks_0_x.alpha", "1.5 or 2"),
        ({}, "lora_unet_double_blocks_0_x.alpha", "Flux"),
        ({}, "transformer.single_transformer_blocks.0.x", "Flux"),
        ({}, "emb_params", "an embedding"),
        ({}, "clip_g", "an embedding"),
        ({}, "model.diffusion_model.out.2.weight", "a whole checkpoint"),
        ({}, "control_model.x", "a ControlNet"),
        ({}, "decoder.conv_in.weight", "a VAE"),
        ({}, "what_is_this", "unknown: its first tensor is 'what_is_this'"),
    ],
)
def test_a_file_that_fits_not_is_named(metadata: dict[str, str], key: str, words: str) -> None:
    assert words in made_for(metadata, [key])


def test_an_empty_file_is_for_nothing() -> None:
    assert made_for({}, []) == "nothing"


def test_only_architectures_with_a_record_are_known() -> None:
    assert said_architecture({"ss_base_model_version": "sdxl_base_v1-0"}) is SDXL
    assert said_architecture({}) is GENERIC
    assert said_architecture({"modelspec.architecture": "generic/lora"}) is GENERIC


@pytest.mark.parametrize(
    ("key", "of_text"),
    [
        ("lora_te_text_model_x.alpha", True),
        ("lora_te2_text_model_x.alpha", True),
        ("text_encoders.clip_l.x", True),
        ("text_encoder_2.text_model.x", True),
        ("bundle_emb.sks.string_to_param.*", True),
        ("lora_unet_x.alpha", False),
        ("diffusion_model.x", False),
    ],
)
def test_parts_of_a_lora_are_told_apart(key: str, of_text: bool) -> None:
    assert bool(TEXT.match(key)) == of_text


def test_files_are_read_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2)}, path, {"b": "c"})
    tensors, metadata = read_lora(path)
    assert tensors["a"].tolist() == [1, 1]
    assert metadata == {"b": "c"}
    safetensors.torch.save_file({"a": torch.ones(2)}, path)
    assert read_lora(path)[1] == {}


@pytest.mark.parametrize("content", [b"", b"PK\3\4 not one", None])
def test_cut_and_other_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.safetensors"
    whole = safetensors.torch.save({"a": torch.ones(200)})
    path.write_bytes(whole[:-100] if content is None else content)
    with pytest.raises(AdapterError, match=r"'a.safetensors' cannot be read .*\n"):
        read_lora(path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_broken_numbers_are_refused(number: float, dtype: torch.dtype) -> None:
    broken = {"a": torch.ones(3), "b": torch.tensor([1, number], dtype=dtype)}
    with pytest.raises(AdapterError, match=re.escape("in 1 of 2 tensors, such as b;")):
        check_numbers("x", broken)


def test_numbers_of_every_type_are_looked_at() -> None:
    types = (torch.float16, torch.float8_e4m3fn, torch.int8, torch.bool)
    check_numbers("x", {str(kind): torch.ones(3).to(kind) for kind in types})
    with pytest.raises(AdapterError):
        check_numbers("x", {"a": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)})
