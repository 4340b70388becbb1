"""The folder of one run: what it was asked, what happened, how to go on, and what was learned.

output/personalize/<method>-<name>-<first 8 of the fingerprint>/
    run.json                       settings, versions, base model, dataset listing, how it went,
                                   when, for how long, in how many processes and by what plan of
                                   memory, its graph, and the state of another run it began with
    metrics.jsonl                  one line a step of its own
    state/00000400.pt              all that step 401 needs, and a result of 400 steps; the last few
    previews/step_00000400_0.png   what the first prompt of the preview gave then
    result-00000400.safetensors    what was learned in 400 steps, one file for each length asked;
                                   00000400.2 and so on where Windows held the one before
    workflow.json                  the graph as the page had it; see kept/workflow.py
    label.json                     what people call it, where they do; see catalog/labels.py

Every file is written whole or not at all, and says itself which run and step it belongs to, so a
killed process, a full disk or an edited run.json costs no more than the steps since the last state.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import safetensors
import torch
from torch import Tensor

from ..data.captions import one_line
from ..data.dataset import Dataset, Picture
from ..settings.run import RunConfig
from ..settings.store import ANEW
from .files import (
    delete,
    flat,
    nested,
    read_tensors,
    save_error,
    save_tensors,
    whole_file,
    write_whole,
)
from .fingerprint import fingerprint_of, mended
from .story import read_metrics, times_of

log = logging.getLogger(__name__)

FORMAT = 2  # of the files, and of all in trainers/ that decides a result; a new one, new runs
PACKAGES = ("torch", "transformers", "peft", "safetensors")
RESULT = re.compile(r"result-(\d{8,})(?:\.(\d+))?\.safetensors")
TRAINING = "training"  # the status of a run at work
MEANT_BY = "personalize.fingerprint"  # metadata: the run that a result belongs to


def run_facts(
    config: RunConfig,
    architecture: str,
    base: Mapping[str, str],
    dataset: Dataset,
    class_dataset: Dataset | None = None,
    validation_dataset: Dataset | None = None,
) -> dict[str, Any]:
    """All that decides a run's result, as run.json stores it.

    Args:
        base: fingerprints of all that is wired in beside the pictures, and what it computes in.
    """
    by_lines = config.objective.enable_wildcard
    return {
        "format": FORMAT,
        **config.as_dict(),
        **mended(config, base.get("computes_in", "")),
        "architecture": architecture,
        "base_model": dict(base),
        "dataset": _listing(dataset, by_lines),
        "class_dataset": _listing(class_dataset, False) if class_dataset else None,
        "validation_dataset": (
            _listing(validation_dataset, by_lines) if validation_dataset else None
        ),
        # Patch releases change no numbers; those of torch and peft between them may.
        "made_with": {name: _release(version) for name, version in _versions().items()},
    }


def _listing(dataset: Dataset, by_lines: bool) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "resolution_px": dataset.resolution_px,
        "fingerprint": dataset.fingerprint(by_lines),
        "pictures": [
            {
                "name": p.name,
                "caption": p.caption if by_lines else one_line(p.caption),
                "bucket_px": p.bucket_px,
                **_controls(p),
            }
            for p in dataset.pictures
        ],
    }


def _controls(picture: Picture) -> dict[str, Any]:
    """Nothing where there are none: such runs are the same as before there were any."""
    if not picture.controls:
        return {}
    listed = [
        {"name": c.name, "size_px": c.size_px, "hash": c.source.digest().hex()}
        for c in picture.controls
    ]
    return {"controls": listed}


def _versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in PACKAGES}


def _release(version: str) -> str:
    return ".".join(version.split(".")[:2])


@dataclass(frozen=True)
class Result:
    """What a run learned.

    Attributes:
        steps: how many it took.
        metadata: of the file.
        tokens: learned tokens that were trained further: rows by token, by text encoder.
        metrics: what happened at each step.
    """

    steps: int
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    tokens: Mapping[str, Mapping[str, Tensor]]
    metrics: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RunFolder:
    """Where one run writes, and finds what it wrote."""

    path: Path
    fingerprint: str

    @classmethod
    def of(cls, parent: Path, name: str, facts: Mapping[str, Any]) -> RunFolder:
        """The folder of the run with these facts; nothing is written yet."""
        fingerprint = fingerprint_of(facts)
        safe = re.sub(r"[^\w.-]+", "_", name).strip("._") or "run"
        return cls(parent / f"{facts['method']}-{safe}-{fingerprint[:8]}", fingerprint)

    @classmethod
    def at(cls, path: Path) -> RunFolder | None:
        """The run in a folder, as its run.json says; None where there is none."""
        fingerprint = cls(path, "").facts.get("fingerprint")
        return None if fingerprint is None else cls(path, str(fingerprint))

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json says; nothing where it cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            told = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
            return told if isinstance(told, dict) else {}
        return {}

    @property
    def previews(self) -> Path:
        """The folder of the run's previews."""
        return self.path / "previews"

    # -- run.json -------------------------------------------------------------

    def describe(self, facts: Mapping[str, Any], **how_it_went: Any) -> None:
        """Write run.json.

        Raises:
            SaveError: it cannot be written.
        """
        anew = facts.get("store", {}).get("if_run_exists") == ANEW
        times = times_of(self.path, how_it_went.get("status") == TRAINING, anew)
        content = {
            "fingerprint": self.fingerprint, **how_it_went, **times, **facts,
            "versions": _versions(),
        }  # fmt: skip
        write_whole(self.path / "run.json", json.dumps(content, indent=2).encode())

    def complete(self, facts: Mapping[str, Any]) -> None:
        """Write those of these facts into run.json that it lacks.

        Raises:
            SaveError: it cannot be written.
        """
        told = self.facts
        if told and facts.keys() - told.keys():
            write_whole(self.path / "run.json", json.dumps({**facts, **told}, indent=2).encode())

    def stopped(self) -> dict[int, int]:
        """Runs that were ended by Stop and keep: the step they ended at, by the steps asked for.

        This alone is read from run.json, which may have been edited: what makes no sense is none.
        """
        with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
            return {int(asked): int(step) for asked, step in self.facts["stopped"].items()}
        return {}

    @contextlib.contextmanager
    def locked(self, wait: Callable[[], None]) -> Iterator[None]:
        """Hold the run, so that no other node or process trains it at the same time.

        The operating system lets it go when a process ends in whatever way.

        Args:
            wait: called a few times a second while another holds it; what it raises ends that.

        Raises:
            SaveError: the folder cannot be written.
        """
        lock = filelock.FileLock(self.path / ".lock")
        while not lock.is_locked:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=0.25)
            except filelock.Timeout:
                wait()
            except OSError as error:
                raise save_error(self.path, 0, error) from error
        try:
            yield
        finally:
            lock.release()

    # -- what was learned -----------------------------------------------------

    def result(self, steps: int) -> Result | None:
        """What this run learned in so many steps, if it has been that far."""
        path = self._result_path(steps, self._result_numbers(steps)[-1])
        try:
            metadata = self._metadata(path)
            if metadata.pop(MEANT_BY, None) != self.fingerprint:
                return None
            tokens_path = self._tokens_path(steps)
            tokens = read_tensors(tokens_path) if tokens_path.exists() else {}
            metrics = read_metrics(self.path, steps)
            return Result(steps, read_tensors(path), metadata, nested(tokens), metrics)
        except FileNotFoundError:
            return None
        except (OSError, safetensors.SafetensorError) as error:
            log.warning("Personalize: '%s' cannot be read (%s); it is made again.", path, error)
            return None

    @property
    def result_steps(self) -> list[int]:
        """The lengths at which there is a result of this run."""
        found = (RESULT.fullmatch(path.name) for path in self.path.glob("result-*"))
        return [n for n in sorted({int(name[1]) for name in found if name}) if self.has_result(n)]

    def has_result(self, steps: int) -> bool:
        """Whether there is such a file of this run; its tensors are not read."""
        path = self._result_path(steps, self._result_numbers(steps)[-1])
        with contextlib.suppress(OSError, safetensors.SafetensorError):
            return self._metadata(path).get(MEANT_BY) == self.fingerprint
        return False

    def write_result(self, result: Result) -> None:
        """Store what was learned, in the dtypes it has, and the record of every step.

        What is there of as many steps is replaced; where it is in use, by a file of the next name.

        Raises:
            SaveError: it cannot be written.
        """
        self.write_metrics(result.metrics)
        if result.tokens:
            save_tensors(self._tokens_path(result.steps), flat(result.tokens), {}, dtype=None)
        metadata = {**result.metadata, MEANT_BY: self.fingerprint}
        *older, newest = self._result_numbers(result.steps)
        path, following = (self._result_path(result.steps, n) for n in (newest, newest + 1))
        save_tensors(path, result.tensors, metadata, dtype=None, instead=following)
        if following.exists():
            older.append(newest)
        delete(self._result_path(result.steps, number) for number in older)

    def drop_results(self, *lengths: int) -> None:
        """Delete what was learned in so many steps; files that are in use stay."""
        for steps in lengths:
            paths = [self._result_path(steps, number) for number in self._result_numbers(steps)]
            delete([self._tokens_path(steps), *paths])

    def write_metrics(self, metrics: Iterable[Mapping[str, Any]]) -> None:
        """Write metrics.jsonl; what a longer result has beyond it stays.

        Raises:
            SaveError: it cannot be written.
        """
        rows = list(metrics)
        last, longest = (rows[-1]["step"] if rows else 0), max(self.result_steps, default=0)
        rows += [row for row in read_metrics(self.path, longest) if row["step"] > last]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_whole(self.path / "metrics.jsonl", lines.encode())

    @staticmethod
    def _metadata(path: Path) -> dict[str, str]:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}

    def _result_numbers(self, steps: int) -> list[int]:
        """Of the files with what was learned in so many steps, the newest last: one, but for those
        that were in use when they were to be replaced. 1 where there is none."""
        found = (RESULT.fullmatch(path.name) for path in self.path.glob(f"result-{steps:08}.*"))
        return sorted(int(name[2] or 1) for name in found if name) or [1]

    def _result_path(self, steps: int, number: int) -> Path:
        return self.path / f"result-{steps:08}{f'.{number}' if number > 1 else ''}.safetensors"

    def _tokens_path(self, steps: int) -> Path:
        return self.path / f"result-{steps:08}.tokens.safetensors"

    # -- how to go on ---------------------------------------------------------

    def write_state(
        self, state: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], keep: int
    ) -> None:
        """Store what `Training.state` gave, with the record up to it; then drop old states.

        Those that are in use, which Windows keeps, go with the next one.

        Raises:
            SaveError: it cannot be written; the states before stay.
        """
        content = {"fingerprint": self.fingerprint, "state": state, "metrics": list(metrics)}
        with whole_file(self.path / "state" / f"{state['step']:08}.pt") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # torch hides a full disk behind its own error
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
        delete(self._states()[keep:])

    def state(self, at_most: int) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """The last state of at most so many steps that can be read, and the record up to it."""
        for path in self._states():
            if found := self._read_state(path, at_most):
                return found
        return None

    def state_of(
        self, step: int, mapped: bool = False
    ) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """The same of exactly this step.

        Args:
            mapped: tensors are read when they are used, and hold the file until they are gone.
        """
        path = self.path / "state" / f"{step:08}.pt"
        return self._read_state(path, step, mapped) if path.exists() else None

    def _read_state(
        self, path: Path, at_most: int, mapped: bool = False
    ) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        try:
            if int(path.stem) > at_most:
                return None
            # Nothing but tensors and plain values is ever unpacked: a file runs no code.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            if content["fingerprint"] == self.fingerprint:
                return content["state"], content["metrics"]
            log.warning("Personalize: the state '%s' is another run's; it is left out.", path)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, *_SHAPE) as error:
            log.warning(
                "Personalize: the state '%s' is damaged (%s); going on from the one before.",
                path, str(error).splitlines()[0] if str(error) else type(error).__name__,
            )  # fmt: skip
        return None

    @property
    def state_steps(self) -> list[int]:
        """The steps that the run can go on from."""
        return sorted(int(path.stem) for path in self._states() if path.stem.isdecimal())

    def drop_states(self) -> None:
        """Delete every state."""
        shutil.rmtree(self.path / "state", ignore_errors=True)

    def _states(self) -> list[Path]:
        """Newest first."""
        return sorted((self.path / "state").glob("*.pt"), reverse=True)


_SHAPE = (KeyError, TypeError, ValueError)  # of a file that is whole, but none of ours
