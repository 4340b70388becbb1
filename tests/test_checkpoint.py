"""The folder of a run: what is found again, what is refused, and what survives damage."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from tests import tiny
from tests.dataset_files import batch
from trainers.errors import SaveError
from trainers.runs import folder as run_folder
from trainers.runs.fingerprint import fingerprint_of
from trainers.runs.folder import PACKAGES, Result, RunFolder, run_facts

NOBODY = 65534  # the user id that owns nothing
BASE = {"model": "0f0f", "clip": "1e1e"}
TENSORS = {"a.lora_up.weight": torch.arange(6.0).reshape(2, 3), "a.alpha": torch.tensor(4.0)}


def facts(**overrides: Any) -> dict[str, Any]:
    return run_facts(tiny.run_config(**overrides), "sd15", BASE, batch(2))


def folder_of(parent: Path, **overrides: Any) -> RunFolder:
    return RunFolder.of(parent, "dog", facts(**overrides))


def metrics(steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "loss": 1 / step} for step in range(1, steps + 1)]


def result(steps: int = 3) -> Result:
    tokens = {"<sks>": {"clip_l": torch.ones(2, 4)}}
    return Result(steps, TENSORS, {"trigger": "sks"}, tokens, metrics(steps))


def state(step: int) -> dict[str, Any]:
    return {"step": step, "parameters": [torch.full((3,), float(step))], "optimizer": {"lr": 0.1}}


# -- which run it is ----------------------------------------------------------


def test_run_facts_hold_settings_base_and_pictures() -> None:
    stored = facts(steps=9, rank=3)
    assert stored["method"] == "lora"
    assert stored["training"]["steps"] == 9
    assert stored["own"]["rank"] == 3
    assert (stored["architecture"], stored["base_model"]) == ("sd15", BASE)
    assert stored["dataset"]["fingerprint"] == batch(2).fingerprint()
    assert len(stored["dataset"]["pictures"]) == 2


def test_run_facts_are_json() -> None:
    assert json.loads(json.dumps(facts()))["own"] == facts()["own"]


def test_same_facts_same_folder(tmp_path: Path) -> None:
    assert folder_of(tmp_path) == folder_of(tmp_path)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"rank": 4}, {"noise_offset": 0.1}, {"optimizer": "adafactor"}]
)
def test_other_facts_other_folder(tmp_path: Path, change: dict[str, Any]) -> None:
    assert folder_of(tmp_path).path != folder_of(tmp_path, **change).path


@pytest.mark.parametrize("change", [{"steps": 9}, {"epochs": 2}, {"keep_states": 5}])
def test_a_longer_run_and_how_it_is_kept_are_the_same_run(change: dict[str, Any]) -> None:
    assert fingerprint_of(facts()) == fingerprint_of(facts(**change))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "polynomial", "cosine_with_restarts"])
def test_a_schedule_that_ends_makes_each_length_a_run(schedule: str) -> None:
    short, long = (facts(lr_schedule=schedule, steps=steps) for steps in (4, 8))
    assert fingerprint_of(short) != fingerprint_of(long)


def test_setting_that_came_later_is_no_other_run_where_it_does_what_was_done_before() -> None:
    for method, group, name, other in [
        ("lora", "training", "deterministic", True),
        ("dreambooth", "own", "ema_update_step_interval", 5),
    ]:
        settings: dict[str, Any] = {"ema_decay": 0.9} if method == "dreambooth" else {}
        now, changed = (
            run_facts(tiny.run_config(method, **settings, **more), "sd15", BASE, batch(2))
            for more in ({}, {name: other})
        )
        old = {**now, group: {k: v for k, v in now[group].items() if k != name}}
        assert name in now[group]
        assert fingerprint_of(old) == fingerprint_of(now) != fingerprint_of(changed)


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        ("lora", {}, None),
        ("lora", {"variant": "dora"}, ["magnitudes in fp32"]),
        ("dreambooth", {"ema_decay": 0.9}, None),
        ("dreambooth", {"fused_backward": True}, None),
        ("dreambooth", {"weights": "bf16"}, ["rounding by pieces"]),
        ("dreambooth", {"ema_on_cpu": True}, None),
        ("dreambooth", {"ema_decay": 0.9, "ema_on_cpu": True}, ["average over intervals"]),
        (
            "dreambooth",
            {"ema_decay": 0.9, "ema_on_cpu": True, "ema_update_step_interval": 1},
            None,
        ),
    ],
)
def test_what_was_mended_makes_new_runs_of_those_alone_that_it_changed(
    method: str, settings: dict[str, Any], expected: list[str] | None
) -> None:
    made = run_facts(tiny.run_config(method, **settings), "sd15", BASE, batch(2))
    assert made.get("mended") == expected
    narrow = {**BASE, "computes_in": "torch.float16 on cuda"}
    made = run_facts(tiny.run_config(method, **settings), "sd15", narrow, batch(2))
    adapters = ["adapters in the base's dtype"] if (method, settings) == ("lora", {}) else []
    overflow = "steps that overflow are done again"
    assert made["mended"] == [*(expected or ()), *adapters, overflow]


@pytest.mark.parametrize(
    ("settings", "new"),
    [
        ({}, True), ({"variant": "lokr"}, True), ({"variant": "loha"}, True),
        ({"variant": "oft"}, False), ({"initialization": "pissa"}, False),
    ],
)  # fmt: skip
def test_adapters_in_bf16_are_new_runs(settings: dict[str, Any], new: bool) -> None:
    base = {**BASE, "computes_in": "torch.bfloat16 on cpu"}
    made = run_facts(tiny.run_config(**settings), "sd15", base, batch(2))
    assert ("mended" in made) == new


def test_other_pictures_and_another_base_are_other_runs() -> None:
    config = tiny.run_config()
    made = [
        run_facts(config, "sd15", BASE, batch(2)),
        run_facts(config, "sd15", BASE, batch(3)),
        run_facts(config, "sd15", BASE | {"model": "1f1f"}, batch(2)),
        run_facts(config, "sd15", BASE, batch(2), batch(1)),
    ]
    assert len({fingerprint_of(each) for each in made}) == len(made)


def test_run_json_says_what_was_asked_and_with_what(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.describe(facts(), status="training", stopped={10: 4})
    stored = json.loads((folder.path / "run.json").read_text())
    assert folder.path.name == f"lora-dog-{stored['fingerprint'][:8]}"
    assert stored["training"] == facts()["training"]
    assert stored["status"] == "training"
    assert stored["versions"].keys() == set(PACKAGES)
    assert torch.__version__.startswith(stored["versions"]["torch"])
    assert folder.stopped() == {10: 4}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("my dog", "my_dog"),
        ("../../etc/passwd", "etc_passwd"),
        ("a/b\\c:d*e", "a_b_c_d_e"),
        ("犬 1", "犬_1"),
        ("..", "run"),
        ("", "run"),
    ],
)
def test_run_folder_stays_in_its_parent(tmp_path: Path, name: str, shown: str) -> None:
    folder = RunFolder.of(tmp_path / "runs", name, facts())
    assert folder.path.resolve().parent == (tmp_path / "runs").resolve()
    assert folder.path.name.startswith(f"lora-{shown}-")


# -- what was learned ---------------------------------------------------------


def test_result_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    assert folder.result(3) is None
    folder.write_result(result(3))
    found = folder.result(3)
    assert found is not None
    tiny.assert_equal(found.tensors, TENSORS)
    assert found.metadata == {"trigger": "sks"}
    assert found.metrics == metrics(3)
    tiny.assert_equal(found.tokens["<sks>"], {"clip_l": torch.ones(2, 4)})


def test_results_of_several_lengths_stay_side_by_side(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    for steps in (3, 5):
        folder.write_result(result(steps))
    for steps in (3, 5):
        found = folder.result(steps)
        assert found is not None
        assert (found.steps, len(found.metrics)) == (steps, steps)
    assert folder.result(4) is None


def test_result_of_another_run_is_not_taken(tmp_path: Path) -> None:
    """Two fingerprints may share their first 8 digits, and folders are renamed by hand."""
    folder = folder_of(tmp_path)
    folder.write_result(result())
    assert RunFolder(folder.path, "f" * 64).result(3) is None


@pytest.mark.parametrize("keep_bytes", [0, 7, 100])
def test_truncated_result_is_made_again(
    tmp_path: Path, keep_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path)
    folder.write_result(result())
    file = folder.path / "result-00000003.safetensors"
    file.write_bytes(file.read_bytes()[:keep_bytes])
    assert folder.result(3) is None
    assert "cannot be read" in caplog.text


def test_run_json_says_when_it_began_and_how_long_it_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])

    def told(after: float, status: str, **store: Any) -> tuple[Any, ...]:
        now[0] += after
        folder = folder_of(tmp_path)
        folder.describe(facts(**store), status=status)
        stored = json.loads((folder.path / "run.json").read_text())
        return stored["began"], stored["seconds"], stored.get("at_work_since")

    assert told(0, "training") == (1000, 0, 1000)
    assert told(60, "interrupted") == (1000, 60, None)
    assert told(500, "training") == (1000, 60, 1560)
    assert told(500, "training") == (1000, 60, 2060), "killed, and nobody knows when"
    assert told(30, "done") == (1000, 90, None)
    assert told(10, "training", if_run_exists="start anew") == (2100, 0, 2100)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stopped": 3}', '{"stopped": {"a": []}}'])
def test_edited_run_json_does_no_harm(tmp_path: Path, content: str) -> None:
    folder = folder_of(tmp_path)
    folder.write_result(result())
    (folder.path / "run.json").write_text(content)
    assert folder.stopped() == {}
    assert folder.result(3) is not None


def test_damaged_metrics_do_no_harm(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.write_result(result())
    (folder.path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    found = folder.result(3)
    assert found is not None
    assert len(found.metrics) == 1


# -- how to go on -------------------------------------------------------------


def test_the_last_state_within_reach_comes_back(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    assert folder.state(at_most=9) is None
    for step in (2, 4, 6):
        folder.write_state(state(step), metrics(step), keep=3)
    for at_most, expected in ((9, 6), (6, 6), (5, 4), (2, 2)):
        found = folder.state(at_most)
        assert found is not None
        assert found[0]["step"] == expected
        assert torch.equal(found[0]["parameters"][0], torch.full((3,), float(expected)))
        assert found[1] == metrics(expected)
    assert folder.state(at_most=1) is None


def test_only_the_last_states_are_kept(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    for step in range(1, 6):
        folder.write_state(state(step), [], keep=2)
    names = sorted(path.name for path in (folder.path / "state").iterdir())
    assert names == ["00000004.pt", "00000005.pt"]


@pytest.mark.parametrize("keep_bytes", [0, 10, 700, -1])
def test_truncated_state_means_the_one_before(
    tmp_path: Path, keep_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path)
    for step in (2, 4):
        folder.write_state(state(step), metrics(step), keep=2)
    newest = folder.path / "state" / "00000004.pt"
    newest.write_bytes(newest.read_bytes()[:keep_bytes])
    found = folder.state(at_most=9)
    assert found is not None
    assert found[0]["step"] == 2
    assert "going on from the one before" in caplog.text


def test_state_of_another_run_is_not_taken(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.write_state(state(2), [], keep=2)
    assert RunFolder(folder.path, "f" * 64).state(at_most=9) is None


def test_state_file_runs_no_code(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "evil"),))

    file = folder.path / "state" / "00000002.pt"
    file.parent.mkdir(parents=True)
    torch.save({"fingerprint": folder.fingerprint, "state": Evil(), "metrics": []}, file)
    assert folder.state(at_most=9) is None
    assert not (tmp_path / "evil").exists()


# -- a full disk, a folder that cannot be written -----------------------------


class FullDisk:
    """A file that takes so many bytes and no more."""

    def __init__(self, file: IO[bytes], room: int) -> None:
        self._file, self._room = file, room

    def write(self, content: bytes) -> int:
        self._room -= len(content)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 200, 1500])
def test_full_disk_keeps_the_states_before(
    tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path)
    folder.write_state(state(2), metrics(2), keep=1)
    whole_file = run_folder.whole_file

    @contextmanager
    def full(path: Path, num_bytes: int = 0) -> Any:
        with whole_file(path, num_bytes) as file:
            yield FullDisk(file, room)

    monkeypatch.setattr(run_folder, "whole_file", full)
    with pytest.raises(SaveError, match="the disk is full"):
        folder.write_state(state(4), metrics(4), keep=1)
    found = folder.state(at_most=9)
    assert found is not None
    assert found[0]["step"] == 2
    assert [path.name for path in (folder.path / "state").iterdir()] == ["00000002.pt"]


def test_parent_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    folder = folder_of(tmp_path / "runs")
    with pytest.raises(SaveError, match="was not saved"):
        folder.describe(facts())
    with pytest.raises(SaveError, match="was not saved"), folder.locked(lambda: None):
        pass
    assert (tmp_path / "runs").read_text() == "not a folder"


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may write anywhere; whoever else runs this is kept out as it is."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_read_only_folder_is_told_and_what_it_holds_is_found() -> None:
    with tempfile.TemporaryDirectory() as made:  # pytest's own folder is closed to others
        parent = Path(made)
        folder = folder_of(parent)
        folder.describe(facts())
        folder.write_state(state(2), metrics(2), keep=2)
        folder.write_result(result())
        inside = [path for path in parent.rglob("*") if path.is_dir()]
        for path in (parent, *inside):
            path.chmod(0o555)
        before = {path: path.stat().st_mtime_ns for path in parent.rglob("*")}
        with without_privileges():
            for write in (
                lambda: folder.describe(facts()),
                lambda: folder.write_state(state(4), metrics(4), keep=2),
                lambda: folder.write_result(result(5)),
                lambda: folder_of(parent, seed=9).locked(lambda: None).__enter__(),
            ):
                with pytest.raises(SaveError, match=r"Permission denied\.\nMake its folder"):
                    write()
            assert folder.result(3) is not None
            found = folder.state(9)
            assert found is not None
            assert found[0]["step"] == 2
        assert {path: path.stat().st_mtime_ns for path in parent.rglob("*")} == before
        for path in (parent, *inside):
            path.chmod(0o755)
