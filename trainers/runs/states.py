"""Decides when a run's state is written, so that little is lost and little time is spent on it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

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
