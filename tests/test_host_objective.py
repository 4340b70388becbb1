"""What settings of the loss come to in a real ComfyUI: numbers that must agree, on transformers.

On a UNet a plain loop says the same; see tests.plain_loop.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from tests.dataset_files import half_white
from tests.graphs import Graph, Link, every_transformer
from tests.host import Host
from tests.test_host_lora import pictures
from tests.test_host_runs import folder_of

Settings = dict[str, Any]
CLASS_PROMPT = "a photo of a dog"


def losses(host: Host, base: str, runs: dict[str, tuple[Settings, Settings]]) -> dict[str, Any]:
    """The losses of two steps for each of (settings, dataset); a dataset may be two folders."""
    graph = Graph()
    sockets = graph.base(base)
    shown: dict[str, str] = {}
    for name, (settings, given) in runs.items():
        chosen: Settings = {"folder": pictures(host), "prompt": "a photo of sks dog", **given}
        classes = chosen.pop("classes", None)
        more: dict[str, Link] = {}
        if classes:
            more["class_dataset"] = graph.dataset(classes, CLASS_PROMPT)
        dataset = graph.dataset(**chosen)
        run = graph.train(
            *sockets, dataset, **settings, **more, steps=2, learning_rate=1e-2,
            if_run_exists="start anew",
        )[4]  # fmt: skip
        shown[name] = graph.add("PreviewAny", source=run)[0][0]
    outputs = host.run(graph)["outputs"]
    return {name: _losses(Path(outputs[node]["text"][0])) for name, node in shown.items()}


def _losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def about(value: float) -> Any:
    return pytest.approx(value, rel=1e-4)


@every_transformer
def test_preserving_costs_nothing_before_anything_is_learned(host: Host, base: str) -> None:
    kept = {"class_prompt": CLASS_PROMPT, "prior": "output preservation"}
    teacher = {"class_prompt": CLASS_PROMPT, "prior": "teacher", "prior_samples": 4}
    found = losses(host, base, {
        "plain": ({}, {}),
        "kept": (kept, {}),
        "taught": (teacher, {}),
        "taught more": ({**teacher, "prior_weight": 50.0}, {}),
    })  # fmt: skip
    assert found["kept"][0] == about(found["plain"][0])
    assert found["kept"][1] > found["plain"][1]
    assert found["taught more"][0] == about(found["taught"][0])
    assert found["taught more"][1] > found["taught"][1]


@every_transformer
def test_class_images_count_by_their_weight(host: Host, base: str) -> None:
    folder_of(host, "class", (64, 64))
    weighed = {
        weight: ({"prior_weight": weight}, {"classes": "class"}) for weight in (1.0, 2.0, 4.0)
    }
    found = losses(host, base, {f"{weight}": run for weight, run in weighed.items()})
    once, twice, four = (found[name][0] for name in ("1.0", "2.0", "4.0"))
    assert twice - once > 0.1
    assert four - once == about(3 * (twice - once))


@every_transformer
def test_two_halves_of_a_mask_are_the_whole(host: Host, base: str) -> None:
    mask = half_white((64, 64))
    white = Image.new("L", mask.size, 255)
    masks = {"left": mask, "right": ImageChops.invert(mask), "all": white}
    for name, one in masks.items():
        folder = folder_of(host, f"mask {name}", mask.size)
        one.save(folder / "0.mask.png")
    found = losses(host, base, {
        "none": ({}, {"folder": "mask all", "masks": "none"}),
        **{name: ({}, {"folder": f"mask {name}", "masks": "file"}) for name in masks},
    })  # fmt: skip
    left, right, whole = (found[name][0] for name in ("left", "right", "all"))
    assert (left + right) / 2 == about(whole)
    assert found["all"] == [about(loss) for loss in found["none"]]
    assert left != about(right)


@every_transformer
def test_dropped_captions_are_empty_ones(host: Host, base: str) -> None:
    found = losses(host, base, {
        "plain": ({}, {}),
        "dropped": ({"caption_dropout": 1.0}, {}),
        "empty": ({}, {"prompt": "", "captions": "prompt"}),
    })  # fmt: skip
    assert found["dropped"] == [about(loss) for loss in found["empty"]]
    assert found["dropped"][0] != about(found["plain"][0])


def test_of_several_lines_one_is_trained(host: Host) -> None:
    first, second = "1girl, solo", "a photo of sks dog"
    captions = {
        "first": first, "second": second, "joined": f"{first} {second}",
        "lines": f"{first}\n{second}",
    }  # fmt: skip
    runs: dict[str, tuple[Settings, Settings]] = {}
    for name, caption in captions.items():
        folder = folder_of(host, f"of {name}", (64, 64))
        (folder / "0.txt").write_text(caption)
        runs[name] = {}, {"folder": folder.name}
    wildcard = {"enable_wildcard": True}
    runs["wildcard"] = wildcard, {"folder": "of lines"}
    runs["with class images"] = wildcard, {"folder": "of lines", "classes": "of lines"}
    found = losses(host, "chroma", runs)
    assert found["lines"] == [about(loss) for loss in found["joined"]]
    either = found["first"][0], found["second"][0]
    assert any(found["wildcard"][0] == about(loss) for loss in either)
    assert either[0] != about(either[1])
    assert len(found["with class images"]) == 2
