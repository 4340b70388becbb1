"""The dataset nodes in a real ComfyUI, old and new."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.dataset_files import save
from tests.host import Host, HostError, Prompt

SETTINGS = {"prompt": "a photo of sks dog", "resolution": 128, "buckets": True,
            "max_aspect_ratio": 4.0, "upscale": False}  # fmt: skip
FOLDER_SETTINGS = {**SETTINGS, "captions": "auto", "masks": "none"}


@pytest.fixture(params=["host", "old_host"])
def running(request: pytest.FixtureRequest) -> Host:
    host: Host = request.getfixturevalue(request.param)
    return host


def folder_prompt(folder: str, **settings: Any) -> Prompt:
    inputs = {"folder": folder, **FOLDER_SETTINGS, **settings}
    return {"1": {"class_type": "PersonalizeFolderDataset", "inputs": inputs}}


def shown_text(entry: dict[str, Any], node: str = "1") -> str:
    return str(entry["outputs"][node]["text"][0])


def was_cached(entry: dict[str, Any]) -> bool:
    return any(
        "1" in data["nodes"] for kind, data in entry["status"]["messages"]
        if kind == "execution_cached"
    )  # fmt: skip


def test_folder_node_says_what_it_has(running: Host) -> None:
    folder = running.base / "input" / "people" / "anna"
    save(folder / "a.png")
    save(folder / "10_anna" / "b.png", (192, 64))
    (folder / "a.txt").write_text("a photo of anna, embedding:gone " + "dog " * 80)
    offered = running.object_info("PersonalizeFolderDataset")["input"]["required"]["folder"]
    assert {"people/anna", "people/anna/10_anna"} <= set(offered[1]["options"])
    entry = running.run(folder_prompt("people/anna"))
    assert shown_text(entry) == (
        "note: no such embedding, left out unless the clip learned it: embedding:gone\n"
        "note: 1 caption is longer than 75 CLIP tokens: read whole, in several windows; nothing is "
        "cut\n"
        "anna: 2 pictures at 128 px, 11 with repeats (10_anna); sizes: 128x128 (1), 192x64 (1); "
        "captions: 1 of 2 from .txt files, 1 from the prompt\n"
        "and 2 more notes, in ComfyUI's log"
    )
    assert running.images(entry) == [], "the page shows them: js/pictures/captions.js"
    assert "1 x 'a photo of sks dog'" in running.log()


def test_embedding_that_is_there_is_no_surprise(running: Host) -> None:
    folder = running.base / "input" / "embedded"
    save(folder / "a.png")
    (folder / "a.txt").write_text("sks, embedding:sub/there, embedding:too.pt")
    for name in ("sub/there.safetensors", "too.pt"):
        path = running.base / "models" / "embeddings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert "embedding" not in shown_text(running.run(folder_prompt("embedded")))


def test_folder_node_runs_again_for_a_new_file_only(running: Host) -> None:
    folder = running.base / "input" / "again"
    save(folder / "a.png")
    assert not was_cached(running.run(folder_prompt("again")))
    assert was_cached(running.run(folder_prompt("again")))
    (folder / "a.txt").write_text("a dog")
    entry = running.run(folder_prompt("again"))
    assert not was_cached(entry)
    assert "captions: all 1 from .txt files" in shown_text(entry)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../secret", "is not inside"),
        ("link", "is not inside"),
        ("secret/../..", "is not inside"),
        (".", "is not inside"),
        ("", "No folder is chosen"),
        ("gone", "does not exist"),
        ("bare", "has no pictures"),
    ],
)
def test_folder_node_refuses_before_running(running: Host, name: str, problem: str) -> None:
    save(running.base / "secret" / "a.png")
    inputs = running.base / "input"
    (inputs / "bare").mkdir(exist_ok=True)
    if not (inputs / "link").exists():
        (inputs / "link").symlink_to(running.base / "secret")
    with pytest.raises(HostError, match=problem) as error:
        running.run(folder_prompt(name))
    assert error.value.kind == "invalid prompt"


def test_folder_node_lists_unreadable_pictures(running: Host) -> None:
    folder = running.base / "input" / "broken"
    save(folder / "a.png")
    (folder / "b.png").write_bytes(b"")
    with pytest.raises(HostError, match=r"1 of 2 images cannot be read: b\.png") as error:
        running.run(folder_prompt("broken"))
    assert error.value.kind.endswith("DatasetError")


def test_image_node_takes_a_list_with_captions(running: Host) -> None:
    folder = running.base / "input" / "listed"
    save(folder / "a.png")
    save(folder / "b.png", (192, 128))
    (folder / "b.txt").write_text("a red wall")
    wires = {"images": ["1", 0], "captions": ["1", 1]}
    loader = {"class_type": "LoadImageTextDataSetFromFolder", "inputs": {"folder": "listed"}}
    ours = {"class_type": "PersonalizeImageDataset", "inputs": {**wires, **SETTINGS}}
    entry = running.run({"1": loader, "2": ours})
    assert shown_text(entry, "2").split("\n")[-2:] == [
        "batch: 2 pictures at 128 px; sizes: 128x128 (1), 128x64 (1)",
        "captions: 1 of 2 from the prompt, 1 from the captions input",
    ]
    (sheet,) = running.images(entry)
    with Image.open(sheet) as image:
        assert image.size == (14 + 2 * 222, 14 + 290)


def test_image_node_refuses_a_black_mask(running: Host) -> None:
    save(running.base / "input" / "opaque.png")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "opaque.png"}},
        "2": {
            "class_type": "PersonalizeImageDataset",
            "inputs": {"images": ["1", 0], "masks": ["1", 1], **SETTINGS},
        },
    }
    with pytest.raises(HostError, match="black all over: image 1"):
        running.run(prompt)
