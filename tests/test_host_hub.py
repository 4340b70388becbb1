"""Push and Fetch in a real ComfyUI, against a stand-in of the Hub."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from huggingface_hub import ModelCard

from tests.conftest import CHECKPOINTS, HOST_ARGUMENTS, _checkout, model_file
from tests.graphs import Graph, Link
from tests.host import Host, HostError
from tests.hub import OWNER, TOKEN, StandIn, stand_in
from tests.test_host_lora import pictures

BASE, PICTURES = "someone/thin-base", "someone/dog-pictures"
PROMPT = "a photo of sks dog"


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with stand_in() as running:
        yield running


@pytest.fixture(scope="module")
def online(server: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A ComfyUI of somebody who is logged in to the stand-in."""
    told = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    told["HF_HOME"] = str(tmp_path_factory.mktemp("huggingface"))
    checkout = _checkout("PERSONALIZE_COMFYUI_OLD")
    with Host(checkout, args=HOST_ARGUMENTS, environment=told) as running:
        yield running


def fetched(graph: Graph, into: str, repo_id: str, revision: str, files: str = "") -> Link:
    return graph.add(
        "PersonalizeFetchFromHub", into=into, repo_id=repo_id, revision=revision, files=files
    )[0]


def pushing(path: Any, **inputs: Any) -> Graph:
    graph = Graph()
    graph.add("PersonalizePushToHub", 2, path=path, repo_id="dog-lora", private=True, **inputs)
    return graph


def dataset_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.host
def test_a_graph_fetches_trains_and_pushes(online: Host, server: StandIn) -> None:
    pictures(online)
    name = "thin_sd15_fp16.safetensors"
    base = server.add(
        "models", BASE, {name: model_file(*CHECKPOINTS[name]).read_bytes(), "a.ckpt": b""},
        card={"license": "openrail"},
    )  # fmt: skip
    data = server.add("datasets", PICTURES, dataset_files(online.base / "input" / "dog"))
    graph = Graph()
    model, clip, vae = graph.load(fetched(graph, "checkpoints", BASE, base))
    dataset = graph.dataset(fetched(graph, "input (data set)", PICTURES, data), PROMPT)
    preview = graph.add(
        "PersonalizePreview", prompts="a sks dog\nmy <b>dog</b>", every_steps=2, width=64,
        height=64, steps=1, cfg=1.0, sampler_name="euler", scheduler="normal", seed=1,
    )[0]  # fmt: skip
    _, _, lora, _, run = graph.train(model, clip, vae, dataset, steps=2, preview=preview)
    path = graph.add(
        "PersonalizeSaveLora", lora=lora, filename_prefix="loras/dog", format="kohya fp16"
    )[0]
    graph.add(
        "PersonalizePushToHub", 2, path=path, repo_id="dog-lora", private=True, base_model=BASE,
        run=run,
    )  # fmt: skip
    lines: list[str] = []
    entry = online.follow(graph, lambda event: lines.append(str(event.data)))

    repo = server.models[f"{OWNER}/dog-lora"]
    assert repo.private
    file = "dog_00001_.safetensors"
    assert set(repo.files) == {
        file, "README.md", "images/preview_1.png", "images/preview_2.png"
    }  # fmt: skip
    assert repo.files[file] == (online.base / "output" / "loras" / file).read_bytes()
    card = ModelCard(repo.files["README.md"].decode())
    assert (card.data.base_model, card.data.license) == (BASE, "openrail")
    assert card.data.instance_prompt == PROMPT
    assert [one["text"] for one in card.data.widget] == ["a sks dog", "my <b>dog</b>"]
    assert "- steps: `2`" in card.text
    url = f"{server.url}/{OWNER}/dog-lora"
    assert [url] in [shown.get("text") for shown in entry["outputs"].values()]

    folder = online.base / "models" / "checkpoints" / f"someone--thin-base-{base[:8]}"
    assert {p.name for p in folder.iterdir()} == {name, ".hub.json"}
    listed = online.object_info("CheckpointLoaderSimple")["input"]["required"]["ckpt_name"]
    assert f"{folder.name}/{name}" in str(listed)
    assert any(f"of {len(model_bytes(server)) / 1e6:.1f} MB" in plain(line) for line in lines)
    check_no_token(online)


def model_bytes(server: StandIn) -> bytes:
    return server.models[BASE].files["thin_sd15_fp16.safetensors"]


def plain(line: str) -> str:
    """A status line without its escapes."""
    return line.replace("&#46;", ".")


def check_no_token(host: Host) -> None:
    """Neither the log, nor any file that the host has written."""
    assert TOKEN not in host.log()
    written = [p for p in host.base.rglob("*") if p.is_file() and not p.is_symlink()]
    assert [p for p in written if TOKEN.encode() in p.read_bytes()] == []
    assert "signed=secret" not in host.log()


@pytest.mark.host
def test_refusals_reach_the_user(online: Host, server: StandIn) -> None:
    commit = server.add("models", "someone/lora", {"a.safetensors": bytes(3 * 10**6)})
    outside = online.base / "outside.safetensors"
    safetensors.torch.save_file({}, outside)
    (online.base / "output" / "link.safetensors").symlink_to(outside)

    def refused(graph: Graph) -> str:
        with pytest.raises(HostError) as failed:
            online.run(graph)
        assert "trainers.hub" not in failed.value.details["exception_type"]
        return failed.value.summary

    def fetch(revision: str, repo_id: str = "someone/lora") -> Graph:
        graph = Graph()
        fetched(graph, "loras", repo_id, revision)
        return graph

    assert f"'main' is now {commit}" in refused(fetch("main"))
    assert "'someone/other' is not on the Hub (404)" in refused(fetch(commit, "someone/other"))
    server.trouble.other_bytes = True
    assert "another hash" in refused(fetch(commit))
    server.trouble.other_bytes = False
    for path in ("link.safetensors", str(outside), "../outside.safetensors", ""):
        assert "allowed: a file in ComfyUI's output folder" in refused(pushing(path))
    server.can_write = False
    files = [p.name for p in (online.base / "output" / "loras").glob("*.safetensors")]
    assert "does not take the token (403)" in refused(pushing(f"loras/{files[0]}", captions=False))
    server.can_write = True
    check_no_token(online)


@pytest.mark.host
def test_cancel_leaves_a_part_that_is_gone_on_from(online: Host, server: StandIn) -> None:
    content = bytes(range(256)) * 20000
    commit = server.add("models", "someone/large", {"a.safetensors": content})
    server.trouble.downloads = [10**9, *[1000] * 9]
    graph = Graph()
    fetched(graph, "loras", "someone/large", commit)
    prompt = online.queue(graph)
    part = online.base / "models" / "loras" / f"someone--large-{commit[:8]}" / "a.safetensors.part"
    while not (part.is_file() and part.stat().st_size):
        time.sleep(0.05)
    time.sleep(0.5)  # it waits to try again
    began = time.monotonic()
    online.interrupt()
    with pytest.raises(HostError, match="interrupted"):
        online.wait(prompt)
    assert time.monotonic() - began < 1.5
    assert part.read_bytes() == content[: 2**20]
    server.trouble.downloads = []
    online.run(graph)
    assert part.with_suffix("").read_bytes() == content
    assert not part.exists()


def test_off_line_is_said(host: Host) -> None:
    graph = Graph()
    fetched(graph, "loras", "someone/lora", "0" * 40)
    with pytest.raises(HostError, match="ComfyUI is off-line: HF_HUB_OFFLINE") as failed:
        host.run(graph)
    assert failed.value.node == "PersonalizeFetchFromHub"
