"""When a run's state is written, so that little is lost in little time, and when old ones go."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
from torch import Tensor, nn

from ..errors import SaveError
from ..loop import Training
from ..optimizers.processes import ALONE, Processes
from ..settings.store import StoreConfig
from .folder import RunFolder
from .kept.steps import told_once

log = logging.getLogger(__name__)

Describe = Callable[[Mapping[str, Mapping[str, Tensor]]], Mapping[str, str]]

SHARE = 0.01  # of the time that writing may take
LEAST_SECONDS = 30.0  # between two states: what a crash may cost anyway
CHEAP_SECONDS = 0.25  # for the state of the last step, whatever share of a short run that is
EXPECTED_BYTES_PER_SECOND = 2e8  # of a disk, until the first state was written


class StateSaver:
    """Writes states of one training into its folder.

    A state that cannot be written ends nothing: the training goes on, with a warning. Of several
    processes the first one writes; those that train parts of weights must all do what it does.

    Args:
        describe: gives the metadata that a result would have now, for the learned tokens that are
            trained with it.
    """

    def __init__(
        self,
        folder: RunFolder,
        store: StoreConfig,
        training: Training,
        processes: Processes = ALONE,
        describe: Describe = lambda tokens: {},
    ) -> None:
        self._folder, self._store, self._training = folder, store, training
        self._describe = describe
        self._processes = processes
        self._takes_part = processes.is_first or training.is_shared_out
        self._began_at = self._written_at = time.monotonic()
        self._written_step = training.done
        self._cost_seconds = _guessed_bytes(training.parameters) / EXPECTED_BYTES_PER_SECOND

    def after_step(self, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Write the state if it is time for it."""
        if self._is_due():
            self.save(metrics)

    def at_end(self, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Write the last state, for runs that go on with more steps; not if it costs too much."""
        seconds = time.monotonic() - self._began_at
        cheap = self._cost_seconds <= max(CHEAP_SECONDS, SHARE * seconds)
        if self._all_do(bool(self._store.state_every) or cheap):
            self.save(metrics)
        elif self._store.keep_states and self._processes.is_first:
            log.info(
                "Personalize: no state of the last step was written, since that would take about "
                "%.0f s; more steps go on from an earlier one. state_every writes it in any case.",
                self._cost_seconds,
            )

    @property
    def goes_on_from(self) -> int:
        """The step from which the run can go on later, as what is on disk has it; 0 is anew."""
        return max((s for s in self._folder.state_steps if s <= self._training.done), default=0)

    def save(self, metrics: Sequence[Mapping[str, Any]], ended: bool = False) -> None:
        """Write the state now, unless it is on disk already or none is wanted.

        Args:
            ended: by Cancel or an error, so that someone waits for it: the log says what it is.
        """
        wanted = self._store.keep_states and self._takes_part
        if not wanted or self._written_step == self._training.done:
            return
        started, step = time.monotonic(), self._training.done
        state = self._training.state()  # no copies, but of what is shared out
        learned = told_once(self._training.learned(), state["parameters"])
        told = dict(self._describe(learned["tokens"])) if learned else {}
        state["learned"] = {**learned, "metadata": told}
        self._written_step = step
        if not self._processes.is_first:
            return
        num_bytes = state_bytes(state)
        if ended:
            log.info(
                "Personalize: ended at step %d; the state is written from which the run can go on: "
                "weights and what goes with them, %s.",
                step, _size(num_bytes),
            )  # fmt: skip
        try:
            self._check_disk(num_bytes)
            self._folder.write_state(state, metrics, self._store.keep_states)
            self._folder.write_metrics(metrics)
        except SaveError as error:
            but = "" if ended else "the training goes on, but "
            log.warning("Personalize: %sit cannot go on from step %d later. %s", but, step, error)
        self._written_at = time.monotonic()
        self._cost_seconds = self._written_at - started

    def _check_disk(self, num_bytes: int) -> None:
        """See that so many bytes have room beside the states that are there.

        Raises:
            SaveError: they have none.
        """
        try:
            free = shutil.disk_usage(self._folder.path).free
        except OSError:
            return  # writing tells what is wrong, or makes the folder anew
        if free < num_bytes:
            raise SaveError(
                f"Its state needs {_size(num_bytes)}, and the disk has {_size(free)} left.\nFree "
                "some space, lower old_states_gb, or set keep_states to 0."
            )

    def _all_do(self, it: bool) -> bool:
        """What the first of the processes does, where the others must do it with it."""
        if not self._training.is_shared_out:
            return it
        return self._processes.any(it and self._processes.is_first)

    def _is_due(self) -> bool:
        if every := self._store.state_every:
            return self._training.done % every == 0
        pause = max(LEAST_SECONDS, self._cost_seconds / SHARE)
        return self._all_do(time.monotonic() - self._written_at >= pause)


def state_bytes(state: Any) -> int:
    """What the tensors of a state take, in memory and in its file."""
    kept = {tensor.untyped_storage().data_ptr(): tensor for tensor in _tensors(state)}
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _guessed_bytes(parameters: list[nn.Parameter]) -> int:
    """The weights, and two numbers for each in the optimizer."""
    return 3 * sum(p.numel() * p.element_size() for p in parameters)


def make_room_for_states(
    parent: Path, limit_bytes: float, keep: Path, needed: Collection[Path] = ()
) -> list[Path]:
    """Delete the states of the oldest runs in `parent` until the rest take at most `limit_bytes`.

    Args:
        keep: the run that is at work; it neither counts nor loses anything.
        needed: other runs of which this is true, such as the one that it begins with.

    Returns:
        The runs that can no longer go on; their results stay.
    """
    runs = []
    for folder in parent.glob("*/state"):
        files = list(folder.glob("*.pt"))
        if files and folder.parent not in (keep, *needed):
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
