"""A ComfyUI of its own: memory that comes back, and what survives when it is killed."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests import tiny
from tests.events import Event
from tests.graphs import Graph
from tests.host import Host, HostError
from tests.test_host_compare import add_lora, asking, kept, lora_tensors
from tests.test_host_runs import cancel_midway, folder_of
from tests.test_host_runs import training as lora
from tests.test_host_store import METHODS, STEPS, pictures, run_folders


def test_memory_comes_back_over_ten_runs(new_host: Host) -> None:
    host = new_host
    folder_of(host, "dog", (80, 72), (72, 80))
    folder_of(host, "broken", (64, 64))
    (host.base / "input" / "broken" / "bad.png").write_bytes(b"")
    plain = {"train_text_encoder": True}
    runs = [
        {"seed": 1, **plain},
        {"seed": 2, **plain},
        {"seed": 3, "precision": "bf16"},
        "cancel",
        {"seed": 4, "precision": "auto", "gradient_checkpointing": True, **plain},
        {"seed": 5, "variant": "dora"},
        "fail",
        "cancel",
        {"seed": 6, "targets": "all with convolutions"},
        {"seed": 7, **plain},
    ]
    memory = []
    for number, run in enumerate(runs):
        if run == "cancel":
            cancel_midway(host, lora(steps=500, seed=100 + number, **plain))
        elif run == "fail":
            with pytest.raises(HostError, match="bad.png"):
                host.run(lora("broken"))
        else:
            host.run(lora(**run))
        time.sleep(1)  # the host collects its garbage between prompts
        memory.append(host.rss_bytes())
    assert memory[9] <= 1.05 * memory[1], " ".join(f"{m / 1e6:.0f}" for m in memory)


def test_restarted_host_samples_nothing(new_host: Host, checkpoint: Path) -> None:
    host = new_host
    graph = asking(add_lora(host, lora_tensors(checkpoint, 27)))
    host.run(graph)
    first, steps = kept(host), []
    host.kill()
    host.start()

    def on_event(event: Event) -> None:
        if event.kind == "progress":
            steps.append(event.data["value"])

    host.follow(graph, on_event)
    assert kept(host) == first
    assert steps == []
    assert "Requested to load BaseModel" not in host.log()  # of the host that runs now


def trainings_of_all_methods(host: Host, **settings: Any) -> tuple[Graph, list[str]]:
    """A graph that trains by every method; the ids of the nodes that do."""
    graph = Graph()
    sockets = [*graph.load(), graph.dataset(pictures(host))]
    train = {"lora": graph.train, "dreambooth": graph.dreambooth, "invert": graph.invert}
    shared: dict[str, Any] = {"steps": STEPS, "state_every": 1, **settings}
    return graph, [train[m](*sockets, **shared, **own)[0][0] for m, own in METHODS.items()]


def first_steps(host: Host, graph: Graph, kills: dict[str, list[int]]) -> dict[str, int]:
    """Run a graph; the first step that each of its trainers reported.

    As soon as a trainer comes to the first of its steps in `kills`, that is crossed off and the
    host is killed and started again.
    """
    first: dict[str, int] = {}

    def see(event: Event) -> None:
        if event.kind == "progress" and event.data["node"] in kills:
            step, planned = event.data["value"], kills[event.data["node"]]
            first.setdefault(event.data["node"], step)
            if planned and step >= planned[0]:
                del planned[0]
                host.kill()
                raise EOFError

    try:
        host.follow(graph, see)
    except EOFError:
        host.start()
    return first


def test_runs_killed_six_times_end_as_if_nothing_had_happened(new_host: Host) -> None:
    host = new_host
    before = run_folders(host)
    graph, trainers = trainings_of_all_methods(host)
    # Each once early and once late; which of them comes first, the host chooses anew each time.
    chosen = random.Random("killed")
    kills = {one: [chosen.randrange(3, 6), chosen.randrange(8, STEPS)] for one in trainers}
    begun: dict[str, list[int]] = {one: [] for one in trainers}
    for _ in range(7):
        for one, step in first_steps(host, graph, kills).items():
            begun[one].append(step)
    assert not any(kills.values())
    for first, second, third in begun.values():
        assert (first, second > 1, third > 5) == (1, True, True), f"from states: {begun}"
    results = [run / f"result-{STEPS:08}.safetensors" for run in run_folders(host) - before]
    survived = [load_file(result) for result in results]
    whole = {"if_run_exists": "start anew", "state_every": STEPS}
    graph, trainers = trainings_of_all_methods(host, **whole)
    assert first_steps(host, graph, kills) == dict.fromkeys(trainers, 1)
    for result, expected in zip(results, survived, strict=True):
        tiny.assert_equal(expected, load_file(result))
        lines = (result.parent / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))
