"""Logs of a run for other programs: TensorBoard, through accelerate's tracker."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UnavailableError
from ..settings.store import TENSORBOARD

LogRow = Callable[[Mapping[str, Any]], None]
WRITERS = ("tensorboard", "tensorboardX")  # either has what the tracker needs
NOT_A_CURVE = ("step", "num_steps")


def check_tracker(kind: str) -> None:
    """Raise UnavailableError if the package that `kind` (store_settings.LOGS) needs is missing."""
    if kind == TENSORBOARD and not any(importlib.util.find_spec(name) for name in WRITERS):
        raise UnavailableError(
            "log_with 'tensorboard' needs the package tensorboard, which is not installed.\n"
            "Install it into ComfyUI's Python with: python -m pip install tensorboard; or choose "
            "'nothing'."
        )


@contextlib.contextmanager
def tracker(kind: str, folder: Path) -> Iterator[LogRow]:
    """A function that logs one row of metrics.jsonl at its step.

    Args:
        folder: TensorBoard's logs go into folder/tensorboard.
    """
    if kind != TENSORBOARD:
        yield lambda row: None
        return
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker

    PartialState()  # the tracker asks it whether this is the main process
    board = TensorBoardTracker("tensorboard", folder)
    getattr(board, "start", lambda: None)()  # older ones start when they are made

    def log_row(row: Mapping[str, Any]) -> None:
        curves = {name: value for name, value in row.items() if name not in NOT_A_CURVE}
        board.log(curves, step=row["step"])

    try:
        yield log_row
    finally:
        board.finish()
