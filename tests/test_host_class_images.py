"""Class images in a real ComfyUI: only what is missing is made, and nothing mixes."""

from __future__ import annotations

import io
import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.conftest import _host
from tests.graphs import BASES, Graph
from tests.host import Host, HostError
from tests.test_host_lora import PROMPT, any_host, difference, latents, pictures

__all__ = ["any_host"]  # a fixture

SMALL = {
    "prompt": "a photo of a dog", "negative_prompt": "", "count": 20, "width": 64, "height": 64,
    "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "seed": 0,
    "batch_size": 1,
}  # fmt: skip


def asking(
    checkpoint: str = "thin_sd15.safetensors",
    lora: bool = False,
    base: str = "sd15",
    **settings: Any,
) -> Graph:
    graph = Graph()
    model, clip, vae = graph.load(checkpoint) if base == "sd15" else graph.base(base)
    if lora:
        model, clip = graph.train(model, clip, vae, graph.dataset("dog"))[:2]
    sockets = {"model": model, "clip": clip, "vae": vae}
    graph.add("PersonalizeClassImages", **sockets, **{**SMALL, **settings})
    return graph


def parent(host: Host) -> Path:
    return host.base / "output" / "personalize" / "class_images"


def folders(host: Host) -> set[Path]:
    return set(parent(host).glob("*")) if parent(host).exists() else set()


def made(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Each picture's time and bytes."""
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.glob("*.png")}


def run(host: Host, **settings: Any) -> Path:
    """The new folder that asking makes."""
    before = folders(host)
    host.run(asking(**settings))
    (folder,) = folders(host) - before
    return folder


def test_cancel_keeps_what_is_done_and_asking_again_makes_the_rest(any_host: Host) -> None:
    host = any_host
    pictures(host)
    before = folders(host)

    def on_event(event: Any) -> None:
        if event.kind == "progress" and event.data["value"] >= 7 * SMALL["steps"]:
            host.interrupt()

    with pytest.raises(HostError) as failed:
        host.follow(asking(prompt="a photo of a cat"), on_event)
    assert failed.value.kind == "interrupted"
    (folder,) = folders(host) - before
    first = made(folder)
    assert 6 <= len(first) < 20
    assert not list(folder.glob("*.part"))

    host.run(asking(prompt="a photo of a cat"))
    second = made(folder)
    assert folders(host) - before == {folder}
    assert sorted(second) == [f"{seed:08}.png" for seed in range(20)]
    assert {name: second[name] for name in first} == first  # 20 - len(first) are new, no more
    host.run(asking(prompt="a photo of a cat", count=12, seed=4))
    assert made(folder) == second


def test_seven_of_twenty_leave_exactly_thirteen(host: Host) -> None:
    folder = run(host, prompt="a photo of a horse", count=7)
    seven = made(folder)
    assert len(seven) == 7
    host.run(asking(prompt="a photo of a horse", count=20))
    after = made(folder)
    assert len(after) == 20
    assert {name: after[name] for name in seven} == seven


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "a photo of a bird"},
        {"negative_prompt": "blurry"},
        {"checkpoint": "thin_sd15_fp16.safetensors"},
        {"lora": True},
        {"width": 128},
        {"steps": 3},
        {"cfg": 4.0},
        {"sampler_name": "heun"},
        {"scheduler": "karras"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_other_pictures_are_never_reused(host: Host, changed: dict[str, Any]) -> None:
    pictures(host)
    host.run(asking(count=1))
    folder = run(host, count=1, **changed)
    assert len(made(folder)) == 1
    key = json.loads((folder / "key.json").read_text())
    for name, value in changed.items():
        if name in key:
            assert key[name] == value


def test_same_lora_finds_its_pictures_again(host: Host) -> None:
    pictures(host)
    host.run(asking(count=2, lora=True))
    before = folders(host)
    host.free()  # the graph is run anew, with another copy of the same weights
    host.run(asking(count=2, lora=True))
    assert folders(host) == before


def test_picture_depends_on_its_seed_alone(host: Host) -> None:
    one = run(host, prompt="a house", count=4, batch_size=1)
    alone = [p.read_bytes() for p in sorted(one.glob("*.png"))]
    for file in one.glob("*.png"):
        file.unlink()
    host.run(asking(prompt="a house", count=4, batch_size=3))
    together = [Image.open(p) for p in sorted(one.glob("*.png"))]
    assert len(together) == len(set(alone)) == 4
    for data, picture in zip(alone, together, strict=True):
        was = torch.tensor(list(Image.open(io.BytesIO(data)).tobytes())).int()
        now = torch.tensor(list(picture.tobytes())).int()
        assert (was - now).abs().max() <= 2  # rounding differs with the batch


def test_two_hosts_that_ask_at_once_leave_whole_pictures(
    host: Host, checkpoint_files: dict[str, Path]
) -> None:
    settings = {"prompt": "a photo of a fish", "count": 12}
    with _host("PERSONALIZE_COMFYUI", checkpoint_files) as second:
        shared = host.base / "output" / "personalize" / "class_images"
        shared.mkdir(parents=True, exist_ok=True)
        (second.base / "output" / "personalize").mkdir()
        (second.base / "output" / "personalize" / "class_images").symlink_to(shared)
        before = folders(host)
        other = threading.Thread(target=second.run, args=(asking(**settings),))
        other.start()
        host.run(asking(**settings))
        other.join()
    (folder,) = folders(host) - before
    assert sorted(p.name for p in folder.iterdir()) == [
        *(f"{seed:08}.png" for seed in range(12)),
        "key.json",
    ]
    for file in folder.glob("*.png"):
        with Image.open(file) as picture:
            picture.load()
            assert picture.size == (64, 64)


@pytest.mark.parametrize(
    ("place", "base"), [*(("host", base) for base in BASES), ("old_host", "sd15")]
)
def test_class_images_train(request: pytest.FixtureRequest, place: str, base: str) -> None:
    host: Host = request.getfixturevalue(place)
    graph = asking(base=base, count=3)
    class_dataset = [str(len(graph)), 0]
    graph_sockets = [["1", 0], ["1", 1], ["1", 2]]
    dataset = graph.dataset(pictures(host))
    trained = graph.dreambooth(*graph_sockets, dataset, class_dataset=class_dataset)
    alone = graph.dreambooth(*graph_sockets, dataset)
    graph.sample(trained[0], trained[1], "with", PROMPT)
    graph.sample(alone[0], alone[1], "without", PROMPT)
    host.run(graph)
    assert difference(latents(host, "with"), latents(host, "without")) > 1e-3


def test_count_of_zero_is_refused(host: Host) -> None:
    before = folders(host)
    with pytest.raises(HostError, match="count"):
        host.run(asking(count=0))
    assert folders(host) == before


def test_full_disk_midway_is_named_and_keeps_whole_pictures(host: Host) -> None:
    folder = run(host, prompt="a photo of a tree", count=1)
    size = next(folder.glob("*.png")).stat().st_size
    mount = ["mount", "-t", "tmpfs", "-o", f"size={5 * (size // 4096 + 1) * 4096}", "tmpfs"]
    if subprocess.run([*mount, str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        with pytest.raises(HostError, match="the disk is full"):
            host.run(asking(prompt="a photo of a tree"))
        assert 1 <= len(made(folder)) < 20
        for file in folder.glob("*.png"):
            with Image.open(file) as picture:
                picture.load()
        assert not list(folder.glob("*.part"))
    finally:
        subprocess.run(["umount", str(folder)], check=True)
