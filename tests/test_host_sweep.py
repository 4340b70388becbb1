"""A sweep in a real ComfyUI: killed in the middle, gone on with, and each run as the node's own."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from tests import tiny
from tests.events import Event
from tests.graphs import SMALL_LORA, Graph, Link
from tests.host import Host, HostError
from tests.test_host_lora import any_host
from tests.test_host_store import facts, pictures, run_folders

__all__ = ["any_host"]  # a fixture

STEPS = 3
SHARED = {**SMALL_LORA, "steps": STEPS}
GRID = {"learning_rate": (1e-3, 5e-4), "rank": (2, 4)}
UNKNOWN = "zxqvjkwy"
RESULT = f"result-{STEPS:08}.safetensors"


def small(graph: Graph, host: Host, lines: dict[str, Any], **more: Any) -> list[Link]:
    """The outputs of a sweep on a thin base with these lines of settings."""
    model, clip, vae = graph.load()
    written = {name: ", ".join(map(str, v)) if isinstance(v, tuple) else v
               for name, v in lines.items()}  # fmt: skip
    return graph.add(
        "PersonalizeSweep", 5, model=model, clip=clip, vae=vae,
        dataset=graph.dataset(pictures(host, "sweep")), method="lora",
        settings="\n".join(f"{name}: {value}" for name, value in written.items()), **more,
    )  # fmt: skip


def sweep(host: Host) -> tuple[Graph, Link]:
    """Four trainings; the node's first output."""
    graph = Graph()
    preview = graph.add(
        "PersonalizePreview", prompts="a photo of sks dog", every_steps=STEPS, width=64, height=64,
        steps=1, cfg=1.0, seed=1, sampler_name="euler", scheduler="normal",
    )[0]  # fmt: skip
    kept = graph.add("PersonalizeRun", state_every=1)[0]
    outputs = small(graph, host, {**SHARED, **GRID}, preview=preview, run_settings=kept)
    for name, output in (("sheet", outputs[3]), ("plot", outputs[4])):
        graph.add("SaveImage", images=output, filename_prefix=name)
    graph.add("ProbeOutputs", 1, best=outputs[0])
    return graph, outputs[0]


def told(host: Host, graph: Graph, kill_at: str = "nothing") -> tuple[list[str], dict[str, Any]]:
    """What the node's body said, and what the prompt came to; killed when that is said."""
    texts: list[str] = []
    entry: dict[str, Any] = {}

    def see(event: Event) -> None:
        if event.kind == "personalize.status":
            texts.append(event.data["text"])
            if re.search(kill_at, texts[-1]):
                host.kill()
                raise EOFError

    try:
        entry = host.follow(graph, see)
    except EOFError:
        host.start()
    return texts, entry


def test_a_killed_sweep_goes_on_and_its_runs_are_the_training_nodes_own(new_host: Host) -> None:
    host = new_host
    graph, (node, _) = sweep(host)
    texts, _ = told(host, graph, kill_at=r"run 3 of 4: .*\nstep [23]/3")
    assert texts[-1].startswith("run 3 of 4: learning_rate 0.0005, rank 2\nstep ")
    before = {run / RESULT: (run / RESULT).read_bytes() for run in run_folders(host)
              if (run / RESULT).exists()}  # fmt: skip
    assert len(before) == 2
    texts, entry = told(host, graph)
    said = "\n".join(texts)
    for number in (1, 2):
        assert re.search(rf"run {number} of 4: .*\ntrained before, 3 steps: taken from disk", said)
    assert re.search(r"run 3 of 4: .*\ngoing on from step [12]", said)
    assert re.search(r"run 4 of 4: .*\nstep 3/3", said)
    assert not re.search(r"run [12] of 4: .*\nstep ", said)
    assert all(path.read_bytes() == content for path, content in before.items())
    runs = {(f["training"]["learning_rate"], f["own"]["rank"]): run
            for run in run_folders(host) for f in [facts(run)]}  # fmt: skip
    assert set(runs) == {(rate, rank) for rate in GRID["learning_rate"] for rank in GRID["rank"]}
    (table,) = entry["outputs"][node]["text"]
    assert texts[-1].startswith("4 runs done\nbest by smoothed training loss: learning_rate")
    assert all(run.name in table for run in runs.values())
    assert texts[-1].rpartition(" ")[2] in table.partition("Best by")[2]
    for name in ("sheet", "plot"):
        (file,) = (host.base / "output").glob(f"{name}_*.png")
        assert min(Image.open(file).size) > 64
    _check_own_runs(host, runs)


def _check_own_runs(host: Host, runs: dict[tuple[float, int], Path]) -> None:
    """A training node with the settings of a run of the sweep takes it from disk, and makes it."""
    learned = {key: load_file(run / RESULT) for key, run in runs.items()}
    for (rate, rank), anew in (((5e-4, 4), False), ((5e-4, 2), True)):
        alone = Graph()
        store = {"if_run_exists": "start anew"} if anew else {"state_every": 1}
        own = {**SHARED, "learning_rate": rate, "rank": rank, **store}
        trainer = alone.train(*alone.load(), alone.dataset(pictures(host, "sweep")), **own)[0][0]
        recorded = facts(runs[rate, rank])["graph"]
        inputs = recorded["nodes"][recorded["node"]]
        assert inputs["class_type"] == "PersonalizeTrainLora"
        assert (inputs["inputs"]["rank"], inputs["inputs"]["seed"]) == (rank, SHARED["seed"])
        texts, _ = told(host, alone)
        assert ("taken from disk" in texts[-1]) is not anew, (trainer, texts)
        assert set(run_folders(host)) == set(runs.values())
        tiny.assert_equal(learned[rate, rank], load_file(runs[rate, rank] / RESULT))


# Four runs: one has an initializer that no vocabulary has, as is seen when it trains, and the base
# of one may not be quantized, as is seen before.
FAILING = {
    "method": ("lora", "textual_inversion", "dreambooth"), "steps": 2, "seed": 21, "rank": 2,
    "initializer": ("dog", UNKNOWN), "vectors": 1, "templates": "object", "precision": "fp32",
    "learning_rate": 1e-3,
}  # fmt: skip


def rows_of(table: str) -> list[list[str]]:
    lines = table.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_failed_runs_are_marked_and_the_best_of_the_others_loads(any_host: Host) -> None:
    host, graph = any_host, Graph()
    memory = graph.add("PersonalizeMemory", quantize_base="fp8")[0]
    best, _, table, *_ = small(graph, host, FAILING, memory_settings=memory)
    loaded = graph.add("PersonalizeLoadRun", 6, run=best, step="last")
    (shown, _) = graph.add("ProbeOutputs", 1, run=loaded[5])[0]
    texts, entry = told(host, graph)
    (text,) = entry["outputs"][best[0]]["text"]
    rows = rows_of(text)
    assert [row[1:4] for row in rows] == [
        ["lora", "", "2"], ["textual_inversion", "dog", "2"], ["textual_inversion", UNKNOWN, ""],
        ["dreambooth", "", ""],
    ]  # fmt: skip
    assert [row[-1] for row in rows[2:]] == ["failed"] * 2
    assert re.search(r"^3 failed: .*initializer", text, re.M)
    assert re.search(r"^4 failed: .*quantize_base is 'fp8', but DreamBooth", text, re.M)
    assert texts[-1].startswith("2 of 4 runs done, 2 failed: the table says why")
    named = text.partition("Best by smoothed training loss: ")[2].split(".")[0]
    assert named in [row[-1] for row in rows[:2]]
    assert json.loads(entry["outputs"][shown]["found"][0])["run"].endswith(named)

    again = "\n".join(told(host, graph)[0])  # unchanged, as after what failed was mended outside
    assert re.search(r"run 1 of 4: .*\ntrained before, 2 steps", again)
    assert re.search(r"run 3 of 4: .*\npreparing the model", again)

    node = graph[best[0]]["inputs"]
    node["settings"] = "method: dreambooth\nseed: 22, 23"
    with pytest.raises(HostError, match="quantize_base is 'fp8', but DreamBooth trains"):
        host.run(graph)


def test_a_run_that_its_pictures_refuse_is_marked_and_the_other_trains(host: Host) -> None:
    graph = Graph()
    node = small(graph, host, {**SHARED, "rank": 2, "seed": 51, "held_out": (0, 0.9)})[0][0]
    (text,) = told(host, graph)[1]["outputs"][node]["text"]
    assert [row[-1] == "failed" for row in rows_of(text)] == [False, True]
    assert re.search(r"^2 failed: held_out 0.9 of 3 pictures leaves none to train", text, re.M)


LONGER = 20  # steps, from which a run says how long those take


def test_cancelled_sweep_goes_on_and_a_run_can_be_stopped_early(host: Host) -> None:
    def asked(**lines: Any) -> Graph:
        graph = Graph()
        small(graph, host, {**SHARED, "rank": 3, "steps": LONGER, **lines})
        return graph

    texts: list[str] = []
    waiting: dict[str, Any] = {}

    def cancel(event: Event) -> None:
        if event.kind == "personalize.status" and re.match(r"run 2 .*\nstep ", event.data["text"]):
            host.interrupt()

    def stop_and_look(event: Event) -> None:
        if event.kind != "personalize.status":
            return
        texts.append(event.data["text"])
        if re.match(r"run 2 .*\nstep ", texts[-1]):
            with contextlib.suppress(OSError):  # its next step has ended it
                asking = {name: event.data[name] for name in ("node", "run")}
                host.post("/personalize/stop", asking)
        if re.match(r"run 3 .*\nstep ", texts[-1]) and not waiting:
            prompt_id = host.queue(asked(learning_rate=(1e-4, 2e-4), seed=41))
            waiting.update(host.get("/personalize/queue"))
            host.post("/queue", {"delete": [prompt_id]})

    before, graph = run_folders(host), asked(seed=(41, 42, 43))
    with pytest.raises(HostError, match="interrupted"):
        host.follow(graph, cancel)
    first, second = sorted(run_folders(host) - before, key=lambda run: facts(run)["status"])
    assert [facts(run)["status"] for run in (first, second)] == ["done", "interrupted"]
    entry = host.follow(graph, stop_and_look)
    said = "\n".join(texts)
    assert re.search(rf"run 1 of 3: .*\ntrained before, {LONGER} steps", said)
    assert re.search(r"run 2 of 3: .*\ngoing on from step ", said)
    assert re.search(r"run 2 of 3: .*\nstopped at step \d+ of 20 and kept", said)
    assert re.search(r"run 3 of 3: .*\nstep 20/20", said)
    assert texts[-1].startswith("3 runs done\nbest by")
    node = next(one for one in graph if graph[one]["class_type"] == "PersonalizeSweep")
    (text,) = entry["outputs"][node]["text"]
    rows = rows_of(text)
    steps = [int(row[2]) for row in rows]
    assert steps[0] == steps[2] == LONGER > steps[1]
    assert [row[-1] for row in rows[:2]] == [first.name, second.name]
    step_seconds = facts(first)["seconds"] / LONGER
    assert waiting == {"trainings": 2, "seconds": pytest.approx(2 * LONGER * step_seconds)}


def test_a_grid_that_is_not_allowed_is_refused_when_queued(host: Host) -> None:
    graph, _ = sweep(host)
    node = next(n for n in graph.values() if n["class_type"] == "PersonalizeSweep")
    node["inputs"]["settings"] = "rank: 0, 4\nlerning_rate: 1"
    with pytest.raises(HostError, match="rank is 0; allowed: 1 to 1024") as error:
        host.run(graph)
    assert "'lerning_rate' is no setting" in str(error.value.details)
