"""Runs that survive: a Cancel, other prompts between, two at once, Stop and keep."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from tests import tiny
from tests.conftest import HOST_ARGUMENTS, on_the_cpu
from tests.events import Event
from tests.graphs import BASES, Graph, Link, every_base
from tests.host import Host, HostError

STEPS = 12
COLOURS = itertools.count(100)
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"dropout": 0.2, "rank": 2},
    "dreambooth": {"ema_decay": 0.9},
    "invert": {"norm_control": True, "templates": "object"},
}


def pictures(host: Host, name: str = "store") -> str:
    folder = host.base / "input" / name
    folder.mkdir(exist_ok=True)
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 90, 160)).save(folder / f"{number}.png")
    return name


def training(
    host: Host, method: str = "lora", base: str = "sd15", **settings: Any
) -> tuple[Graph, list[Link]]:
    graph = Graph()
    sockets = [*graph.base(base), graph.dataset(pictures(host))]
    train = {"lora": graph.train, "dreambooth": graph.dreambooth, "invert": graph.invert}[method]
    return graph, train(*sockets, **{"steps": STEPS, **settings})


def run_folders(host: Host) -> set[Path]:
    return {path.parent for path in (host.base / "output" / "personalize").glob("*/run.json")}


def facts(run: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((run / "run.json").read_text())
    return stored


def follow(host: Host, graph: Graph, trainer: str) -> list[int]:
    """Run a graph; the steps that its node `trainer` reported."""
    steps: list[int] = []

    def see(event: Event) -> None:
        if event.kind == "progress" and event.data["node"] == trainer:
            steps.append(event.data["value"])

    host.follow(graph, see)
    return steps


# -- a cancelled run ----------------------------------------------------------


@every_base
def test_cancelled_run_goes_on_where_it_was(host: Host, base: str) -> None:
    before = run_folders(host)
    steps = 10 * STEPS if BASES[base] else STEPS  # small ones would have ended before the Cancel
    asked: dict[str, Any] = {"base": base, "seed": 50, "steps": steps}
    asked |= {"dropout": 0.2, "caption_dropout": 0.3}
    graph, sockets = training(host, **asked)

    said: list[str] = []

    def listen(event: Event) -> None:
        if event.kind == "personalize.status":
            said.append(event.data["text"])

    def see(event: Event) -> None:
        listen(event)
        if event.kind == "progress" and event.data["value"] >= 4:
            host.interrupt()

    with pytest.raises(HostError) as failed:
        host.follow(graph, see)
    assert failed.value.kind == "interrupted"
    (run,) = run_folders(host) - before
    assert facts(run)["status"] == "interrupted"
    (step,) = re.fullmatch(r"cancelled at step (\d+); run again goes on", said[-1]).groups()
    assert f"ended at step {step}; the state is written from which the run can go on" in host.log()
    host.follow(graph, listen)
    assert f"going on from step {step}" in said
    done = rf"done: {steps} steps in 0:\d\d, loss \d\.\d+, output/personalize/{run.name}"
    assert re.fullmatch(done, said[-1])
    metrics = (run / "metrics.jsonl").read_text().splitlines()
    assert int(step) >= 4
    assert len(metrics) == steps
    host.follow(training(host, **asked, keep_states=3)[0], listen)
    taken = f"trained before, {steps} steps: taken from disk, output/personalize/{run.name}"
    assert said[-1] == taken
    if on_the_cpu():
        went_on = load_file(run / f"result-{steps:08}.safetensors")
        host.run(training(host, **asked, if_run_exists="start anew")[0])
        tiny.assert_equal(went_on, load_file(run / f"result-{steps:08}.safetensors"))


# -- a run that is there ------------------------------------------------------


def test_result_is_there_after_another_prompt(host: Host) -> None:
    graph, sockets = training(host, seed=51)
    assert follow(host, graph, sockets[0][0])
    other = Graph()
    blank = other.add("EmptyImage", width=8, height=8, batch_size=1, color=51)
    other.add("SaveImage", images=blank[0], filename_prefix="between")
    host.run(other)
    # Another way to keep the run is another node to the host's own cache, and the same run to us.
    again, sockets = training(host, seed=51, keep_states=3)
    started = time.monotonic()
    assert follow(host, again, sockets[0][0]) == []
    assert time.monotonic() - started < 2


# -- a run that is there, and its base is not -----------------------------------


def forget(host: Host) -> None:
    """Run another graph, so that the host keeps nothing of the ones before."""
    other = Graph()
    blank = other.add("EmptyImage", width=8, height=8, batch_size=1, color=next(COLOURS))
    other.add("SaveImage", images=blank[0], filename_prefix="between")
    host.run(other)


def nodes_run(host: Host, graph: Graph) -> list[str]:
    """Run a graph; the kinds of its nodes that were not in the host's cache."""
    started: list[str] = []

    def see(event: Event) -> None:
        if event.kind == "executing" and event.data["node"]:
            started.append(graph[event.data["node"]]["class_type"])

    host.follow(graph, see)
    return started


@pytest.mark.parametrize("which", ["host", "old_host"])
@pytest.mark.parametrize(
    ("method", "saver", "settings", "made"),
    [
        ("lora", "PersonalizeSaveLora", {"format": "kohya fp32"}, 2),
        ("invert", "PersonalizeSaveEmbedding", {}, 1),
    ],
)
def test_base_is_not_loaded_for_a_result_that_is_there(
    which: str,
    method: str,
    saver: str,
    settings: dict[str, str],
    made: int,
    request: pytest.FixtureRequest,
) -> None:
    host: Host = request.getfixturevalue(which)
    loader, prefix = "CheckpointLoaderSimple", f"kept {method}"
    graph, sockets = training(host, method, seed=60)
    socket = "lora" if method == "lora" else "embedding"
    graph.add(saver, **{socket: sockets[made]}, filename_prefix=prefix, **settings)
    forget(host)
    assert loader in nodes_run(host, graph)
    (saved,) = (host.base / "output").rglob(f"{prefix}*")
    first = load_file(saved)
    saved.unlink()  # the same is not written twice
    forget(host)
    started = nodes_run(host, graph)
    assert loader not in started
    assert saver in started
    tiny.assert_equal(load_file(saved), first)
    # Asked for now: the node's inputs are the same, and it must not hand out what it has not got.
    model, clip = (sockets[0], sockets[1]) if method == "lora" else (["1", 0], sockets[0])
    graph.sample(model, clip, f"asked {method}")
    assert loader in nodes_run(host, graph)
    assert nodes_run(host, graph) == []
    assert list((host.base / "output").rglob(f"asked {method}*"))


def test_base_is_loaded_if_its_file_changed(host: Host, checkpoint_files: dict[str, Path]) -> None:
    before = run_folders(host)
    file = host.base / "models" / "checkpoints" / "changing.safetensors"
    shutil.copyfile(checkpoint_files["thin_sd15_fp16.safetensors"], file)
    graph = Graph()
    lora = graph.train(*graph.load(file.name), graph.dataset(pictures(host)), steps=STEPS, seed=61)[
        2
    ]
    graph.add("PersonalizeSaveLora", lora=lora, filename_prefix="changed", format="kohya fp32")
    host.run(graph)
    forget(host)
    file.write_bytes(file.read_bytes())
    assert "CheckpointLoaderSimple" in nodes_run(host, graph)
    assert len(run_folders(host) - before) == 1
    file.unlink()


def test_start_anew_leaves_no_old_result_where_the_new_one_cannot_be_kept(host: Host) -> None:
    before = run_folders(host)
    host.run(training(host, seed=153, steps=1)[0])
    (run,) = run_folders(host) - before
    assert list(run.glob("result-*"))
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()  # so that it can be read and written no more
    host.run(training(host, seed=153, steps=1, if_run_exists="start anew")[0])
    (run / "metrics.jsonl").rmdir()
    assert not list(run.glob("result-*"))


def test_more_steps_go_on_from_fewer(host: Host) -> None:
    before = run_folders(host)
    for steps in (4, 9):
        graph, sockets = training(host, seed=52, steps=steps)
        reported = follow(host, graph, sockets[0][0])
        assert reported[0] == (1 if steps == 4 else 5)
    (run,) = run_folders(host) - before
    whole, sockets = training(host, seed=52, steps=9, if_run_exists="start anew")
    continued = load_file(run / "result-00000009.safetensors")
    assert follow(host, whole, sockets[0][0])[0] == 1
    tiny.assert_equal(continued, load_file(run / "result-00000009.safetensors"))
    assert (run / "result-00000004.safetensors").exists()


@every_base
def test_stop_and_keep_hands_out_what_was_learned(host: Host, base: str) -> None:
    before = run_folders(host)
    graph, sockets = training(host, base=base, seed=53, steps=5000)
    prefix = f"stopped {base}"
    graph.add("PersonalizeSaveLora", lora=sockets[2], filename_prefix=prefix, format="kohya fp32")

    at_work: set[tuple[str, str]] = set()
    said: list[str] = []

    def see(event: Event) -> None:
        if event.kind == "personalize.status" and event.data["node"] == sockets[0][0]:
            said.append(event.data["text"])
        if event.kind == "progress" and event.data["value"] >= 5:
            known = host.get("/personalize/trainings")["trainings"]
            (training_now,) = (one for one in known if one["training"])
            asked = {name: training_now[name] for name in ("node", "run")}
            at_work.add((asked["node"], asked["run"]))
            with pytest.raises(OSError, match="409"):  # another one
                host.post("/personalize/stop", {**asked, "run": "lora-other"})
            host.post("/personalize/stop", asked)

    host.follow(graph, see)
    (run,) = run_folders(host) - before
    assert at_work == {(sockets[0][0], run.name)}
    assert not any(one["training"] for one in host.get("/personalize/trainings")["trainings"])
    ((asked, step),) = facts(run)["stopped"].items()
    assert said[-1].startswith(f"stopped at step {step} of 5000 and kept; run again hands it out")
    assert said[-1].endswith(f", output/personalize/{run.name}")
    assert (facts(run)["status"], asked) == ("stopped", "5000")
    assert 5 <= step < 5000
    saved = next((host.base / "output").glob(f"{prefix}_*.safetensors"))
    files = (load_file(saved), load_file(run / f"result-{step:08}.safetensors"))
    # Some kinds of files have no alpha; here it is the rank, which is the same.
    tiny.assert_equal(*({k: t for k, t in f.items() if not k.endswith("alpha")} for f in files))
    again, sockets = training(host, base=base, seed=53, steps=5000, keep_states=3)
    assert follow(host, again, sockets[0][0]) == []


def test_stop_without_a_training_is_told(host: Host) -> None:
    with pytest.raises(OSError, match="409"):
        host.post("/personalize/stop")


# -- several at once ----------------------------------------------------------


def test_two_equal_nodes_train_once(host: Host) -> None:
    before = run_folders(host)
    graph, sockets = training(host, seed=54)
    model, clip, vae = [["1", slot] for slot in range(3)]
    dataset = graph.dataset(pictures(host), resolution=64)
    twin = graph.train(model, clip, vae, dataset, steps=STEPS, seed=54, keep_states=3)
    steps = {node: 0 for node in (sockets[0][0], twin[0][0])}

    def see(event: Event) -> None:
        if event.kind == "progress" and event.data["node"] in steps:
            steps[event.data["node"]] += 1

    host.follow(graph, see)
    assert sorted(bool(count) for count in steps.values()) == [False, True]
    assert len(run_folders(host) - before) == 1


def test_two_hosts_on_one_folder_train_once(host: Host, checkpoint_files: dict[str, Path]) -> None:
    before = run_folders(host)
    shared = (*HOST_ARGUMENTS, "--output-directory", str(host.base / "output"))
    with Host(host.comfyui, checkpoints=checkpoint_files, args=shared) as second:
        reported: dict[str, list[int]] = {}

        def work(name: str, host: Host) -> None:
            graph, sockets = training(host, seed=55, steps=60)
            reported[name] = follow(host, graph, sockets[0][0])

        workers = [
            threading.Thread(target=work, args=pair)
            for pair in (("first", host), ("second", second))
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert sorted(bool(steps) for steps in reported.values()) == [False, True]
    assert len(run_folders(host) - before) == 1


# -- damage -------------------------------------------------------------------


def test_damaged_state_and_edited_run_json_cost_no_more_than_a_state(host: Host) -> None:
    before = run_folders(host)
    graph, sockets = training(host, seed=56, steps=6, state_every=2)
    host.run(graph)
    (run,) = run_folders(host) - before
    newest = run / "state" / "00000006.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    (run / "run.json").write_text("{ edited")
    longer, sockets = training(host, seed=56, steps=9, state_every=2)
    assert follow(host, longer, sockets[0][0])[0] == 5
    assert "is damaged" in host.log()
    assert facts(run)["status"] == "done"


def test_cancel_before_the_first_step_is_said(host: Host) -> None:
    graph, _ = training(host, seed=97)
    said: list[str] = []

    def see(event: Event) -> None:
        if event.kind == "personalize.status":
            said.append(event.data["text"])
            if said[-1].startswith("encoding"):
                host.interrupt()

    with pytest.raises(HostError, match="interrupted"):
        host.follow(graph, see)
    assert said[-1] == "cancelled before the first step"


# -- how long it takes --------------------------------------------------------


def test_time_is_said_before_the_first_step_and_of_what_waits(host: Host) -> None:
    def asked(**settings: Any) -> Graph:
        return training(host, rank=3, seed=901, **settings)[0]  # a rank of no other run here

    before = run_folders(host)
    host.run(asked(steps=20))
    (known,) = run_folders(host) - before
    assert host.get("/personalize/queue") == {"trainings": 0, "seconds": 0}
    told: list[str] = []
    waiting: list[str] = []
    seen: dict[str, Any] = {}

    def see(event: Event) -> None:
        if event.kind != "personalize.status" or not event.data["text"]:
            return
        told.append(event.data["text"])
        if not waiting:  # it runs, so others wait
            waiting.extend(host.queue(asked(steps=30, learning_rate=r)) for r in (1e-4, 2e-4))
            seen.update(host.get("/personalize/queue"))

    host.follow(asked(steps=25, learning_rate=5e-4), see)
    expected = re.compile(rf"\nabout 0:\d\d by run {known.name}(\n|$)")
    assert any(expected.search(text) for text in told), told
    assert not any(" by run " in text for text in told if text.startswith("step"))
    step_seconds = facts(known)["seconds"] / 20
    assert seen == {"trainings": 2, "seconds": pytest.approx(60 * step_seconds)}
    for prompt_id in waiting:
        host.wait(prompt_id)
