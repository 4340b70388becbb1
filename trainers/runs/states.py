"""When a run's state is written, so that little is lost in little time, and when old ones go."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
from torch import nn

from ..errors import SaveError
from ..loop import Training
from ..settings.store import StoreConfig
from .folder import RunFolder

log = logging.getLogger(__name__)

SHARE = 0.01  # of the time that writing may take
LEAST_SECONDS = 30.0  # between two states: what a crash may cost anyway
CHEAP_SECONDS = 0.25  # for the state of the last step, whatever share of a short run that is
EXPECTED_BYTES_PER_SECOND = 2e8  # of a disk, until the first state was written


class StateSaver:
    """Writes states of one training into its folder.

    A state that cannot be written ends nothing: the training goes on, with a warning.
    """

    def __init__(self, folder: RunFolder, store: StoreConfig, training: Training) -> None:
        self._folder, self._store, self._training = folder, store, training
        self._began_at = self._written_at = time.monotonic()
        self._written_step = training.done
        self._cost_seconds = _state_bytes(training.parameters) / EXPECTED_BYTES_PER_SECOND

    def after_step(self, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Write the state if it is time for it."""
        if self._is_due():
            self.save(metrics)

    def at_end(self, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Write the last state, for runs that go on with more steps; not if it costs too much."""
        seconds = time.monotonic() - self._began_at
        if self._store.state_every or self._cost_seconds <= max(CHEAP_SECONDS, SHARE * seconds):
            self.save(metrics)
        elif self._store.keep_states:
            log.info(
                "Personalize: no state of the last step was written, since that would take about "
                "%.0f s; more steps go on from an earlier one. state_every writes it in any case.",
                self._cost_seconds,
            )

    def save(self, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Write the state now, unless it is on disk already or none is wanted."""
        if not self._store.keep_states or self._written_step == self._training.done:
            return
        started = time.monotonic()
        try:
            self._folder.write_state(self._training.state(), metrics, self._store.keep_states)
            self._folder.write_metrics(metrics)
        except SaveError as error:
            log.warning(
                "Personalize: the training goes on, but it could not go on from here later. %s",
                error,
            )
        self._written_at = time.monotonic()
        self._written_step = self._training.done
        self._cost_seconds = self._written_at - started

    def _is_due(self) -> bool:
        if every := self._store.state_every:
            return self._training.done % every == 0
        pause = max(LEAST_SECONDS, self._cost_seconds / SHARE)
        return time.monotonic() - self._written_at >= pause


def _state_bytes(parameters: list[nn.Parameter]) -> int:
    """A guess: the weights, and two numbers for each in the optimizer."""
    return 3 * sum(p.numel() * p.element_size() for p in parameters)


def make_room_for_states(parent: Path, limit_bytes: float, keep: Path) -> list[Path]:
    """Delete the states of the oldest runs in `parent` until the rest take at most `limit_bytes`.

    Args:
        keep: the run that is at work; it neither counts nor loses anything.

    Returns:
        The runs that can no longer go on; their results stay.
    """
    runs = []
    for folder in parent.glob("*/state"):
        files = list(folder.glob("*.pt"))
        if files and folder.parent != keep:
            facts = [file.stat() for file in files]
            newest, size = max(f.st_mtime for f in facts), sum(f.st_size for f in facts)
            runs.append((newest, size, folder))
    total = sum(size for _, size, _ in runs)
    dropped = []
    for _, size, folder in sorted(runs):
        if total <= limit_bytes:
            break
        lock = filelock.FileLock(folder.parent / ".lock")
        with contextlib.suppress(filelock.Timeout, OSError), lock.acquire(timeout=0):
            shutil.rmtree(folder)
            dropped.append(folder.parent)
            total -= size
    return dropped
