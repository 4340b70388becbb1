"""When states are written: seldom enough to cost little, often enough to lose little."""

from __future__ import annotations

import json
import tracemalloc
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from trainers.errors import SaveError
from trainers.loop import Training
from trainers.runs import states
from trainers.runs.folder import RunFolder
from trainers.runs.kept.workflow import keep_workflow
from trainers.runs.states import LEAST_SECONDS, SHARE, StateSaver


class Clock:
    """Time that goes on when it is told to, and while states are written."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Folder(RunFolder):
    """Notes at which steps states are written, and takes its time for each."""

    def __init__(self, path: Path, clock: Clock, seconds: float) -> None:
        super().__init__(path, "0" * 64)
        vars(self).update(steps=[], clock=clock, seconds=seconds)

    def write_state(self, state: Any, metrics: Any, keep: int) -> None:
        vars(self)["clock"].now += vars(self)["seconds"]
        vars(self)["steps"].append(state["step"])


def written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds_a_step: float,
    seconds_a_state: float,
    steps: int = 200,
    **store: Any,
) -> tuple[list[int], float]:
    """The steps that were written, and the time of the whole run."""
    clock = Clock()
    monkeypatch.setattr(states, "time", clock)
    config = tiny.run_config(steps=steps, **store)
    training = Training(tiny.job(config))
    folder = Folder(tmp_path, clock, seconds_a_state)
    at_work = StateSaver(folder, config.store, training)
    for step in range(1, steps + 1):
        training.done = step
        clock.now += seconds_a_step
        at_work.after_step([])
    at_work.at_end([])
    return vars(folder)["steps"], clock.now


@pytest.mark.parametrize("seconds_a_state", [0.0, 0.1, 3.0, 60.0])
@pytest.mark.parametrize("seconds_a_step", [0.05, 1.0, 10.0])
def test_states_cost_at_most_a_hundredth_and_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds_a_step: float,
    seconds_a_state: float,
) -> None:
    steps, whole = written(tmp_path, monkeypatch, seconds_a_step, seconds_a_state)
    first = seconds_a_state  # the first one's cost is a guess, the others' are measured
    assert len(steps) * seconds_a_state <= 2 * SHARE * whole + first


def test_cheap_states_come_every_half_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, _ = written(tmp_path, monkeypatch, 1.0, 0.0)
    gaps = [b - a for a, b in zip(steps, steps[1:], strict=False)]
    assert set(gaps[:-1]) == {int(LEAST_SECONDS)}
    assert steps[-1] == 200


def test_costly_last_state_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, _ = written(tmp_path, monkeypatch, 1.0, 10.0)
    assert steps == [30]


def test_asked_for_steps_are_written_and_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, _ = written(tmp_path, monkeypatch, 1.0, 10.0, state_every=60)
    assert steps == [60, 120, 180, 200]


def test_none_are_written_where_none_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert written(tmp_path, monkeypatch, 10.0, 0.0, keep_states=0)[0] == []


def test_state_that_cannot_be_written_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: Any) -> None:
        raise SaveError("the disk is full")

    monkeypatch.setattr(RunFolder, "write_state", full)
    config = tiny.run_config(state_every=1)
    training = Training(tiny.job(config))
    at_work = StateSaver(RunFolder(tmp_path, "0" * 64), config.store, training)
    training.step()
    at_work.after_step([])
    assert "the training goes on" in caplog.text
    assert "the disk is full" in caplog.text


def dreambooth(**settings: Any) -> Training:
    """A DreamBooth with all that a state can have, one step done."""
    config = tiny.run_config("dreambooth", ema_decay=0.9, ema_on_cpu=True, **settings)
    dtype = torch.bfloat16 if settings.get("weights") == "bf16" else torch.float32
    training = Training(tiny.job(config, tiny.parts(dtype=dtype)))
    training.step()
    return training


def test_state_is_not_begun_where_the_disk_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    training = dreambooth()
    needed = states.state_bytes(training.state())
    # Weights, two numbers of AdamW's and the average for each, all in fp32; and counts of steps.
    weights = sum(parameter.numel() for parameter in training.parameters)
    assert 4 * 4 * weights <= needed < 4 * 4 * weights + 1e5
    folder = RunFolder(tmp_path, "0" * 64)
    at_work = StateSaver(folder, tiny.run_config().store, training)
    at_work._written_step = 0
    for free, steps in ((needed - 1, []), (needed, [1])):
        found = types.SimpleNamespace(free=free)
        monkeypatch.setattr(states.shutil, "disk_usage", lambda path, found=found: found)
        with caplog.at_level("INFO"):
            at_work.save([], ended=True)
        assert folder.state_steps == steps
        at_work._written_step = 0
    assert caplog.text.count(f"goes with them, {needed / 1e6:.1f} MB") == 2
    size = f"{needed / 1e6:.1f} MB"
    assert f"needs {size}, and the disk has {size} left" in caplog.text
    assert at_work.goes_on_from == 1


@pytest.mark.parametrize("settings", [{}, {"weights": "bf16", "precision": "auto"}])
def test_state_is_written_without_a_copy_of_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    training = dreambooth(**settings)
    at_work = StateSaver(RunFolder(tmp_path, "0" * 64), tiny.run_config().store, training)
    at_work._written_step = 0
    size = states.state_bytes(training.state())
    tracemalloc.start()  # sees all of Python's own bytes, through which a file's go
    try:
        with Made() as made:
            at_work.save([], ended=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made.num_bytes < size / 20
    assert peak < size / 2  # most of it is what any small state takes
    (written,) = (tmp_path / "state").iterdir()
    assert written.stat().st_size > size


class Made(TorchDispatchMode):
    """Counts the bytes of all tensors that come to be."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in given:
            self.num_bytes += made.numel() * made.element_size()
        return made


def test_state_of_another_run_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    RunFolder(tmp_path, "1" * 64).write_state({"step": 7}, [], keep=2)
    RunFolder(tmp_path, "2" * 64).write_state({"step": 3}, [], keep=2)
    found = RunFolder(tmp_path, "2" * 64).state(at_most=10)
    assert found == ({"step": 3}, [])
    assert "00000007.pt' is another run's" in caplog.text


def test_workflow_is_of_the_last_time_and_in_a_file_of_its_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "1" * 64)
    folder.describe({"method": "lora"}, status="done")
    before = folder.facts
    for title in ("one", "two"):
        keep_workflow(tmp_path, {"id": title, "nodes": []})
        assert json.loads((tmp_path / "workflow.json").read_text())["id"] == title
    stamp = (tmp_path / "workflow.json").stat().st_mtime_ns
    keep_workflow(tmp_path, {"id": "two", "nodes": []})
    assert (tmp_path / "workflow.json").stat().st_mtime_ns == stamp, "the same is not written again"
    assert folder.facts == before


def test_run_json_takes_what_it_lacks_and_keeps_what_it_has(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "1" * 64)
    folder.complete({"graph": 1})  # no run, nothing to complete
    assert not (tmp_path / "run.json").exists()
    folder.describe({"method": "lora"}, status="done")
    for graph in (1, 2):
        folder.complete({"graph": graph})
    told = json.loads((tmp_path / "run.json").read_text())
    assert (told["graph"], told["method"], told["status"]) == (1, "lora", "done")
