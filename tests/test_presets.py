"""Presets: what ships is whole and allowed, and a file that is not takes no other one away."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.host import ROOT
from trainers.models.architectures import ARCHITECTURES
from trainers.runs.presets import MOST_BYTES, MOST_CHARACTERS, Preset, read_presets, settings_for
from trainers.settings.run import METHOD_CONFIGS, run_config

SHIPPED, PROBLEMS = read_presets(ROOT / "presets", ARCHITECTURES)
KINDS = {"Subject", "Face", "Style", "Quick try"}
# These change memory and time, hardly what is learned, so that a preset may leave them alone.
MEMORY = {"gradient_checkpointing", "weights", "fused_backward"}

PAGES = {
    "PersonalizeTrainLora": "lora",
    "PersonalizeTrainDreamBooth": "dreambooth",
    "PersonalizeTrainTextualInversion": "textual_inversion",
}

GOOD: dict[str, Any] = {
    "models": ["sd15"], "about": "One dog.", "source": "mine", "settings": {"steps": 1200},
}  # fmt: skip


def write(folder: Path, content: Any, name: str = "lora/Mine.json") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def problem_of(folder: Path, content: Any, name: str = "lora/Mine.json") -> str:
    """What is said of that file, beside which a good one is read all the same."""
    write(write(folder, GOOD, "lora/Good.json"), content, name)
    presets, (problem,) = read_presets(folder, ARCHITECTURES)
    assert [preset.name for preset in presets["lora"]] == ["Good"]
    assert problem.startswith(f"{name}: ")
    assert len(problem) <= MOST_CHARACTERS
    return problem


# -- what ships -----------------------------------------------------------------------------------


FLOW = {
    "SD 3.5, Chroma, Anima": ("sd3", "chroma", "anima"),
    "FLUX.1": ("flux",),
    "FLUX.2 klein": ("flux2",),
    "Z-Image": ("z_image",),
    "Qwen-Image": ("qwen_image",),
    "Krea 2": ("krea2",),
}
MODELS_OF = {"SD 1.5": ("sd15", "sd2"), "SDXL": ("sdxl",), **FLOW}


def test_shipped_presets_are_all_read() -> None:
    assert PROBLEMS == []
    found = {(preset.method, preset.name) for presets in SHIPPED.values() for preset in presets}
    kinds = [f"{kind} ({model})" for kind in KINDS for model in ("SD 1.5", "SDXL")]
    of_flow = {("lora", f"Subject ({model})") for model in FLOW}
    assert found == {(method, kind) for method in METHOD_CONFIGS for kind in kinds} | of_flow


@pytest.mark.parametrize("method", METHOD_CONFIGS)
def test_shipped_presets_fit_their_models_and_leave_nothing_of_each_other(method: str) -> None:
    for preset in SHIPPED[method]:
        model = preset.name.partition(" (")[2].rstrip(")")
        assert preset.models == MODELS_OF[model]
        values = run_config(method, preset.settings).training
        for record in (ARCHITECTURES[name] for name in preset.models):
            assert record.unusual(method, record.resolution_px or 0, values.learning_rate) == []
    assert len({frozenset(preset.settings) - MEMORY for preset in SHIPPED[method]}) == 1


def test_defaults_of_dreambooth_are_those_of_its_first_preset() -> None:
    subject = next(p for p in SHIPPED["dreambooth"] if p.name == "Subject (SD 1.5)")
    assert run_config("dreambooth", {}) == run_config("dreambooth", subject.settings)


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: PAGES[page])
def test_help_page_lists_them_and_its_example_works(tmp_path: Path, page: str) -> None:
    text = (ROOT / "js" / "docs" / f"{page}.md").read_text(encoding="utf-8")
    section = text.partition("\n## Presets\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^- \*\*(.+?)\*\*: ", section, re.M))
    assert listed == {preset.name.partition(" (")[0] for preset in SHIPPED[PAGES[page]]}
    (name,) = re.findall(r"`presets/(.+?)`", section)
    (example,) = re.findall(r"```\n(.+?)```", section, re.S)
    presets, problems = read_presets(write(tmp_path, example.encode(), name), ARCHITECTURES)
    assert (problems, len(presets[PAGES[page]])) == ([], 1)


def test_presets_ship_with_the_pack() -> None:
    for ignored in (".comfyignore", ".gitignore"):
        assert "presets" not in (ROOT / ignored).read_text(encoding="utf-8")


def test_presets_are_read_without_torch() -> None:
    code = "import sys, trainers.runs.presets; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# -- files of users -------------------------------------------------------------------------------


def test_a_file_becomes_a_preset_named_after_it(tmp_path: Path) -> None:
    write(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "lora/Mein Hund.json")
    presets, problems = read_presets(tmp_path, ARCHITECTURES)
    made = Preset("lora", "Mein Hund", ("sd15",), "One dog.", "mine", {"steps": 1200})
    assert (presets["lora"], presets["dreambooth"], problems) == ([made], [], [])


def test_presets_come_by_name_whatever_the_disk_says(tmp_path: Path) -> None:
    for name in ("b", "A", "c", "a"):
        write(tmp_path, GOOD, f"lora/{name}.json")
    presets, _ = read_presets(tmp_path, ARCHITECTURES)
    assert [preset.name for preset in presets["lora"]] == ["A", "a", "b", "c"]


def test_markup_stays_text(tmp_path: Path) -> None:
    markup = "<img src=x onerror=alert(1)>"
    write(tmp_path, GOOD | {"about": markup}, "lora/<b>bold</b>.json".replace("/b", "b"))
    (preset,) = read_presets(tmp_path, ARCHITECTURES)[0]["lora"]
    assert (preset.name, preset.about) == ("<b>bold<b>", markup)


def test_folders_other_files_and_hidden_ones_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, b"?", "README.md")
    write(tmp_path, b"?", "lora/.Mine.json")
    write(tmp_path, b"?", ".ipynb_checkpoints/Mine.json")
    (tmp_path / "lora" / "folder.json").mkdir()
    assert read_presets(tmp_path, ARCHITECTURES)[1] == []
    assert read_presets(tmp_path / "missing", ARCHITECTURES)[1] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"{'steps': 1}", "is not JSON"),
        (b"[" * 60_000, "is not JSON"),
        (b"1" * 10_000, "is not JSON"),
        (b'{"settings": {"learning_rate": NaN}}', "NaN is no number"),
        (b'{"settings": {"steps": 1, "steps": 2}}', "'steps' is there twice"),
        (b" " * (MOST_BYTES + 1), "has more than 64 KB"),
        (["steps"], "is no object; allowed: one with models, about, source, settings"),
        ({}, "models is missing or empty"),
        (GOOD | {"model": "sd15"}, "'model' is unknown; allowed: models, about"),
        (GOOD | {"models": "sd15"}, "models is missing or empty; allowed: a list of names"),
        (GOOD | {"models": [["sd15"], {}]}, r"models has ['sd15']; allowed: sd15, sd2, sdxl"),
        (GOOD | {"about": "\n "}, "about is missing or empty; allowed: a text of 1 to 500"),
        (GOOD | {"source": "x" * 10_000}, "source has 10000 characters"),
        (GOOD | {"settings": {}}, "settings is missing or empty"),
        (GOOD | {"settings": {"stepz": 1}}, "'stepz' is no setting of lora"),
        (GOOD | {"settings": {"weights": "bf16"}}, "'weights' is no setting of lora"),
        (GOOD | {"settings": {"x" * 10_000: 1}}, "xxxxx ..."),
        (GOOD | {"settings": {"steps": 0, "rank": "16"}}, "steps is 0; allowed: 1 to 1000000; ran"),
        (GOOD | {"settings": {"steps": True}}, "steps is True; allowed: a value of type int"),
        (GOOD | {"settings": {"steps": None}}, "steps is None; allowed: a value of type int"),
        (GOOD | {"settings": {"steps": [1]}}, "steps is [1]; allowed: a value of type int"),
        (GOOD | {"settings": {"targets": "all"}}, "targets is 'all'; allowed: attention, "),
        (GOOD | {"settings": {"warmup_steps": 9}}, "warmup_steps is 9 but lr_schedule 'constant'"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(
    tmp_path: Path, content: Any, words: str
) -> None:
    assert words in problem_of(tmp_path, content)


@pytest.mark.parametrize(
    "name", ["Mine.json", "flux/Mine.json", "lora/deep/Mine.json", "LoRA/A.JSON"]
)
def test_file_in_no_methods_folder_is_told_where_to_go(tmp_path: Path, name: str) -> None:
    words = "lies in no method's folder; allowed: lora/, dreambooth/, textual_inversion/"
    assert words in problem_of(tmp_path, GOOD, name)


def test_settings_of_a_method_are_its_own() -> None:
    lora, inversion = settings_for("lora"), settings_for("textual_inversion")
    assert {"rank", "prior", "optimizer"} <= lora
    assert {"token", "optimizer"} <= inversion
    assert not {"rank", "prior", "prior_weight"} & inversion


def test_contradiction_within_dreambooth_is_told(tmp_path: Path) -> None:
    both = {"fused_backward": True, "gradient_accumulation": 2}
    problem = problem_of(tmp_path, GOOD | {"settings": both}, "dreambooth/Mine.json")
    assert "gradient_accumulation is 2, but fused_backward" in problem
