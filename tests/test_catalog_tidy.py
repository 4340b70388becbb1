"""Runs that are named, deleted, restored and made smaller, by a page and by the command."""

from __future__ import annotations

import json
import time
from pathlib import Path

import filelock
import pytest

from tests.packed import module
from tests.run_folders import (
    everything,
    make_run,
    parent_in,
    row_of,
)
from trainers.errors import RunError, SaveError, SettingsError
from trainers.runs.catalog import reading, tidy
from trainers.runs.catalog.labels import Label, read_label, write_label
from trainers.runs.catalog.names import UnknownRunError, run_names
from trainers.runs.folder import RunFolder
from trainers.runs.states import make_room_for_states

NAME = "lora-dog-0123abcd"


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
