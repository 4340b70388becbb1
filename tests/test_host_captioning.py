"""Caption Images in a real ComfyUI: what models say, and which files are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.caption_models import blip
from tests.dataset_files import noise, save
from tests.graphs import Graph, Link, as_new
from tests.host import Host, HostError
from tests.test_host_captions import running
from trainers.data.beside.caption_models import DESCRIBE

__all__ = ["running"]  # a fixture

WIRED = "clip (wired in)"
LENGTH = 6


def dog(host: Host) -> Path:
    """A folder with three pictures, of which one has a caption; all else is deleted."""
    folder = host.base / "input" / "captioned"
    for path in folder.glob("*"):
        path.unlink()
    save(folder / "a.png")
    save(folder / "b.png", (64, 96), (0, 0, 255))
    save(folder / "c.png")
    (folder / "c.txt").write_text("mine\n")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blip(tmp_path_factory.mktemp("captioners") / "blip")


def offer(host: Host, model: Path) -> str:
    host.add_model("captioners/tests", model, "blip")
    return "captioners/tests/blip"


def asked(model: str, graph: Graph | None = None, **inputs: Any) -> tuple[Graph, list[Link]]:
    graph = Graph() if graph is None else graph
    values = {"instruction": "", "prefix": "", "max_length": LENGTH, "write": False,
              "overwrite": False, **inputs}  # fmt: skip
    return graph, graph.add(
        "PersonalizeCaptionImages", 3, folder="captioned", model=model, **values
    )


def made(entry: Mapping[str, Any]) -> dict[str, str]:
    """The new captions by picture."""
    (shown,) = (one for one in entry["outputs"].values() if "made" in one)
    found: dict[str, str] = json.loads(shown["made"][0])
    return found


def told(entry: Mapping[str, Any]) -> str:
    (shown,) = (one for one in entry["outputs"].values() if "made" in one)
    return str(shown["text"][0])


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*.txt"))}


def test_clip_says_what_the_hosts_own_node_says(running: Host) -> None:
    folder = dog(running)
    noise(64, 96).save(folder / "b.png")
    graph = Graph()
    (clip,) = graph.add("ProbeTalker")
    asked(WIRED, graph, clip=clip)
    theirs = []
    for name in ("a.png", "b.png"):
        (image,) = graph.add("LoadImage", image=f"captioned/{name}")
        (text,) = graph.add(
            "TextGenerate", clip=clip, prompt=DESCRIBE, image=image, max_length=LENGTH,
            sampling_mode="off", thinking=False, use_default_template=True,
        )  # fmt: skip
        theirs += graph.add("PreviewAny", source=text)
    entry = running.run(graph)
    said = ["".join(entry["outputs"][node]["text"]).split() for node, _ in theirs]
    ours = made(entry)
    assert [ours[name].split() for name in ("a.png", "b.png")] == said
    assert said[0] != said[1]
    assert texts(folder) == {"c.txt": "mine\n"}, "nothing is written unless asked"


def test_clip_that_cannot_is_refused(running: Host) -> None:
    dog(running)
    graph = Graph()
    _, clip, _ = graph.load()
    with pytest.raises(HostError, match="only reads: it cannot write text.\nWire in one that"):
        running.run(asked(WIRED, graph, clip=clip)[0])
    with pytest.raises(HostError, match="but input 'clip' is not; allowed: with a vision-lang"):
        running.run(asked(WIRED)[0])


def test_captions_are_written_when_asked_and_never_over_one(running: Host, model: Path) -> None:
    folder, name = dog(running), offer(running, model)
    shown = running.run(asked(name)[0])
    said = made(shown)
    assert list(said) == ["a.png", "b.png"]
    assert all(said.values())
    assert told(shown) == "captioned: 2 new captions, nothing written; 1 kept"
    assert texts(folder) == {"c.txt": "mine\n"}

    # Wired on, the dataset has them in the same run.
    graph, (captions, count, chosen) = asked(name, write=True, prefix="sks dog")
    graph.add("PersonalizeFolderDataset", folder=chosen, prompt="", resolution=64)
    views = [graph.add("PreviewAny", source=link)[0][0] for link in (captions, count)]
    written = running.run(graph)
    new = {name: f"sks dog, {text}" for name, text in said.items()}
    assert made(written) == new
    files = {"a.txt": f"{new['a.png']}\n", "b.txt": f"{new['b.png']}\n", "c.txt": "mine\n"}
    assert texts(folder) == files
    seen, number = (written["outputs"][node]["text"] for node in views)
    assert (seen, number) == ([*new.values(), "mine"], ["2"])
    (summary,) = (
        one["text"][0] for one in written["outputs"].values() if "from .txt" in str(one.get("text"))
    )
    assert "captions: all 3 from .txt files" in summary

    again = running.run(asked(name, write=True, prefix=as_new("other"))[0])
    assert (made(again), texts(folder)) == ({}, files)
    assert told(again) == "captioned: 0 new captions, nothing written; 3 kept"
    over = running.run(asked(name, write=True, overwrite=True, instruction="a photo")[0])
    assert all(text.startswith("a photo") for text in made(over).values())
    assert texts(folder) == {
        Path(name).stem + ".txt": f"{text}\n" for name, text in made(over).items()
    }
    assert not list(folder.glob("*.part"))


def test_what_cannot_be_written_is_told_before_the_model_is_read(host: Host) -> None:
    folder = dog(host)
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "theirs"}')
    with pytest.raises(HostError, match="1 of 3 images cannot get a .txt file that counts: metada"):
        host.run(asked(WIRED, write=True, overwrite=True)[0])
    (folder / "metadata.jsonl").unlink()
    (folder / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(HostError, match="Not UTF-8 text: a.txt"):
        host.run(asked(WIRED, write=True)[0])
    assert (folder / "a.txt").read_bytes() == b"\xff\xfe"


def test_pictures_that_cannot_be_read_do_not_keep_the_others(host: Host, model: Path) -> None:
    folder = dog(host)
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(HostError, match="1 of 3 images cannot be read: a.png.\n.*others are done"):
        host.run(asked(offer(host, model), write=True)[0])
    assert list(texts(folder)) == ["b.txt", "c.txt"]


def test_cancel_keeps_what_is_written(host: Host, model: Path) -> None:
    folder = dog(host)
    for number in range(20):
        save(folder / f"d{number:02}.png")
    name = offer(host, model)

    def listen(event: Any) -> None:
        if event.kind == "progress" and event.data["value"] >= 1:
            host.interrupt()

    with pytest.raises(HostError) as caught:
        host.follow(asked(name, write=True, instruction="a photo", max_length=200)[0], listen)
    assert caught.value.kind == "interrupted"
    written = set(texts(folder)) - {"c.txt"}
    assert 1 <= len(written) < 20
    rest = host.run(asked(name, write=True)[0])
    assert len(made(rest)) == 22 - len(written)
