"""How long a training will take, by the runs on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.run_folders import (
    GRAPH,
    make_run,
)
from trainers.runs.catalog.times import Rate, rate, rates_of_graphs, steps_of_graph


def _dated(folder: Path, at: float, **told: Any) -> Path:
    file = folder / "run.json"
    base = {"base_model": {"computes_in": "torch.float32"}}  # all that the time depends on
    file.write_text(json.dumps(json.loads(file.read_text()) | base | told))
    os.utime(file, (at, at))
    return folder


def test_time_is_that_of_the_newest_run_like_it(tmp_path: Path) -> None:
    old = _dated(make_run(tmp_path, "old", 40), 1e9, seconds=20.0)
    facts = json.loads((old / "run.json").read_text())
    assert rate(tmp_path, facts) == Rate(old.name, 0.5)
    new = _dated(make_run(tmp_path, "new", 60, learning_rate=3e-4), 2e9, seconds=90.0)
    _dated(make_run(tmp_path, "short", 19), 3e9)
    _dated(make_run(tmp_path, "begun elsewhere", 50), 3e9, resumed={"run": "x", "step": 9})
    _dated(make_run(tmp_path, "unlike", 40, batch_size=2), 3e9)
    _dated(make_run(tmp_path, "interrupted", 40, status="interrupted"), 3e9)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("[")
    assert rate(tmp_path, facts) == Rate(new.name, 1.5)
    (new / "run.json").unlink()
    _dated(old, 1e9, seconds=None)  # an earlier version's, which its result alone times
    assert rate(tmp_path, facts) == Rate(old.name, 90 / 40)
    assert rate(tmp_path, facts | {"method": "dreambooth"}) is None


def test_time_of_what_waits_is_found_by_its_graph(tmp_path: Path) -> None:
    run = _dated(make_run(tmp_path, "dog", 40), 1e9, seconds=20.0)

    def asked(folder: str = "cat", file: str = "sub/base.sft", **inputs: Any) -> Any:
        nodes = json.loads(json.dumps(GRAPH["nodes"]))
        nodes["3"]["inputs"]["folder"] = folder
        nodes["1"]["inputs"]["ckpt_name"] = file
        nodes["4"]["inputs"] |= {"steps": 70, **inputs}
        nodes["5"] = {"class_type": "PersonalizeRun", "inputs": {"epochs": 3}}
        return nodes, "4"

    trainings = [asked(), asked(file="other.sft"), asked(learning_rate=2e-3), asked(rank=64)]
    assert rates_of_graphs(tmp_path, trainings) == [
        Rate(run.name, 0.5), None, Rate(run.name, 0.5), None,
    ]  # fmt: skip
    assert [steps_of_graph(*one) for one in (asked(), asked(run_settings=["5", 0]))] == [70, None]
    assert steps_of_graph(*asked(steps=["5", 0])) is None
