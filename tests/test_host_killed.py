"""Runs that survive a killed host, whatever the method."""

from __future__ import annotations

import json
import random
from typing import Any

from safetensors.torch import load_file

from tests import tiny
from tests.events import Event
from tests.graphs import Graph
from tests.host import Host
from tests.test_host_store import METHODS, STEPS, pictures, run_folders


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
    results = [run / f"result-{STEPS:08}.safetensors" for run in run_folders(host)]
    survived = [load_file(result) for result in results]
    graph, trainers = trainings_of_all_methods(host, if_run_exists="start anew")
    assert first_steps(host, graph, kills) == dict.fromkeys(trainers, 1)
    for result, expected in zip(results, survived, strict=True):
        tiny.assert_equal(expected, load_file(result))
        lines = (result.parent / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))
