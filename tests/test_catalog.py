"""Runs on disk: what a list and a page get of them, and of folders that anything was done to."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest

from tests.packed import module
from tests.run_folders import GRAPH, make_run, rows, save_preview
from trainers.errors import RunError, SaveError, SettingsError
from trainers.runs.catalog import listing, names, reading, tidy
from trainers.runs.catalog import rows as catalog_rows
from trainers.runs.catalog.curve import (
    SPARKS,
    Growing,
    curve_of,
    read_curve,
    read_summary,
    summary_of,
)
from trainers.runs.catalog.detail import MOST_PREVIEWS, best
from trainers.runs.catalog.labels import Label, read_label, write_label
from trainers.runs.catalog.listing import Catalog
from trainers.runs.catalog.names import UnknownRunError, run_names, run_path
from trainers.runs.catalog.reading import UnreadableError
from trainers.runs.catalog.rows import Live
from trainers.runs.catalog.settings import widget_values
from trainers.runs.catalog.times import Rate, rate, rates_of_graphs, steps_of_graph
from trainers.runs.folder import RunFolder
from trainers.runs.pictures.plot import smooth
from trainers.runs.states import make_room_for_states
from trainers.runs.story import story
from trainers.settings.run import run_config

NAME = "lora-dog-0123abcd"


def parent_in(tmp_path: Path) -> Path:
    parent = tmp_path / "personalize"
    parent.mkdir()
    return parent


def row_of(parent: Path, name: str, live: Live | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Catalog(parent).listing(live))
    return next(row for row in found["runs"] if row["run"] == name)


def detail_of(parent: Path, name: str, live: Live | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Catalog(parent).detail(name, live))
    return found


def everything(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# -- what is shown ------------------------------------------------------------


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


# -- folders that anything was done to ----------------------------------------


def test_list_is_remembered_as_long_as_nothing_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = parent_in(tmp_path)
    runs = [make_run(parent, name, previews=[40]) for name in ("one", "two", "<b>three</b>")]
    at_work = make_run(parent, "four", status="training")
    _age(parent)
    first = Catalog(parent, remembers=True).listing()
    read: list[str] = []
    monkeypatch.setattr(
        listing, "find", lambda folder: read.append(folder.name) or catalog_rows.find(folder)
    )

    def again() -> set[str]:
        """What a catalog that knows nothing yet reads to say the same as one that reads all."""
        read.clear()
        shown = Catalog(parent, remembers=True).listing()
        names = set(read)
        assert json.loads(shown) == json.loads(Catalog(parent).listing())
        return names

    assert again() == {at_work.name}, "whose folder says nothing of its end"
    assert Catalog(parent, remembers=True).listing() == first
    detail = Catalog(parent, remembers=True)
    detail.listing()
    assert json.loads(detail.detail(runs[0].name)) == detail_of(parent, runs[0].name)

    write_label(runs[1], {"title": "second"})
    shutil.rmtree(runs[2])
    assert again() == {at_work.name, runs[1].name}
    file = parent / "runs.jsonl"
    whole = file.read_bytes()
    for damaged in (b"", b"\n", whole[:-20], whole.replace(b"second", b"third!"), b"[]\n" + whole):
        file.write_bytes(damaged)
        assert len(again()) == 3
    file.unlink()
    file.mkdir()  # cannot be written
    assert len(again()) == 3


def test_what_was_deleted_or_could_not_be_read_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = parent_in(tmp_path)
    gone, _ = make_run(parent, "gone"), make_run(parent, "locked")
    write_label(gone, {"title": "secret"})
    _age(parent)
    kept = Catalog(parent, remembers=True)
    kept.listing()
    assert b"secret" in (parent / "runs.jsonl").read_bytes()
    shutil.rmtree(gone)
    kept.forget(gone.name)
    kept.listing()
    assert b"secret" not in (parent / "runs.jsonl").read_bytes()

    (parent / "runs.jsonl").unlink()
    with monkeypatch.context() as patched:

        def deny(_: Path) -> dict[str, Any]:
            raise UnreadableError("run.json cannot be read.")

        patched.setattr(catalog_rows, "read_json", deny)
        assert b"cannot be read" in Catalog(parent, remembers=True).listing()
    assert b"cannot be read" not in Catalog(parent, remembers=True).listing()


def _age(folder: Path) -> None:
    then = time.time() - 3600
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))


def broken_json(run: Path) -> None:
    (run / "run.json").write_text('{"method": "lora", "training": {')


def list_of_json(run: Path) -> None:
    (run / "run.json").write_text("[1, 2]")


def deep_json(run: Path) -> None:
    (run / "run.json").write_text("[" * 100_000)


def other_kinds(run: Path) -> None:
    told = json.loads((run / "run.json").read_text())
    odd: list[Any] = [None, 3, "x", [], {}, [[]], {"a": {}}, 1e300, True, -1]
    (run / "run.json").write_text(json.dumps({key: odd[n % 10] for n, key in enumerate(told)}))


def nan_everywhere(run: Path) -> None:
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace("0.0001", "NaN").replace("40", "1e999"))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "num_steps": 50, "loss": NaN}\n{"step": 1e999, "loss": 0.1}\n')


def half_metrics(run: Path) -> None:
    content = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(content[: len(content) // 2])


def odd_metrics(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_bytes().splitlines()
    odd = [b"null", b"[]", b"\xff\xfe", b"\0" * 100, b'{"step": "4", "loss": 1}', b'{"step": 5}',
           b'{"step": 50, "loss": "x"}', b'{"step": 51, "loss": ' + b"9" * 5000 + b"}",
           b'{"step": 52, "loss": {}}', lines[0], b'{"a":1', b'"b":2}']  # fmt: skip
    (run / "metrics.jsonl").write_bytes(b"\n".join([*lines[:20], *odd, *lines[20:]]))


def nothing_left(run: Path) -> None:
    shutil.rmtree(run)
    run.mkdir()


def folders_for_files(run: Path) -> None:
    for name in ("run.json", "metrics.jsonl", "result-00000040.safetensors"):
        (run / name).unlink()
        (run / name).mkdir()
    (run / "label.json").mkdir()


def files_for_folders(run: Path) -> None:
    for name in ("state", "previews"):
        shutil.rmtree(run / name)
        (run / name).write_text("no folder")


def links(run: Path) -> None:
    secret = run.parent.parent / "secret"
    secret.mkdir()
    (secret / "run.json").write_text(json.dumps({"method": "secret", "note": "secret"}))
    save_preview(secret / "step_00000040_0.png", "secret")
    for name in ("run.json", "metrics.jsonl"):
        (run / name).unlink()
        (run / name).symlink_to(secret / "run.json")
    (run / "label.json").symlink_to(secret / "run.json")
    shutil.rmtree(run / "previews")
    (run / "previews").symlink_to(secret)
    (run / "state" / "00000099.pt").symlink_to(secret / "run.json")
    (run / "up").symlink_to(run.parent.parent)


def odd_files(run: Path) -> None:
    os.mkfifo(run / "label.json")
    (run / "run.json").unlink()
    os.mkfifo(run / "run.json")
    odd = ["state/x.pt", "state/-1.pt", "state/99999999999999999999.pt", "result-1.safetensors",
           "result-00000040.9.safetensors", "result-99999999999999999999.safetensors",
           "previews/step_x_0.png", "previews/step_00000030_0.png", "previews/<b>.png"]  # fmt: skip
    for name in odd:
        (run / name).write_bytes(b"\xff\xff\xff\xff\xff\xff\xff\x7f")


def markup(run: Path) -> None:
    told = json.loads((run / "run.json").read_text())
    told["dataset"]["name"] = "<img src=x onerror=alert(1)>" * 100
    (run / "run.json").write_text(json.dumps(told))
    (run / "label.json").write_text(json.dumps({"title": "<script>", "note": 3, "pinned": "yes"}))


def hand_made_graph(run: Path) -> None:
    told = json.loads((run / "run.json").read_text())
    loop: dict[str, Any] = {"class_type": "X", "inputs": {"model": ["4", 0], "a": ["4"], "b": [{}]}}
    told["graph"] = {**GRAPH, "nodes": {"4": loop}, "files": [None, {"folder": []}, {"name": {}}]}
    (run / "run.json").write_text(json.dumps(told))


def graph_of_no_node(run: Path) -> None:
    told = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**told, "graph": {**GRAPH, "node": ["4"]}}))


def endless_step(run: Path) -> None:
    line = b'{"step": %b, "num_steps": 40, "loss": 0.5}\n' % (b"1" * 5000)
    (run / "metrics.jsonl").write_bytes(line)


# What was done to a run's folder: the state it has then, and a piece of each problem that is told.
FUZZED: list[tuple[Callable[[Path], None], str, list[str]]] = [
    (broken_json, "damaged", ["run.json is not JSON"]),
    (list_of_json, "damaged", ["run.json holds a list"]),
    (deep_json, "damaged", ["run.json is not JSON"]),
    (other_kinds, "unfinished", ["no method that there is", "how the run went"]),
    (nan_everywhere, "done", ["2 of 42 lines of metrics.jsonl"]),
    (half_metrics, "done", ["1 of 21 lines of metrics.jsonl"]),
    (odd_metrics, "done", ["12 of 52 lines of metrics.jsonl"]),
    (nothing_left, "damaged", ["run.json is not there"]),
    (folders_for_files, "damaged",
     ["label.json is a folder", "metrics.jsonl is a folder", "result-00000040.safetensors is a f",
      "run.json is a folder"]),
    (files_for_folders, "done", ["previews is a file", "state is a file"]),
    (links, "damaged",
     ["label.json is a link", "metrics.jsonl is a link", "previews is a link", "run.json is a link",
      "state/00000099.pt is a link", "up is a link"]),
    (odd_files, "damaged", ["label.json is no plain file", "run.json is no plain file"]),
    (markup, "done", []),
    (hand_made_graph, "done", []),
    (graph_of_no_node, "done", []),
    (endless_step, "done", ["1 of 1 lines of metrics.jsonl"]),
]  # fmt: skip


@pytest.mark.parametrize("fuzzed", FUZZED, ids=lambda case: case[0].__name__)
def test_fuzzed_folder_shows_what_it_can(
    tmp_path: Path, fuzzed: tuple[Callable[[Path], None], str, list[str]]
) -> None:
    do, state, problems = fuzzed
    parent = parent_in(tmp_path)
    run = make_run(parent, states=[20, 40], previews=[20, 40])
    whole = make_run(parent, "cat")
    do(run)
    catalog = Catalog(parent)
    text = catalog.listing() + catalog.detail(run.name)
    for bad in (b"NaN", b"Infinity", b"secret", str(tmp_path).encode()):
        assert bad not in text
    row = row_of(parent, run.name)
    assert (row["state"], row_of(parent, whole.name)["problems"]) == (state, [])
    told = " ".join(sorted(row["problems"]))
    assert [piece for piece in problems if piece not in told] == []
    assert bool(row["problems"]) == bool(problems)
    kinds = {name: type(value) for name, value in row_of(parent, whole.name).items()}
    loose = {"preview", "last_loss", "seconds", "began"}
    assert {n: type(v) for n, v in row.items() if n not in loose} == {
        n: kind for n, kind in kinds.items() if n not in loose
    }
    tidy.free(parent, [run.name], ["states", "previews"])
    tidy.delete(parent, run.name)
    tidy.restore(parent, run.name)
    tidy.delete(parent, run.name)
    tidy.empty_trash(parent)
    assert json.loads(Catalog(parent).listing())["trash"] == []
    if do is links:
        assert sorted(path.name for path in (tmp_path / "secret").iterdir()) == [
            "run.json", "step_00000040_0.png"
        ]  # fmt: skip


def test_metrics_that_are_half_there_show_the_half(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    odd_metrics(run)
    found = detail_of(tmp_path, run.name)
    assert found["curve"]["loss"] == [[one["step"], one["loss"]] for one in rows(40)]
    half_metrics(run)
    assert row_of(tmp_path, run.name)["steps"] >= 15


def test_ten_thousand_previews_are_thinned(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=5000)
    save_preview(run / "previews" / "step_00000001_0.png", "a dog")
    for step in range(1, 5001):
        for number in range(2):
            file = run / "previews" / f"step_{step:08}_{number}.png"
            if not file.exists():
                os.link(run / "previews" / "step_00000001_0.png", file)
    found = detail_of(tmp_path, run.name)
    previews = found["curve"]["previews"]
    assert len(previews) <= MOST_PREVIEWS
    assert previews[-1] | {"changed": 0} == {
        "step": 5000, "prompt": "a dog", "seed": "5", "file": "step_00005000_1.png", "changed": 0
    }  # fmt: skip
    assert {one["step"] for one in previews} == set(range(10, 5001, 10))
    assert "10,000 previews; those of 500 of 5,000 steps" in " ".join(found["problems"])


# -- names --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "..\\x", "C:", "C:\\x", "a\0b", ".hidden", "x.", "x ",
     "con", "nul.txt", "trash", "Trash", "EXPORTS", "class_images", "compare", "a" * 300, None, 3,
     ["x"], "gone", "file-0123abcd", "lora-linked-0123abcd", "plain"],
)  # fmt: skip
def test_names_that_are_no_runs_are_refused(tmp_path: Path, name: Any) -> None:
    parent = parent_in(tmp_path)
    outside = make_run(tmp_path, "outside")
    (parent / "lora-linked-0123abcd").symlink_to(outside)
    (parent / "lora-file-0123abcd").write_text("")
    for folder in ("plain", "trash", "exports", "class_images", "compare"):
        (parent / folder).mkdir()
    (parent / "exports" / "run.json").write_text("{}")
    for refused in (
        lambda: run_path(parent, name),
        lambda: tidy.delete(parent, name),
        lambda: tidy.restore(parent, name),
        lambda: tidy.free(parent, [name], ["states"]),
    ):
        with pytest.raises(UnknownRunError):
            refused()
    found, problems = run_names(parent)
    assert (found, problems) == ([], ["'lora-linked-0123abcd' is a link, which is not followed."])


def test_folder_with_a_run_is_one_whatever_its_name(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.rename(tmp_path / "my best dog")
    assert row_of(tmp_path, "my best dog")["title"] == "my best dog"
    assert names.run_names(tmp_path / "not there") == ([], [])
    assert json.loads(Catalog(tmp_path / "no").listing()) == {
        "runs": [], "trash": [], "problems": []
    }  # fmt: skip


# -- labels and tidying -------------------------------------------------------


def test_label_changes_nothing_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before, fingerprint = everything(run), RunFolder.at(run)
    write_label(run, {"title": "  my\n dog ", "pinned": True})
    write_label(run, {"note": "line\nline"})
    assert read_label(run) == (Label("my dog", "line\nline", True), [])
    assert RunFolder.at(run) == fingerprint
    assert {n: c for n, c in everything(run).items() if n != "label.json"} == before
    write_label(run, {"title": "", "note": "", "pinned": False})
    assert everything(run) == before
    with pytest.raises(SettingsError) as refused:
        write_label(run, {"title": 3, "note": "x" * 20_000, "pinned": 1, "status": "done"})
    assert len(refused.value.problems) == 4


def test_label_that_is_a_folder_is_told_and_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "label.json").mkdir()
    for title in ("Rex", ""):
        with pytest.raises(SaveError, match="label.json' was not saved"):
            write_label(run, {"title": title})


def test_lock_that_leads_elsewhere_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "runs", states=[40])
    (tmp_path / "mine").write_text("mine")
    (run / ".lock").symlink_to(tmp_path / "mine")
    opened: list[Path] = []  # which empties what the link leads to, before filelock 3.20.1
    monkeypatch.setattr(filelock, "FileLock", lambda path, **_: opened.append(path))
    with pytest.raises(RunError, match=r"'\.lock' of run .* is a link"):
        tidy.delete(run.parent, run.name)
    freed, problems = tidy.free(run.parent, [run.name], ["states"])
    assert (freed, "is a link" in problems[0], opened) == (0, True, [])


def test_deleted_run_is_kept_until_the_trash_is_emptied(tmp_path: Path) -> None:
    run = make_run(tmp_path, states=[40])
    write_label(run, {"title": "Rex"})
    before = everything(run)
    tidy.delete(tmp_path, run.name)
    assert not run.exists()
    (kept,) = tidy.in_trash(tmp_path)
    assert (kept["run"], kept["title"]) == (run.name, "Rex")
    assert kept["deleted"] == pytest.approx(time.time(), abs=60)
    assert run_names(tmp_path) == ([], [])
    assert make_room_for_states(tmp_path, 0, tmp_path) == [], "a training leaves it alone"
    tidy.restore(tmp_path, run.name)
    assert everything(run) == before
    assert not (tmp_path / "trash").exists()
    tidy.delete(tmp_path, run.name)
    make_run(tmp_path, states=[40])
    with pytest.raises(RunError, match="trained anew"):
        tidy.restore(tmp_path, run.name)
    tidy.delete(tmp_path, run.name)
    assert len(tidy.in_trash(tmp_path)) == 1
    freed, problems = tidy.empty_trash(tmp_path)
    assert (freed > sum(map(len, before.values())), problems) == (True, [])
    assert list(tmp_path.iterdir()) == []


def test_pinned_runs_and_those_at_work_lose_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, states=[40], previews=[40])
    before = everything(run)
    for at_work, pinned, reason in (((run.name,), False, "at work"), ((), True, "pinned")):
        write_label(run, {"pinned": pinned})
        with pytest.raises(RunError, match=reason):
            tidy.delete(tmp_path, run.name, at_work)
        freed, problems = tidy.free(tmp_path, [run.name], ["states", "previews"], at_work)
        assert (freed, reason in problems[0]) == (0, True)
    write_label(run, {"pinned": False})
    assert everything(run) == before


def test_what_is_freed_is_counted_first(tmp_path: Path) -> None:
    run = make_run(tmp_path, states=[20, 40], previews=[40])
    size = row_of(tmp_path, run.name)["bytes"]
    before = everything(run)
    counted = tidy.free(tmp_path, [run.name], ["states"], dry=True)
    assert (counted, everything(run)) == ((size["states"], []), before)
    assert tidy.free(tmp_path, [run.name], ["states"]) == counted
    left = {n: c for n, c in before.items() if not n.startswith("state/")}
    assert everything(run) == left
    assert tidy.free(tmp_path, [run.name], ["previews", "states"]) == (size["previews"], [])
    with pytest.raises(SettingsError, match="results"):
        tidy.free(tmp_path, [run.name], ["results"])
    with pytest.raises(UnknownRunError):
        tidy.free(tmp_path, [run.name, "gone"], ["states"])


def test_trash_that_leads_elsewhere_is_left_alone(tmp_path: Path) -> None:
    parent = parent_in(tmp_path)
    run = make_run(parent)
    outside = tmp_path / "outside" / "1700000000000" / NAME
    outside.mkdir(parents=True)
    (parent / "trash").symlink_to(tmp_path / "outside")
    assert tidy.in_trash(parent) == []
    assert tidy.empty_trash(parent) == (0, [])
    with pytest.raises(RunError, match="is a link"):
        tidy.delete(parent, run.name)
    assert outside.is_dir()
    assert run.is_dir()


def test_files_are_never_read_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    monkeypatch.setattr(reading, "MOST_JSON_BYTES", 1000)
    assert "run.json has 0 MB; at most 0 are read." in row_of(tmp_path, run.name)["problems"]


def test_command_lists_and_tidies_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "host" / "comfy").mkdir(parents=True)
    (tmp_path / "host" / "main.py").write_text("")
    parent = tmp_path / "out" / "personalize"
    run = make_run(parent, states=[40])
    headless = module("headless.runs")
    monkeypatch.setattr(headless.host, "output_folder", lambda comfyui, given: Path(given[0]))

    def said(*own: str) -> str:
        assert headless.main([*own, "--comfyui", str(tmp_path / "host")], [str(parent.parent)]) == 0
        return capsys.readouterr().out

    assert said().splitlines()[1].split()[:3] == [run.name, "done", "40/40"]
    assert json.loads(said("--json"))["runs"][0]["run"] == run.name
    assert "MB freed" in said("--free", "states", "--of", run.name)
    assert not list((run / "state").iterdir())
    assert run.name not in said("--delete", run.name)
    assert run.name in said("--restore", run.name)
    said("--delete", run.name, "--empty-trash")
    assert list(parent.iterdir()) == []
    write_label(make_run(parent, states=[40]), {"pinned": True})
    freed = ["--free", "states", "--of", run.name, "--comfyui", str(tmp_path / "host"), "--json"]
    assert headless.main(freed, [str(parent.parent)]) == 1
    assert "is pinned" in capsys.readouterr().err, "beside JSON"
    for half in (["--free", "states"], ["--of", run.name]):
        with pytest.raises(SystemExit):
            headless.main(half, [str(parent.parent)])
        assert "--free and --of belong together" in capsys.readouterr().err


# -- how long it takes --------------------------------------------------------


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
