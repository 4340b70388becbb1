"""Runs beside each other: one training at a time in a folder, and room for the states of all."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from tests.test_checkpoint import folder_of, result, state
from trainers.runs.states import make_room_for_states

# -- several at once ----------------------------------------------------------


def test_two_at_once_wait_for_each_other(tmp_path: Path) -> None:
    inside: list[str] = []
    waited = threading.Event()

    def work(name: str, seconds: float) -> None:
        with folder_of(tmp_path).locked(waited.set):
            inside.append(f"{name} in")
            time.sleep(seconds)
            inside.append(f"{name} out")

    first = threading.Thread(target=work, args=("a", 0.8))
    first.start()
    while not inside:
        time.sleep(0.01)
    work("b", 0)
    first.join()
    assert inside == ["a in", "a out", "b in", "b out"]
    assert waited.is_set()


def test_whoever_waits_can_give_up(tmp_path: Path) -> None:
    def give_up() -> None:
        raise KeyboardInterrupt

    with (
        folder_of(tmp_path).locked(lambda: None),
        pytest.raises(KeyboardInterrupt),
        folder_of(tmp_path).locked(give_up),
    ):
        pass


# -- old runs -----------------------------------------------------------------


def test_the_oldest_states_go_and_no_result(tmp_path: Path) -> None:
    folders = [folder_of(tmp_path, seed=seed) for seed in range(3)]
    for age, folder in enumerate(folders):
        folder.write_state(state(2), [], keep=1)
        folder.write_result(result())
        os.utime(folder.path / "state" / "00000002.pt", (1000 + age, 1000 + age))
    size = (folders[0].path / "state" / "00000002.pt").stat().st_size
    assert make_room_for_states(tmp_path, 2 * size, keep=folders[2].path) == []
    assert make_room_for_states(tmp_path, size, keep=folders[2].path) == [folders[0].path]
    assert make_room_for_states(tmp_path, 0, keep=folders[2].path) == [folders[1].path]
    assert [folder.state(9) is not None for folder in folders] == [False, False, True]
    assert all(folder.result(3) for folder in folders)


def test_a_run_at_work_keeps_its_states(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.write_state(state(2), [], keep=1)
    with folder.locked(lambda: None):
        assert make_room_for_states(tmp_path, 0, keep=tmp_path) == []
    assert folder.state(9) is not None
