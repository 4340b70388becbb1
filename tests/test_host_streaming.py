"""Weights in RAM in a real ComfyUI: the same result, previews, Cancel, and nothing is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests import tiny
from tests.conftest import on_a_cpu
from tests.events import Event
from tests.graphs import Graph
from tests.host import Host, HostError
from tests.test_host_models import found
from tests.test_host_previews import with_previews
from tests.test_host_store import STEPS, run_folders, training

IN_RAM = {"weights_in": "RAM", "activations_in": "RAM"}
ANEW = {"if_run_exists": "start anew", "checkpointing": "all"}


def kept(run: Path, steps: int) -> tuple[Any, list[bytes]]:
    """What a run learned and its previews, without what their files say of a time."""
    previews = [path.read_bytes() for path in sorted((run / "previews").glob("*.png"))]
    return load_file(run / f"result-{steps:08}.safetensors"), previews


def alive(host: Host) -> dict[str, int]:
    graph = Graph()
    graph.add("ProbeAlive")
    return found(host.run(graph))


@on_a_cpu
@pytest.mark.parametrize(
    ("base", "method", "settings"),
    [
        ("sd15", "lora", {"train_text_encoder": True}),
        ("sd15", "invert", {}),
        ("qwen-image", "lora", {"variant": "dora"}),
    ],
)
def test_the_same_is_learned_and_previewed(
    host: Host, base: str, method: str, settings: dict[str, Any]
) -> None:
    before, same = run_folders(host), {"seed": 80, "steps": 3, **settings}
    graph, sockets = with_previews(host, method, base, **same, **IN_RAM)
    host.run(graph)
    (run,) = run_folders(host) - before
    ours = kept(run, 3)
    assert len(ours[1]) > 1
    graph, _ = with_previews(host, method, base, **same, **ANEW)
    host.run(graph)
    assert run_folders(host) == before | {run}  # weights in RAM make no other run
    expected = kept(run, 3)
    tiny.assert_equal(ours[0], expected[0])
    assert ours[1] == expected[1]


@on_a_cpu
def test_a_cancelled_run_goes_on_and_leaves_nothing(host: Host) -> None:
    before, same = run_folders(host), {"seed": 81}
    graph, said = training(host, **same, **IN_RAM)[0], []

    def see(event: Event) -> None:
        if event.kind == "personalize.status":
            said.append(event.data["text"])
        if event.kind == "progress" and event.data["value"] >= 4:  # of more than pictures
            host.interrupt()

    with pytest.raises(HostError):
        host.follow(graph, see)
    assert said[-1].endswith("run again goes on")
    assert alive(host) == {"buffers": 0}
    host.run(graph)
    assert alive(host) == {"buffers": 0}
    (run,) = run_folders(host) - before
    ours = kept(run, STEPS)[0]
    host.run(training(host, **same, **ANEW)[0])
    tiny.assert_equal(ours, kept(run, STEPS)[0])
