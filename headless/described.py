"""A training described by hand becomes the same nodes that a graph of it would have.

    {"method": "lora",
     "base": {"checkpoint": "sd15.safetensors"},
     "dataset": {"folder": "dog", "prompt": "a photo of sks dog", "resolution": 512},
     "steps": 800, "rank": 16}

base may also be {"diffusion_model": file, "text_encoders": [files], "type": "flux2", "vae": file}.
A dataset may have a control_folder beside its folder; class_dataset, validation_dataset and preview
(its settings by name) may be there. Settings stand by name, or in groups as in a run's own
run.json. What is not said has the defaults of the method.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ..trainers.errors import RecipeError, SettingsError
from ..trainers.runs.presets import settings_for
from ..trainers.settings.dataset import DatasetConfig
from ..trainers.settings.field import from_values, settings_of
from ..trainers.settings.preview import PreviewConfig
from ..trainers.settings.run import config_groups
from .recipe import (
    TRAINERS,
    Nodes,
    Recipe,
    add,
    check_method,
    check_names,
    check_settings,
    grouped_settings,
    put_all,
    read_json,
    recipe_of_graph,
    recipe_of_run,
)

DATASETS = ("dataset", "class_dataset", "validation_dataset")
# What a run's own run.json says of it beside settings, graph and datasets; of no use here.
OF_A_RUN = (
    "graph", "fingerprint", "status", "stopped", "format", "architecture", "base_model",
    "made_with", "versions", "processes", "mended", "plan", "resumed",
    "began", "seconds", "at_work_since",
)  # fmt: skip
CHECKPOINT = ("checkpoint", "loras")
PARTS = ("diffusion_model", "weight_dtype", "text_encoders", "type", "vae", "loras")
CLIP_LOADERS = ("CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader", "QuadrupleCLIPLoader")


def read_recipe(path: Path) -> Recipe:
    """What the file says is to be trained.

    Raises:
        RecipeError: it cannot be read, has names or values that there are not, or says too little.
    """
    content = read_json(path)
    if content and all(isinstance(v, dict) and "class_type" in v for v in content.values()):
        return recipe_of_graph(path, content)
    if isinstance(content.get("nodes"), list):
        raise RecipeError(
            f"'{path}' is a graph as ComfyUI saves it, which does not say all that is needed.\n"
            "Open it and take File > Export (API)."
        )
    _check_keys(path, content)
    if content.get("graph"):
        return recipe_of_run(path, content)
    if "base_model" in content and "base" not in content:
        raise RecipeError(
            f"'{path}' is from a version of Personalize that did not note the graph of a run.\n"
            "Queue its graph once more, which adds that; or give the graph itself, by File > "
            "Export (API); or keep method and settings of this file and add base and dataset."
        )
    return _described(path, content)


def _check_keys(path: Path, content: Mapping[str, Any]) -> None:
    method = check_method(path, content.get("method"))
    known = ["method", *DATASETS, *config_groups(method), *OF_A_RUN]
    if not content.get("graph"):
        known += ["base", "preview", *sorted(settings_for(method))]
    check_names(path, content, known, "")


def _described(path: Path, content: Mapping[str, Any]) -> Recipe:
    method = content["method"]
    flat = {name: content[name] for name in settings_for(method) if name in content}
    values = check_settings(path, method, grouped_settings(path, method, content) | flat)
    nodes: Nodes = {}
    model, clip, vae = _base(path, nodes, content.get("base"))
    inputs: dict[str, Any] = {"model": model, "clip": clip, "vae": vae}
    for name in DATASETS:
        if content.get(name) is not None or name == "dataset":
            inputs[name] = _dataset(path, nodes, name, content.get(name))
    if preview := content.get("preview"):
        inputs["preview"] = _preview(path, nodes, preview)
    target = add(nodes, TRAINERS[method], inputs)
    put_all(nodes, target, method, values)
    return Recipe(nodes, (target,))


def _base(path: Path, nodes: Nodes, base: Any) -> list[list[Any]]:
    """Links to model, clip and vae."""
    if not isinstance(base, dict) or not {"checkpoint", "diffusion_model"} & base.keys():
        raise RecipeError(
            f"'{path}': base is {base!r}.\n"
            'Allowed: {"checkpoint": file} or {"diffusion_model": file, "text_encoders": [files], '
            '"type": as on Load CLIP, "vae": file}, files by their names in ComfyUI\'s folders.'
        )
    if "checkpoint" in base:
        check_names(path, base, CHECKPOINT, "in base")
        loader = add(nodes, "CheckpointLoaderSimple", {"ckpt_name": base["checkpoint"]})
        model, clip, vae = ([loader, output] for output in range(3))
    else:
        model, clip, vae = _parts(path, nodes, base)
    for lora in base.get("loras", ()):
        _require(path, lora, ("name", "strength"), ("name",), "in loras")
        strength = lora.get("strength", 1.0)
        wired = {"model": model, "clip": clip, "lora_name": lora["name"]}
        both = {"strength_model": strength, "strength_clip": strength}
        key = add(nodes, "LoraLoader", wired | both)
        model, clip = [key, 0], [key, 1]
    return [model, clip, vae]


def _parts(path: Path, nodes: Nodes, base: Mapping[str, Any]) -> list[list[Any]]:
    _require(path, base, PARTS, ("diffusion_model", "text_encoders", "vae"), "in base")
    files = base["text_encoders"]
    if not isinstance(files, list) or not 1 <= len(files) <= len(CLIP_LOADERS):
        raise RecipeError(
            f"'{path}': text_encoders is {files!r}.\nAllowed: a list of 1 to 4 files."
        )
    unet = {
        "unet_name": base["diffusion_model"],
        "weight_dtype": base.get("weight_dtype", "default"),
    }
    names = ["clip_name"] if len(files) == 1 else [f"clip_name{n + 1}" for n in range(len(files))]
    clip = dict(zip(names, files, strict=True))
    if len(files) < 3:  # the others know it from their files
        clip["type"] = base.get("type", "stable_diffusion" if len(files) == 1 else "sdxl")
    loaders = (
        ("UNETLoader", unet),
        (CLIP_LOADERS[len(files) - 1], clip),
        ("VAELoader", {"vae_name": base["vae"]}),
    )
    return [[add(nodes, class_type, inputs), 0] for class_type, inputs in loaders]


def _dataset(path: Path, nodes: Nodes, name: str, given: Any) -> list[Any]:
    known = ("folder", "control_folder", *settings_of(DatasetConfig))
    _require(path, given, known, ("folder",), f"in {name}")
    settings = {key: value for key, value in given.items() if key in settings_of(DatasetConfig)}
    _check(path, name, lambda: from_values(DatasetConfig, settings))
    defaults = {key: field.default for key, (field, _) in settings_of(DatasetConfig).items()}
    return [add(nodes, "PersonalizeFolderDataset", {**defaults, **given}), 0]


def _preview(path: Path, nodes: Nodes, given: Any) -> list[Any]:
    known = [*settings_of(PreviewConfig), "sampler_name", "scheduler"]
    _require(path, given, known, (), "in preview")
    _check(path, "preview", lambda: PreviewConfig(**given))
    defaults: dict[str, Any] = {k: f.default for k, (f, _) in settings_of(PreviewConfig).items()}
    defaults |= {"sampler_name": PreviewConfig.sampler_name, "scheduler": PreviewConfig.scheduler}
    return [add(nodes, "PersonalizePreview", {**defaults, **given}), 0]


def _require(
    path: Path, given: Any, known: Collection[str], needed: Collection[str], where: str
) -> None:
    if not isinstance(given, dict) or [name for name in needed if name not in given]:
        raise RecipeError(
            f"'{path}' says too little {where}: {given!r}.\nNeeded: {', '.join(needed)}."
        )
    check_names(path, given, known, where)


def _check(path: Path, where: str, make: Callable[[], Any]) -> None:
    try:
        make()
    except SettingsError as error:
        raise RecipeError(
            f"'{path}', in {where}: {'; '.join(error.problems)}.\nChange it in the file."
        ) from error
