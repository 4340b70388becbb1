"""A run that does not fit is told so before anything is encoded, with settings that do fit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from tests.events import Event
from tests.graphs import Graph
from tests.host import Host, HostError
from tests.test_host_lora import pictures
from tests.tiny_transformers import FLUX

PLAIN = {"weights_in": "device", "checkpointing": "none"}
BATCH = 3  # with which activations are far more than adapters
NEEDS = re.compile(r"needs ([\d.e-]+) of")
REMEDY = re.compile(r"With (\w+) '(\w+)' it needs ([\d.e-]+) GB")


@contextmanager
def free(host: Host, gigabytes: float) -> Iterator[None]:
    """As if the device had no more than that."""
    graph = Graph()
    graph.add("ProbeFree", free_bytes=round(gigabytes * 1e9))
    host.run(graph)
    try:
        yield
    finally:
        graph["1"]["inputs"]["free_bytes"] = 0
        host.run(graph)


def training(host: Host, **settings: Any) -> Graph:
    graph = Graph()
    dataset = graph.dataset(pictures(host), resolution=128)
    given = {"steps": 2, "batch_size": BATCH, **settings}
    graph.train(*graph.made(FLUX), dataset, **given)
    return graph


def listen(said: list[str], event: Event) -> None:
    """Note what a node's body shows."""
    if event.kind == "personalize.status":
        said.append(event.data["text"])


def refused(host: Host, **settings: Any) -> str:
    """What a training is told that must not begin."""
    said: list[str] = []
    with pytest.raises(HostError) as failed:
        host.follow(training(host, **settings), partial(listen, said))
    assert failed.value.kind.endswith("UnavailableError")
    assert "planning memory" in said
    assert not [text for text in said if text.startswith("encoding")]
    return str(failed.value)


def needed(text: str) -> float:
    found = NEEDS.search(text)
    assert found, text
    return float(found.group(1))


def test_a_run_that_cannot_fit_is_refused_with_a_setting_that_fits(host: Host) -> None:
    with free(host, 1e-6):
        text = refused(host, seed=401, **PLAIN)
    assert "No settings are known that fit" in text
    most = needed(text)
    with free(host, 0.95 * most):
        text = refused(host, seed=401, **PLAIN)
        assert needed(text) == most
        remedy = REMEDY.search(text)
        assert remedy, text
        name, value, less = remedy.groups()
        assert name == "checkpointing"
        assert float(less) <= 0.95 * most
        log_from = len(host.log())
        host.run(training(host, seed=401, **{**PLAIN, name: value}))
    assert f"needs {less} of" in host.log()[log_from:]
    with free(host, 1.01 * most):
        host.run(training(host, seed=402, **PLAIN))


def test_auto_checkpoints_where_that_fits(host: Host) -> None:
    with free(host, 1e-6):
        text = refused(host, seed=411, **PLAIN)
    with free(host, 0.95 * needed(text)):
        log_from = len(host.log())
        said: list[str] = []
        host.follow(training(host, seed=411), partial(listen, said))
        assert any(re.match(r"encoding .*\nneeds .* GB free", text) for text in said), said
        log = host.log()[log_from:]
        assert re.search(
            r"needs [\d.e-]+ of [\d.e-]+ GB free, with checkpointing '(half|all)'", log
        )
        (story,) = host.get("/personalize/trainings")["trainings"][-1:]
        assert story["text"].startswith("done:")
    told = max((host.base / "output" / "personalize").glob("*/run.json"), key=os.path.getmtime)
    plan = json.loads(told.read_text())["plan"]
    assert plan["chosen"]["weights_in"] == "device"
    assert plan["chosen"]["checkpointing"] in ("half", "all")
    kinds = plan["by_kind_bytes"]
    planned_bytes = sum(kinds.values()) - 2 * kinds["shared"]  # which is there already
    assert plan["needed_bytes"] == pytest.approx(planned_bytes * 1.05, abs=1)
    assert plan["needed_bytes"] <= plan["free_bytes"] == round(0.95 * needed(text) * 1e9)
    (plans,) = (host.base / "output" / "personalize").glob("plans.json")
    assert json.loads(plans.read_text())


def test_warned_or_without_a_plan_it_is_tried(host: Host) -> None:
    for memory_plan, seed in (("warn", 421), ("off", 422)):
        with free(host, 1e-6):
            log_from = len(host.log())
            host.run(training(host, seed=seed, memory_plan=memory_plan))
        log = host.log()[log_from:]
        assert ("It is tried." in log) == (memory_plan == "warn")
        assert ("needs" in log) == (memory_plan == "warn")
