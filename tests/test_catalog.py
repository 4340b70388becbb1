"""Runs on disk: what a list and a page get of them."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest

from tests.run_folders import (
    detail_of,
    everything,
    make_run,
    row_of,
    rows,
    save_preview,
)
from trainers.errors import RunError
from trainers.runs.catalog import tidy
from trainers.runs.catalog.curve import (
    SPARKS,
    Growing,
    curve_of,
    read_curve,
    read_summary,
    summary_of,
)
from trainers.runs.catalog.detail import best
from trainers.runs.catalog.labels import write_label
from trainers.runs.catalog.listing import Catalog
from trainers.runs.catalog.rows import Live
from trainers.runs.catalog.settings import widget_values
from trainers.runs.pictures.plot import smooth
from trainers.runs.story import story
from trainers.settings.run import run_config


def test_row_says_what_the_run_was(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=600, states=[300, 600], previews=[200, 600], rank=3)
    row = row_of(tmp_path, run.name)
    losses = [one["loss"] for one in rows(600)]
    sizes = {path: path.stat().st_size for path in run.rglob("*") if path.is_file()}
    assert sum(row["bytes"].values()) == sum(sizes.values())
    assert row["bytes"]["states"] == sum(n for p, n in sizes.items() if p.suffix == ".pt")
    assert row["bytes"]["previews"] == sum(n for p, n in sizes.items() if p.suffix == ".png")
    assert len(row["loss"]) == SPARKS
    expected = [np.mean(losses[10 * i : 10 * i + 10]) for i in range(SPARKS)]
    assert np.abs(np.array(row["loss"]) - expected).max() < 0.02, "8 of 10 steps"
    facts = {
        "title": "dog", "renamed": False, "method": "lora", "model": "base.sft", "data": "dog",
        "architecture": "sd15", "architecture_title": "Stable Diffusion 1.5", "pictures": 2,
        "steps": 600, "planned_steps": 600, "began": 1.7e9, "seconds": 90, "state": "done",
        "last_loss": float(f"{losses[-1]:.5g}"), "note": "", "pinned": False, "problems": [],
        "graph": True,
    }  # fmt: skip
    assert {name: row[name] for name in facts} == facts
    last = run / "previews" / "step_00000600_0.png"
    assert row["preview"] == {"file": last.name, "changed": last.stat().st_mtime}


def test_run_of_an_earlier_version_has_its_times_from_its_result(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    told = json.loads((run / "run.json").read_text())
    without = {name: told[name] for name in told if name not in ("began", "seconds")}
    (run / "run.json").write_text(json.dumps(without))
    row = row_of(tmp_path, run.name)
    assert (row["began"], row["seconds"], row["problems"]) == (1.7e9, 90, [])


@pytest.mark.parametrize("steps", [1, 7, 59, 60, 61, 480])
def test_sparkline_has_the_means_of_stretches(tmp_path: Path, steps: int) -> None:
    run = make_run(tmp_path, steps=steps, validate_every=5)
    losses = [one["loss"] for one in rows(steps)]
    stretches = np.array_split(losses, min(steps, SPARKS))
    found = read_summary(run)
    assert sorted(map(len, stretches)) == sorted(
        steps * (i + 1) // len(stretches) - steps * i // len(stretches)
        for i in range(len(stretches))
    )
    assert np.mean(found.sparks) == pytest.approx(np.mean(losses), rel=0.2)
    exact = summary_of(read_curve(run))
    np.testing.assert_allclose(found.sparks, exact.sparks, rtol=1e-4)
    assert (found.steps, found.planned, found.last) == (exact.steps, exact.planned, exact.last)
    assert Growing(rows(steps)).sparkline() == exact.sparks


def test_detail_has_all_that_is_known(tmp_path: Path) -> None:
    run = make_run(tmp_path, states=[20, 40], previews=[10, 40], validate_every=5, rank=3)
    found = detail_of(tmp_path, run.name)
    assert found["curve"] == json.loads(json.dumps(story(run, rows(40, validate_every=5))))
    assert [one["step"] for one in found["states"]] == [20, 40]
    assert found["results"] == [
        {"step": 40, "file": "result-00000040.safetensors",
         "bytes": (run / "result-00000040.safetensors").stat().st_size}
    ]  # fmt: skip
    assert found["best"] == {"step": 20, "loss": 0.1, "of": "validation", "kept": 20}
    settings = {one["name"]: one for one in found["settings"]}
    assert (settings["rank"]["value"], settings["rank"]["default"]) == (3, 16)
    assert settings["optimizer"]["group"] == "optimizer_settings"
    listed = {one["file"]: one["bytes"] for one in found["files"]}
    assert listed == {name: len(content) for name, content in everything(run).items()}
    assert row_of(tmp_path, run.name).items() <= found.items()


def test_best_step_is_the_kept_one_with_the_lowest_smoothed_loss() -> None:
    curve = curve_of(rows(100))
    smoothed = smooth(np.array([loss for _, loss in curve.loss]))
    kept = [10, 40, 70]
    step = min(kept, key=lambda one: smoothed[one - 1])
    found = best(curve, [*kept, 400])
    assert found == {"step": step, "kept": step, "of": "loss",
                     "loss": pytest.approx(smoothed[step - 1], rel=1e-4)}  # fmt: skip
    assert best(curve, []) is best(curve_of([]), [10]) is None


@pytest.mark.parametrize("method", ["lora", "dreambooth", "textual_inversion"])
def test_settings_go_back_into_widgets(method: str) -> None:
    asked = {"steps": 77, "seed": 5, "learning_rate": 2e-4, "noise_offset": 0.03}
    config = run_config(method, asked)
    values = widget_values(method, json.loads(json.dumps(config.as_dict())))
    together = {name: value for place in values.values() for name, value in place.items()}
    assert run_config(method, together) == config
    assert values[method]["steps"] == 77
    assert values["loss_settings"]["noise_offset"] == 0.03
    edited = {**config.as_dict(), "training": {"steps": -1, "seed": [], "new": 3}}
    assert not {"steps", "seed", "new"} & widget_values(method, edited).get(method, {}).keys()


def test_training_is_shown_as_it_goes(tmp_path: Path) -> None:
    run = make_run(tmp_path, status="training", steps=100)
    metrics = rows(10, 100)
    live = Live(run.name, Growing(metrics), time.time() - 7)
    row = row_of(tmp_path, run.name, live)
    assert (row["state"], row["steps"], row["planned_steps"]) == ("training", 10, 100)
    assert row["seconds"] == pytest.approx(97, abs=2)
    metrics += rows(12, 100)[10:]
    row = row_of(tmp_path, run.name, live)
    assert (row["steps"], len(row["loss"])) == (12, 12)
    assert len(detail_of(tmp_path, run.name, live)["curve"]["loss"]) == 12
    assert row_of(tmp_path, run.name)["state"] == "unfinished"


def test_run_that_another_process_trains_is_at_work(tmp_path: Path) -> None:
    run = make_run(tmp_path, status="training")
    with filelock.FileLock(run / ".lock"):
        assert row_of(tmp_path, run.name)["state"] == "training"
        with pytest.raises(RunError, match="at work"):
            tidy.delete(tmp_path, run.name)
        freed, problems = tidy.free(tmp_path, [run.name], ["states"])
        assert (freed, "at work" in problems[0]) == (0, True)
    assert row_of(tmp_path, run.name)["state"] == "unfinished"


def test_list_follows_what_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.runs.catalog.listing.FRESH_SECONDS", 0.0)
    run, catalog = make_run(tmp_path), Catalog(tmp_path)
    past = time.time() - 60
    for path in [*run.rglob("*"), run]:
        os.utime(path, (past, past))

    def row() -> dict[str, Any]:
        found = json.loads(catalog.listing())["runs"]
        return dict(found[0]) if found else {}

    first = row()
    assert catalog.found(run.name) is catalog.found(run.name), "read once"
    save_preview(run / "previews" / "step_00000040_0.png", "a dog")
    assert row()["preview"]["file"] == "step_00000040_0.png"
    told = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**told, "status": "stopped"}))
    assert row()["state"] == "stopped"
    write_label(run, {"title": "Rex"})
    assert row()["title"] == "Rex"
    assert first["title"] == "dog"
    monkeypatch.setattr("trainers.runs.catalog.listing.FRESH_SECONDS", 60.0)
    before = catalog.listing()
    write_label(run, {"title": "Max"})
    assert catalog.listing() is before, "made once for all pages"
    assert b"Max" in catalog.listing(changes=1), "pages were told of something since"
    monkeypatch.setattr("trainers.runs.catalog.listing.FRESH_SECONDS", 0.0)
    shutil.rmtree(run)
    assert row() == {}
