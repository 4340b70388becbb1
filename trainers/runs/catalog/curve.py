"""A run's metrics, read whatever is in them, and what a list shows of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from .reading import METRICS_JSONL, MOST_METRICS_BYTES, UnreadableError, read_bytes

# A line as trainings write it: nothing but numbers.
LINE = re.compile(
    rb'^\{"step": (\d{1,15}), "num_steps": (\d{1,15}), "loss": (-?\d+\.?\d*(?:e[-+]?\d+)?)'
    rb'(?:, "[a-z_]+": [-+.\deE]+)*\}$',
    re.MULTILINE,
)
START, END = b'{"step": ', b"}\n"
SAMPLES = 8  # of a stretch
SPARKS = 60  # points of a sparkline
DIGITS = 5
LARGEST_STEP = 10**12

Points = list[list[float]]  # [step, value]


@dataclass
class Curve:
    """What metrics.jsonl says.

    Attributes:
        loss, validation: [step, value], by step.
        planned: how many steps the run was to have, as its last row has it; 0 if unknown.
        problems: what cannot be read, in sentences.
    """

    loss: Points = field(default_factory=list)
    validation: Points = field(default_factory=list)
    planned: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return int(self.loss[-1][0]) if self.loss else 0


@dataclass(frozen=True)
class Summary:
    """What a list shows of a curve.

    Attributes:
        steps, planned, problems: as of a Curve.
        sparks: see `sparkline`.
        last: the last loss; None where there is none.
    """

    steps: int = 0
    planned: int = 0
    sparks: Sequence[float] = ()
    last: float | None = None
    problems: Sequence[str] = ()


def read_summary(folder: Path) -> Summary:
    """What a list shows of the curve of the run in `folder`."""
    try:
        content = read_bytes(folder / METRICS_JSONL, MOST_METRICS_BYTES)
    except FileNotFoundError:
        return Summary()
    except UnreadableError as error:
        return Summary(problems=[str(error)])
    return _quick(content) or summary_of(_curve(content))


def _quick(content: bytes) -> Summary | None:
    """The summary of a file as trainings write it; None of any other.

    Of long ones at most SAMPLES lines of each stretch are read, evenly spread: pages ask for
    hundreds of runs while a training wants the processor.
    """
    lines = content.splitlines()
    count = len(lines)
    whole = content.startswith(START) and content.count(b"\n" + START) == count - 1
    if not whole or content.count(END) != count:
        return None
    ends, places = _layout(count)
    rows = LINE.findall(b"\n".join([lines[place] for place in places]))
    if len(rows) < len(places):
        return None
    steps, losses = [int(row[0]) for row in rows], [float(row[2]) for row in rows]
    planned = int(rows[-1][1])
    # Trainings leave no step out, so those between are right as well.
    if steps != [steps[-1] - places[-1] + place for place in places] or steps[0] < 1:
        return None
    if not math.isfinite(sum(losses)) or not 0 < max(planned, steps[-1]) < LARGEST_STEP:
        return None
    return Summary(steps[-1], planned, _means(losses, ends), short(losses[-1]))


@lru_cache(256)  # many runs are of one length
def _layout(count: int) -> tuple[list[int], list[int]]:
    """Where so many lines are cut into stretches, and which of them are read."""
    parts = min(SPARKS, count)
    ends = [count * part // parts for part in range(parts + 1)]
    return ends, [place for begin, end in pairwise(ends) for place in _spread(begin, end)]


def _spread(begin: int, end: int) -> list[int]:
    """At most SAMPLES places from begin to before end, evenly; always the last."""
    count = min(SAMPLES, end - begin)
    return [begin + (end - begin) * (one + 1) // count - 1 for one in range(count)]


def _means(losses: Sequence[float], ends: Sequence[int]) -> list[float]:
    """The mean of each stretch, of which `losses` has what `_spread` chose."""
    means, at = [], 0
    for begin, end in pairwise(ends):
        count = min(SAMPLES, end - begin)
        means.append(short(sum(losses[at : at + count]) / count))
        at += count
    return means


def summary_of(curve: Curve) -> Summary:
    """The same of a curve."""
    losses = [loss for _, loss in curve.loss]
    last = short(losses[-1]) if losses else None
    return Summary(curve.steps, curve.planned, sparkline(losses), last, curve.problems)


def read_curve(folder: Path) -> Curve:
    """The curve of the run in `folder`: all rows that can be read."""
    try:
        return _curve(read_bytes(folder / METRICS_JSONL, MOST_METRICS_BYTES))
    except FileNotFoundError:
        return Curve()
    except UnreadableError as error:
        return Curve(problems=[str(error)])


def _curve(content: bytes) -> Curve:
    lines = content.splitlines()
    rows, broken = _parsed(lines)
    curve = curve_of(rows)
    if lost := broken + len(rows) - len(curve.loss):
        of = f"{lost:,} of {len(lines):,} lines of {METRICS_JSONL}"
        curve.problems.append(f"{of} cannot be read and are left out.")
    return curve


def curve_of(rows: Iterable[Any]) -> Curve:
    """The curve that rows of metrics.jsonl make; rows that make no sense are left out."""
    curve, last = Curve(), 0
    planned = None
    isfinite = math.isfinite
    for row in rows:
        try:
            step, loss = row["step"], row["loss"]
            if type(step) is not int or not last < step < LARGEST_STEP or not isfinite(loss):
                continue
            held = row.get("validation")
        except (TypeError, KeyError, AttributeError, OverflowError):
            continue
        last, planned = step, row.get("num_steps")
        curve.loss.append([step, float(loss)])
        if held is not None and _is_number(held):
            curve.validation.append([step, float(held)])
    if type(planned) is int and 0 < planned < LARGEST_STEP:
        curve.planned = planned
    return curve


def _parsed(lines: Sequence[bytes]) -> tuple[list[Any], int]:
    """The values of lines of JSON, and how many are none."""
    try:  # a whole file at once takes half the time
        rows = json.loads(b"[%b]" % b",".join(lines))
        if len(rows) == len(lines):
            return rows, 0
    except (ValueError, RecursionError):
        pass
    rows = list(_line_by_line(lines))
    return rows, len(lines) - len(rows)


def _line_by_line(lines: Iterable[bytes]) -> Iterator[Any]:
    for line in lines:
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            continue


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def sparkline(losses: Sequence[float]) -> list[float]:
    """The means of at most SPARKS stretches of a curve, which differ in length by one at most."""
    return stretches([0.0, *accumulate(losses)])


def stretches(sums: Sequence[float]) -> list[float]:
    """The same, from the sums of the first 0, 1, 2, ... losses."""
    count = len(sums) - 1
    parts = min(SPARKS, count)
    ends = [count * part // parts for part in range(parts + 1)] if parts else []
    return [short((sums[end] - sums[begin]) / (end - begin)) for begin, end in pairwise(ends)]


def short(number: float) -> float:
    """The number with few digits, since a list has thousands of them."""
    return float(f"{number:.{DIGITS}g}")


class Growing:
    """The sparkline of a training at work, at no more cost than that of its new steps."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = rows
        self._sums = [0.0]

    def sparkline(self) -> list[float]:
        for row in self.rows[len(self._sums) - 1 :]:
            self._sums.append(self._sums[-1] + row["loss"])
        return stretches(self._sums)
