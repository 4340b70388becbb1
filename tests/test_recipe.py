"""What a file says is to be trained: run.json, one written by hand, a graph; and --set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.graphs import Graph
from tests.host import ROOT
from tests.packed import module
from trainers.settings.field import settings_of
from trainers.settings.run import METHOD_CONFIGS, ON_OTHERS, config_groups, run_config, together

read_recipe = module("headless.described").read_recipe
changed = module("headless.changes").changed
settings_help = module("headless.settings_help").settings_help
RecipeError = module("trainers.errors").RecipeError

BY_HAND: dict[str, Any] = {
    "method": "lora",
    "base": {"checkpoint": "sd15.safetensors"},
    "dataset": {"folder": "dog", "resolution": 64},
    "steps": 12,
    "objective": {"noise_offset": 0.05},
}


def written(folder: Path, content: Any) -> Path:
    file = folder / "run.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def recipe_of(folder: Path, content: Any) -> Any:
    return read_recipe(written(folder, content))


def settings_in(recipe: Any, target: str | None = None) -> dict[str, Any]:
    """What the training node is given, with what is wired to it."""
    target = target or recipe.targets[0]
    inputs = dict(recipe.nodes[target]["inputs"])
    for place in ON_OTHERS:
        if place in inputs:
            inputs[place] = recipe.nodes[inputs[place][0]]["inputs"]
    return together(recipe.method(target), inputs)


def node(recipe: Any, class_type: str) -> dict[str, Any]:
    (found,) = (n["inputs"] for n in recipe.nodes.values() if n["class_type"] == class_type)
    return dict(found)


def run_json(method: str = "lora", **settings: Any) -> dict[str, Any]:
    """As a run's folder has it, of a graph whose settings come from their nodes' defaults."""
    graph = Graph()
    sockets = [*graph.load(), graph.dataset("dog")]
    train = {"lora": graph.train, "dreambooth": graph.dreambooth}[method]
    target = train(*sockets)[0][0]
    kept = {"node": target, "nodes": graph, "custom_nodes": ["some_pack"], "files": []}
    facts = run_config(method, settings).as_dict()
    return {"fingerprint": "0" * 64, "status": "done", **facts, "base_model": {}, "graph": kept}


# -- what there is ------------------------------------------------------------


def test_a_run_that_was_mended_is_read(tmp_path: Path) -> None:
    assert recipe_of(tmp_path, {**run_json(), "mended": ["magnitudes in fp32"]}).targets


def test_a_training_by_hand_becomes_the_nodes_of_its_graph(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, BY_HAND)
    (target,) = recipe.targets
    inputs = recipe.nodes[target]["inputs"]
    loaded = inputs["model"][0]
    assert [inputs[socket] for socket in ("model", "clip", "vae")] == [
        [loaded, n] for n in range(3)
    ]
    assert node(recipe, "CheckpointLoaderSimple") == {"ckpt_name": "sd15.safetensors"}
    assert node(recipe, "PersonalizeFolderDataset")["resolution"] == 64
    assert node(recipe, "PersonalizeFolderDataset")["captions"] == "auto"
    asked = run_config("lora", {"steps": 12, "noise_offset": 0.05})
    assert run_config("lora", settings_in(recipe)) == asked


def test_a_base_in_parts_has_a_loader_for_each(tmp_path: Path) -> None:
    base = {"diffusion_model": "a", "text_encoders": ["b", "c"], "type": "flux", "vae": "d"}
    base["loras"] = [{"name": "e", "strength": 0.5}]  # type: ignore[assignment]
    recipe = recipe_of(tmp_path, {**BY_HAND, "base": base})
    assert node(recipe, "DualCLIPLoader") == {"clip_name1": "b", "clip_name2": "c", "type": "flux"}
    assert node(recipe, "UNETLoader") == {"unet_name": "a", "weight_dtype": "default"}
    lora = node(recipe, "LoraLoader")
    assert (lora["lora_name"], lora["strength_clip"]) == ("e", 0.5)
    inputs = recipe.nodes[recipe.targets[0]]["inputs"]
    assert recipe.nodes[inputs["clip"][0]]["class_type"] == "LoraLoader"


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_settings_are_those_of_the_file_whatever_its_graph_says(
    tmp_path: Path, method: str
) -> None:
    told = {"steps": 33, "min_snr_gamma": 5.0, "keep_states": 4}
    recipe = recipe_of(tmp_path, run_json(method, **told))
    assert run_config(method, settings_in(recipe)) == run_config(method, told)
    assert recipe.packs == ("some_pack",)
    assert recipe.facts["status"] == "done"


def test_of_a_graph_all_that_trainings_are_made_from_is_kept(tmp_path: Path) -> None:
    graph = Graph()
    base, dataset = graph.load(), graph.dataset("dog")
    clip = graph.invert(*base, dataset)[0]
    model, *_ = graph.train(base[0], clip, base[2], dataset)
    graph.sample(model, clip, "x")
    recipe = recipe_of(tmp_path, graph)
    assert [recipe.method(t) for t in recipe.targets] == ["textual_inversion", "lora"]
    assert not [n for n in recipe.nodes.values() if n["class_type"] in ("KSampler", "SaveLatent")]
    assert recipe.facts is None


# -- what there is not --------------------------------------------------------


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in BY_HAND.items() if key != name}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no object"),
        ({**BY_HAND, "learning_rat": 1e-4}, "'learning_rat' (did you mean 'learning_rate'?)"),
        ({**BY_HAND, "training": {"step": 4}}, "in training: 'step' (did you mean 'steps'?)"),
        ({**BY_HAND, "method": "lorra"}, "no method 'lorra' (did you mean 'lora'?)"),
        ({**BY_HAND, "steps": 0}, "steps is 0; allowed: 1 to 1000000"),
        ({**BY_HAND, "warmup_steps": 5}, "constant_with_warmup"),
        ({**BY_HAND, "dataset": {"folder": "dog", "resolutoin": 64}}, "did you mean 'resolution'?"),
        ({**BY_HAND, "dataset": {"folder": "dog", "resolution": 7}}, "in dataset: resolution is 7"),
        ({**BY_HAND, "base": {"checkpont": "x"}}, "base is {'checkpont': 'x'}"),
        ({**BY_HAND, "preview": {"prompts": ""}}, "in preview: prompts is empty"),
        (without("base"), "base is None"),
        (without("dataset"), "says too little in dataset"),
        ({**run_json(), "graph": None}, "did not note the graph"),
        ({**run_json(), "graph": {"node": "9"}}, "graph is damaged"),
        ({**run_json(), "method": "dreambooth"}, "its graph trains 'lora'"),
        ({**run_json(), "satus": "done"}, "'satus' (did you mean 'status'?)"),
        ({"nodes": [], "links": []}, "Export (API)"),
        ({"1": {"class_type": "KSampler", "inputs": {}}}, "without a training node"),
    ],
)  # fmt: skip
def test_bad_files_are_told_in_two_lines(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(RecipeError) as told:
        recipe_of(tmp_path, content)
    assert words in str(told.value)
    assert str(told.value).count("\n") == 1


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing.json' cannot be read: No such file"):
        read_recipe(tmp_path / "nothing.json")


# -- --set --------------------------------------------------------------------


def test_set_changes_one_training_and_leaves_shared_nodes_alone(tmp_path: Path) -> None:
    graph = Graph()
    base, dataset = graph.load(), graph.dataset("dog")
    shared = graph.add("PersonalizeLoss", noise_offset=0.1)[0]
    graph.dreambooth(*base, dataset, loss_settings=shared)
    recipe = recipe_of(tmp_path, graph)
    asked = ["learning_rate=5e-5", "min_snr_gamma=5", "gradient_checkpointing=on", "resolution=128"]
    other = changed(recipe, asked)
    told = settings_in(other)
    assert (told["learning_rate"], told["min_snr_gamma"], told["noise_offset"]) == (5e-5, 5.0, 0.1)
    assert told["gradient_checkpointing"] is True
    assert node(other, "PersonalizeFolderDataset")["resolution"] == 128
    assert other.nodes[shared[0]]["inputs"] == {"noise_offset": 0.1}
    assert recipe.nodes == recipe_of(tmp_path, graph).nodes


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("learning_rat=1", "'learning_rat' (did you mean 'learning_rate'?)"),
        ("steps=many", "steps is 'many'.\nAllowed: a whole number"),
        ("rank=0", "rank is 0"),
        ("train_text_encoder=perhaps", "Allowed: true or false"),
        ("steps", "Allowed: name=value"),
        ("warmup_steps=5", "constant_with_warmup"),
        ("resolution=7", "resolution is 7"),
        ("token=<sks>", "lora has no setting 'token'"),
    ],
)
def test_set_refuses_what_there_is_not(tmp_path: Path, asked: str, words: str) -> None:
    with pytest.raises(RecipeError) as told:
        changed(recipe_of(tmp_path, BY_HAND), [asked])
    assert words in str(told.value)


def test_set_names_a_node_that_it_cannot_change(tmp_path: Path) -> None:
    graph = Graph()
    switch = graph.add("SomeSwitch")[0]
    graph.train(*graph.load(), graph.dataset("dog"), loss_settings=switch)
    with pytest.raises(RecipeError, match="it comes from 'SomeSwitch'"):
        changed(recipe_of(tmp_path, graph), ["noise_offset=0.1"])


# -- the command --------------------------------------------------------------


def test_help_lists_every_setting() -> None:
    text = settings_help()
    names = {n for m in METHOD_CONFIGS for g in config_groups(m).values() for n in settings_of(g)}
    assert [name for name in sorted(names) if f"  {name} (" not in text] == []


@pytest.mark.parametrize("package", [True, False])
def test_the_command_needs_no_comfyui_to_refuse_a_file(tmp_path: Path, package: bool) -> None:
    (tmp_path / "my.pack").symlink_to(ROOT, target_is_directory=True)
    (tmp_path / "personalize").symlink_to(ROOT, target_is_directory=True)
    file = written(tmp_path, {**BY_HAND, "stepss": 4})
    how = ["-m", "personalize"] if package else ["my.pack"]
    done = subprocess.run(
        [sys.executable, *how, str(file)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "'stepss' (did you mean 'steps'?)" in done.stderr
    assert len(done.stderr.splitlines()) == 2
