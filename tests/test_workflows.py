"""The shipped graphs and help pages say what the nodes are, and the graphs run."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests import tiny_transformers as transformers
from tests.dataset_files import save
from tests.graphs import SETTINGS_NODES
from tests.host import PACK_NAME, ROOT, Host, Prompt, convert, nodes_of
from tests.scanned.unets import UNETS
from trainers.settings.dataset import DatasetConfig
from trainers.settings.field import settings_of
from trainers.settings.methods.lora import LoraConfig
from trainers.settings.objective import ObjectiveConfig
from trainers.settings.preview import (
    BeforeAfterConfig,
    CompareConfig,
    PreviewConfig,
    SimilarityConfig,
)
from trainers.settings.run import METHOD_DEFAULTS, ON_OTHERS, ON_TRAINER, config_groups
from trainers.settings.training import TrainingConfig

Box = tuple[float, float, float, float]  # left, top, right, bottom

GRAPHS = sorted((ROOT / "workflows").glob("*.json"))
HELP_PAGES, README = ROOT / "js" / "docs", ROOT / "README.md"
METHOD_OF = {
    "PersonalizeTrainLora": "lora",
    "PersonalizeTrainDreamBooth": "dreambooth",
    "PersonalizeTrainTextualInversion": "textual_inversion",
}
# What the shipped graphs load: what a host of the tests has instead, and the model's own size.
BASES = {
    "v1-5-pruned-emaonly-fp16.safetensors": ("thin_sd15.safetensors", 512),
    "sd_xl_base_1.0.safetensors": ("thin_sdxl.safetensors", 1024),
}
# Of transformers no file is made: a small random model is in the place of all three loaders. SDXL's
# text encoders take gigabytes, and seconds for a prompt: one of its graphs has them in full.
TRANSFORMERS_PX = 1024
IN_FULL = "2 LoRA of your subject (SDXL)"
RECIPES = {
    "sd_xl_base_1.0.safetensors": UNETS["SDXL"],
    "z_image_turbo_bf16.safetensors": transformers.Z_IMAGE,
    "flux-2-klein-base-4b.safetensors": transformers.KLEIN,
    "flux-2-klein-4b.safetensors": transformers.KLEIN,
    "krea2_raw_bf16.safetensors": transformers.KREA2,
    "krea2_turbo_fp8_scaled.safetensors": transformers.KREA2,
    "qwen_image_2512_bf16.safetensors": transformers.QWEN_IMAGE,
}
NOT_IN_THE_OLDEST = {"15 Train a Krea 2 LoRA"}
SIZED = (
    "EmptyLatentImage", "EmptySD3LatentImage", "EmptyFlux2LatentImage",
    "PersonalizeClassImages", "PersonalizePreview", "PersonalizeCompare",
)  # fmt: skip
SHOW_PICTURES = {
    "PersonalizeClassImages",
    "PersonalizeLossPlot",
    "PersonalizeCompare",
    "PreviewImage",
}
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
TITLE_PX = 30  # of a node, above its position

each_graph = pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.stem)
each_graph_that_runs = pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.large] if p.stem == IN_FULL else []) for p in GRAPHS],
    ids=lambda path: path.stem,
)


def each_host(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.host(pytest.mark.parametrize("which", ["host", "old_host"])(test))


# -- what needs no host -------------------------------------------------------


@each_graph
def test_graph_has_a_thumbnail(path: Path) -> None:
    thumbnail = path.with_suffix(".jpg").read_bytes()
    assert thumbnail.startswith(b"\xff\xd8\xff")
    assert len(thumbnail) < 250_000


@each_graph
def test_graph_names_the_pack_of_each_node(path: Path) -> None:
    ours = [node for node in _load(path)["nodes"] if node["type"].startswith("Personalize")]
    assert ours
    assert {node["properties"]["cnr_id"] for node in ours} == {"personalize"}


@each_graph
def test_graph_nodes_lie_in_a_group_and_apart(path: Path) -> None:
    graph = _load(path)
    boxes = [_outline(node) for node in graph["nodes"]]
    groups = [group["bounding"] for group in graph["groups"]]
    assert all(any(_inside(box, group) for group in groups) for box in boxes)
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not [pair for pair in pairs if _overlap(*pair)]


def settings_on(node_id: str) -> dict[str, Any]:
    """The settings that a node has, and their defaults."""
    alone = {
        "PersonalizeFolderDataset": DatasetConfig,
        "PersonalizePreview": PreviewConfig,
        "PersonalizeCompare": CompareConfig,
        "PersonalizeBeforeAfter": BeforeAfterConfig,
        "PersonalizeSimilarity": SimilarityConfig,
    }
    if node_id in alone:
        return {n: field.default for n, (field, _) in settings_of(alone[node_id]).items()}
    method = METHOD_OF.get(node_id)
    known = {
        name: METHOD_DEFAULTS[method or "lora"].get(name, field.default)
        for asked in ([method] if method else METHOD_DEFAULTS)
        for group in config_groups(asked).values()
        for name, (field, _) in settings_of(group).items()
    }
    places = {SETTINGS_NODES[socket]: names for socket, names in ON_OTHERS.items()}
    names = ON_TRAINER[method] if method else places[node_id]
    return {name: known[name] for name in names}


@pytest.mark.parametrize(
    "node_id",
    [
        *METHOD_OF,
        *SETTINGS_NODES.values(),
        "PersonalizeFolderDataset",
        "PersonalizePreview",
        "PersonalizeCompare",
        "PersonalizeBeforeAfter",
        "PersonalizeSimilarity",
    ],
)
def test_help_page_names_each_setting_and_its_default(node_id: str) -> None:
    shown = _inputs_of_page(HELP_PAGES / f"{node_id}.md")
    for name, default in settings_on(node_id).items():
        assert name in shown
        if shown[name] is not None:  # the page has a column of defaults
            assert _reads(shown[name], default), f"{name} is {default!r}"


def test_readme_settings_have_their_defaults() -> None:
    shown = _settings_of_readme()
    configs = (DatasetConfig, TrainingConfig, LoraConfig, ObjectiveConfig)
    settings = {n: field for c in configs for n, (field, _) in settings_of(c).items()}
    plain = {n for c in configs for n, (_, facts) in settings_of(c).items() if not facts.advanced}
    assert plain <= set(shown) <= set(settings)
    wrong = {n: text for n, text in shown.items() if not _reads(text or "", settings[n].default)}
    assert not wrong


# -- what needs one -----------------------------------------------------------


@each_host
@each_graph
def test_graph_has_a_value_for_each_widget(
    path: Path, which: str, request: pytest.FixtureRequest
) -> None:
    info = request.getfixturevalue(which).object_info()
    for node in _load(path)["nodes"]:
        if node["type"] in info:
            assert len(node["widgets_values"]) == number_of_values(info[node["type"]]), node["type"]


@each_host
@each_graph_that_runs
def test_graph_runs(path: Path, which: str, request: pytest.FixtureRequest) -> None:
    if path.stem == IN_FULL:
        request.getfixturevalue("much_memory")
    if which == "old_host" and path.stem in NOT_IN_THE_OLDEST:
        pytest.skip("the oldest ComfyUI does not have the model")
    host: Host = request.getfixturevalue(which)
    for name in (
        "workflow/1.png",
        "workflow/2.png",
        "workflow_pairs/1.png",
        "workflow_pairs/1.control.png",
    ):
        save(host.base / "input" / name, (64, 64))
    log_before = len(host.log())
    prompt = convert(_load(path), host.object_info())  # fails on a node that the host lacks
    _check_size(prompt)
    _offer_training_adapters(host, prompt)
    shown = host.images(host.run(_small(prompt, in_full=path.stem == IN_FULL)))
    assert len(shown) == len(nodes_of(prompt, "SaveImage")) + len(SHOW_PICTURES & _classes(prompt))
    assert all(picture.stat().st_size > 0 for picture in shown)
    log = host.log()[log_before:].lower()
    assert "lora key not loaded" not in log
    assert "not loaded:" not in log


@each_graph
def test_graph_is_in_the_template_browser(path: Path, host: Host) -> None:
    templates = f"{host.url}/api/workflow_templates"
    with urllib.request.urlopen(templates) as reply:
        assert path.stem in json.load(reply)[PACK_NAME]
    for file in (path, path.with_suffix(".jpg")):
        url = f"{templates}/{PACK_NAME}/{urllib.parse.quote(file.name)}"
        with urllib.request.urlopen(url) as reply:
            assert reply.read() == file.read_bytes()


# -- reading graphs and pages -------------------------------------------------


def _load(path: Path) -> dict[str, Any]:
    graph: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return graph


def _classes(prompt: Prompt) -> set[str]:
    return {node["class_type"] for node in prompt.values()}


def _check_size(prompt: Prompt) -> None:
    """Pictures are trained and made at the size of the model."""
    loaders = nodes_of(prompt, "CheckpointLoaderSimple")
    size_px = BASES[loaders[0]["ckpt_name"]][1] if loaders else TRANSFORMERS_PX
    datasets = nodes_of(prompt, "PersonalizeFolderDataset")
    made = [inputs for kind in SIZED for inputs in nodes_of(prompt, kind)]
    sizes = [inputs["resolution"] for inputs in datasets]
    sizes += [inputs[side] for inputs in made for side in ("width", "height")]
    assert set(sizes) == {size_px}


def _offer_training_adapters(host: Host, prompt: Prompt) -> None:
    """LoRAs of a small Z-Image under the names that the graph loads."""
    for inputs in nodes_of(prompt, "LoraLoaderModelOnly"):
        layer, width = "diffusion_model.layers.0.attention.qkv", transformers.WIDTH
        lora = {
            f"{layer}.lora_A.weight": 0.1 * torch.randn(1, width),
            f"{layer}.lora_B.weight": 0.1 * torch.randn(3 * width, 1),
        }
        safetensors.torch.save_file(lora, host.base / "models" / "loras" / inputs["lora_name"])


def _on_tiny_models(prompt: Prompt) -> None:
    """Puts a small random model in the place of the loaders of a model and its parts."""
    names = {"UNETLoader": "unet_name", "CheckpointLoaderSimple": "ckpt_name"}
    slots = {"CLIPLoader": 1, "VAELoader": 2}
    classes = {node_id: node["class_type"] for node_id, node in prompt.items()}
    loaded = {i: prompt[i]["inputs"][names[kind]] for i, kind in classes.items() if kind in names}
    models = [node_id for node_id, file in loaded.items() if file in RECIPES]
    for node_id in models:
        recipe = RECIPES[loaded[node_id]]
        tiny = {"class_type": "ProbeTiny", "inputs": {"recipe": json.dumps(recipe)}}
        prompt[node_id] = tiny
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and classes.get(value[0]) in slots:
                node["inputs"][name] = [models[0], slots[classes[value[0]]]]
    for node_id, kind in classes.items():
        if kind in slots:
            del prompt[node_id]


def _small(prompt: Prompt, in_full: bool) -> Prompt:
    """The same graph with a thin model, two pictures and as little work as there can be."""
    if not in_full:
        _on_tiny_models(prompt)
    for inputs in nodes_of(prompt, "CheckpointLoaderSimple"):
        inputs["ckpt_name"], _ = BASES[inputs["ckpt_name"]]
    for node in prompt.values():
        if node["class_type"] == "FluxKontextImageScale":  # to a megapixel, which takes long
            node["class_type"] = "ImageScale"
            size = {"width": 64, "height": 64, "upscale_method": "area", "crop": "disabled"}
            node["inputs"].update(size)
    edits = "ReferenceLatent" in _classes(prompt)
    small = {
        "PersonalizeFolderDataset": {
            "folder": "workflow_pairs" if edits else "workflow",
            "resolution": 64,
        },
        "LoadImage": {"image": "workflow_pairs/1.control.png"},
        "PersonalizeTrainLora": {"steps": 2},
        "PersonalizeOptimizer": {"gradient_accumulation": 1},
        "PersonalizeTrainTextualInversion": {"steps": 2},
        "PersonalizeTrainDreamBooth": {"steps": 2},
        "PersonalizePreview": {"width": 64, "height": 64, "steps": 1},
        "PersonalizeClassImages": {"count": 2, "width": 64, "height": 64, "steps": 1},
        "PersonalizeCompare": {"width": 64, "height": 64, "steps": 1},
        "EmptyLatentImage": {"width": 64, "height": 64},
        "EmptySD3LatentImage": {"width": 64, "height": 64},
        "EmptyFlux2LatentImage": {"width": 64, "height": 64},
        "KSampler": {"steps": 1},
    }
    for class_type, values in small.items():
        for inputs in nodes_of(prompt, class_type):
            inputs.update(values)
    return prompt


def number_of_values(schema: dict[str, Any]) -> int:
    """How many values the frontend saves for a node: its widgets, and what seeds do after."""
    specs = [spec for part in ("required", "optional") for spec in _specs(schema, part)]
    kinds = [(options.get("widgetType", kind), options) for kind, options in specs]
    widgets = [options for kind, options in kinds if isinstance(kind, list) or kind in WIDGETS]
    widgets = [options for options in widgets if not options.get("forceInput")]
    return len(widgets) + sum(bool(options.get("control_after_generate")) for options in widgets)


def _specs(schema: dict[str, Any], part: str) -> list[tuple[Any, dict[str, Any]]]:
    specs = schema["input"].get(part, {}).values()
    return [(spec[0], spec[1] if len(spec) > 1 else {}) for spec in specs]


def _outline(node: dict[str, Any]) -> Box:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_PX, x + width, y + height


def _inside(inner: Box, group: list[float]) -> bool:
    x, y, width, height = group
    return x <= inner[0] and y <= inner[1] and inner[2] <= x + width and inner[3] <= y + height


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _inputs_of_page(page: Path) -> dict[str, str | None]:
    """The inputs that a help page lists, each with its default if there is one."""
    inputs: dict[str, str | None] = {}
    _, _, section = page.read_text(encoding="utf-8").partition("\n## Inputs\n")
    for line in section.partition("\n## ")[0].splitlines():
        if found := re.match(r"- \*\*(.+?)\*\*(?: \((.*?)\))?: ", line):
            names = found[1].split(", ")
            defaults = found[2].split(", ") if found[2] else [None] * len(names)
            inputs |= dict(zip(names, defaults, strict=False))
    return inputs


def _settings_of_readme() -> dict[str, str]:
    """The settings in the tables of the README, with their defaults."""
    _, _, section = README.read_text(encoding="utf-8").partition("\n## Settings\n")
    rows = re.findall(r"^\| (\w+) \| (.*?) \| .* \|$", section.partition("\n## ")[0], re.M)
    return {name: default for name, default in rows if name != "setting"}


def _reads(shown: str, default: Any) -> bool:
    if isinstance(default, bool):
        return shown == ("on" if default else "off")
    return shown.strip("`") == default if isinstance(default, str) else float(shown) == default
