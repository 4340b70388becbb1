"""One process of a headless training that counts what it exchanges with others; see scaling.py.

    python -m benchmarks.counted FILE RUN.json ... [arguments of the command]

Counted is at torch's own collectives, whoever calls them: how many, and the bytes that are given to
each. What a link carries depends on how they are done; a ring carries 2 (n - 1) / n of it from each
of n processes. FILE.<rank> gets a line of JSON for each training.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

PACK = Path(__file__).resolve().parent.parent
COLLECTIVES = ("all_reduce", "broadcast")


class Meter:
    """What was exchanged so far, and where each step of each training began.

    Attributes:
        rows: a training each: its name, bytes of what it trains, and marks of clock's seconds, CPU
            seconds, bytes and calls, at the beginning of every step and at the end.
    """

    def __init__(self) -> None:
        self.bytes = self.calls = 0
        self.rows: list[dict[str, Any]] = []

    def mark(self) -> list[float]:
        return [time.perf_counter(), time.process_time(), self.bytes, self.calls]

    def counting(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(collective)
        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.bytes += tensor.numel() * tensor.element_size()
            self.calls += 1
            return collective(tensor, *args, **kwargs)

        return counted

    def watching(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(step)
        def watched(training: Any) -> Any:
            if not self.rows or self.rows[-1]["of"] is not training:
                trained = sum(p.numel() * p.element_size() for p in training.parameters)
                self.rows.append({"of": training, "trained_bytes": trained, "marks": []})
            self.rows[-1]["marks"].append(self.mark())
            return step(training)

        return watched

    def steps(self, row: dict[str, Any]) -> dict[str, Any]:
        """Seconds, CPU seconds, bytes and calls of every step but the last, from mark to mark."""
        columns = zip(*row["marks"], strict=True)
        names = ("seconds", "cpu_seconds", "bytes", "calls")
        return {"trained_bytes": row["trained_bytes"]} | {
            name: [after - before for before, after in itertools.pairwise(column)]
            for name, column in zip(names, columns, strict=True)
        }


def main() -> int:
    file = sys.argv.pop(1)
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("start", PACK / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    start = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(start)
    loop = importlib.import_module(f"{start.load()}.trainers.loop")
    meter = Meter()
    for name in COLLECTIVES:
        setattr(distributed, name, meter.counting(getattr(distributed, name)))
    loop.Training.step = meter.watching(loop.Training.step)
    code = int(start.main())
    lines = [json.dumps(meter.steps(row)) for row in meter.rows]
    Path(f"{file}.{os.environ.get('RANK', '0')}").write_text("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
