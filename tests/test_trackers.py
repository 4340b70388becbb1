"""TensorBoard's files hold what happened at each step."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers.errors import UnavailableError
from trainers.runs import trackers
from trainers.runs.trackers import check_tracker, tracker
from trainers.settings.store import TENSORBOARD


def test_each_row_is_logged_at_its_step(tmp_path: Path) -> None:
    with tracker(TENSORBOARD, tmp_path) as log_row:
        for step in (1, 2):
            log_row({"step": step, "num_steps": 2, "loss": 0.5 / step, "grad_norm": 1.0})
    (file,) = (tmp_path / "tensorboard").glob("events.*")
    content = file.read_bytes()
    assert content.count(b"loss") == content.count(b"grad_norm") == 2
    assert b"num_steps" not in content


def test_nothing_writes_nothing(tmp_path: Path) -> None:
    with tracker("nothing", tmp_path) as log_row:
        log_row({"step": 1, "loss": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_missing_package_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    check_tracker("nothing")
    with pytest.raises(UnavailableError, match="pip install tensorboard"):
        check_tracker(TENSORBOARD)
