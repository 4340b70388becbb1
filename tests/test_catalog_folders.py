"""Folders of runs that anything was done to: what can be shown is, and what cannot is told."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.run_folders import (
    GRAPH,
    detail_of,
    make_run,
    parent_in,
    row_of,
    rows,
    save_preview,
)
from trainers.runs.catalog import listing, names, tidy
from trainers.runs.catalog import rows as catalog_rows
from trainers.runs.catalog.detail import MOST_PREVIEWS
from trainers.runs.catalog.labels import write_label
from trainers.runs.catalog.listing import Catalog
from trainers.runs.catalog.names import UnknownRunError, run_names, run_path
from trainers.runs.catalog.reading import UnreadableError


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
