"""Runs somebody else's training script and tells what its steps cost.

    python benchmarks/watched.py FILE SCRIPT [arguments of the script]

FILE gets a JSON object: the seconds from the end of one update to the end of the next, by the clock
and of the CPU, and the most memory: what tensors took on a GPU, the making of the model included;
without one what was resident from the first update to the last (Linux). Scripts ask the device for
the loss of every step, so what is between two updates is all of a step. Imports torch alone: a
script may have a Python of its own.
"""

from __future__ import annotations

import itertools
import json
import runpy
import sys
import time
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


def peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    file, script = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    ends: list[tuple[float, float]] = []
    peak = 0  # not asked at the end: scripts may load the model once more

    def note(*_: object) -> None:
        nonlocal peak
        peak = peak_bytes()
        if not ends and not torch.cuda.is_available():
            Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: the peak counts from here
        ends.append((time.perf_counter(), time.process_time()))

    register_optimizer_step_post_hook(note)
    sys.argv = [str(script), *sys.argv[3:]]
    sys.path[0] = str(script.parent)  # as Python does for a script
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:  # its steps count, whatever comes of what it writes
        pairs = list(itertools.pairwise(ends))
        found = {
            "seconds": [after[0] - before[0] for before, after in pairs],
            "cpu_seconds": [after[1] - before[1] for before, after in pairs],
            "peak_bytes": peak,
        }
        file.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
