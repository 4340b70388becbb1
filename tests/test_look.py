"""Headless, what is trained is what the run had, or each difference is named."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.packed import module
from tests.test_recipe import RecipeError

look = module("headless.look")
Recipe = module("headless.recipe").Recipe

NODES = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sub\\sd15.safetensors"}},
    "2": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "lora_name": "a.safetensors"}},
    "3": {"class_type": "PersonalizeTrainLora", "inputs": {"model": ["2", 0], "clip": ["1", 1]}},
}
FILES = (
    {"folder": "checkpoints", "name": "sub/sd15.safetensors", "bytes": 1},
    {"folder": "loras", "name": "a.safetensors", "bytes": 1},
)
PICTURES = [
    {"name": f"{number}.png", "caption": "a dog", "bucket_px": [64, 64]} for number in range(3)
]
FACTS: dict[str, Any] = {
    "base_model": {"model": "m", "clip": "c", "vae": "v", "computes_in": "fp32 on cpu"},
    "dataset": {"name": "dog", "fingerprint": "f", "pictures": PICTURES},
    "class_dataset": None,
    "validation_dataset": None,
}


def differences(**changes: Any) -> str:
    """What is told where the run now has these facts."""
    now = copy.deepcopy(FACTS)
    for path, value in changes.items():
        *above, last = path.split("__")
        place: Any = now
        for name in above:
            place = place[int(name) if name.isdecimal() else name]
        place[last] = value
    recipe = Recipe(NODES, ("3",), files=FILES, facts=FACTS)
    try:
        look.check_same(recipe, now, "3")
    except RecipeError as error:
        return str(error)
    return ""


def test_another_device_and_the_same_files_are_no_difference() -> None:
    assert differences(base_model__computes_in="bf16 on cuda") == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_model__clip": "x"}, "clip (checkpoints/sub/sd15.safetensors) has other weights"),
        ({"base_model__model": "x"}, "loras/a.safetensors, checkpoints/sub/sd15.safetensors)"),
        ({"dataset__fingerprint": "x"}, "'dog' have another content"),
        (
            {"dataset__fingerprint": "x", "dataset__pictures__1__caption": "a cat"},
            "dataset: 1.png has another caption",
        ),
        (
            {"dataset__fingerprint": "x", "dataset__pictures": PICTURES[1:]},
            "dataset: 0.png is gone",
        ),
        ({"class_dataset": FACTS["dataset"]}, "class_dataset: there was none"),
    ],
)
def test_each_difference_is_named(changes: dict[str, Any], words: str) -> None:
    assert words in differences(**changes)


def test_why_it_is_another_run_is_told() -> None:
    groups: dict[str, Any] = dict.fromkeys(("objective", "own", "validation"), {})
    training = {"steps": 4, "seed": 1, "lr_schedule": "constant"}
    was = {
        **FACTS,
        **groups,
        "format": 2,
        "method": "lora",
        "fingerprint": "a",
        "training": training,
    }
    was["made_with"] = {"torch": "2.10"}
    base = {**FACTS["base_model"], "computes_in": "bf16 on cuda"}
    now = {**was, "base_model": base, "training": {**training, "steps": 9, "deterministic": True}}
    now["made_with"] = {"torch": "2.11"}
    recipe = Recipe(NODES, ("3",), facts=was)
    assert look.why_another(recipe, was, "a") is None
    told = look.why_another(recipe, now, "b")
    assert "computes in bf16 on cuda, was fp32 on cpu" in told
    assert "torch 2.11, was 2.10" in told
    assert "steps 9, was 4" in told
    assert "deterministic True" in told
    now["training"]["deterministic"] = False  # as without the setting, which the file has not
    assert "deterministic" not in look.why_another(recipe, now, "b")
    assert "seed" not in told
