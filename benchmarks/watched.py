"""Runs somebody else's training script and tells what its steps cost.

    python benchmarks/watched.py FILE SCRIPT [arguments of the script]

FILE gets a JSON object: the seconds from the end of one update to the end of the next, and the most
memory that tensors took on a GPU, the making of the model included. Scripts ask the device for the
loss of every step, so what is between two updates is all of a step. Imports torch alone: a script
may have a Python of its own.
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


def main() -> None:
    file, script = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    ends: list[float] = []
    register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    sys.argv = [str(script), *sys.argv[3:]]
    sys.path[0] = str(script.parent)  # as Python does for a script
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:  # its steps count, whatever comes of what it writes
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        seconds = [after - before for before, after in itertools.pairwise(ends)]
        file.write_text(json.dumps({"seconds": seconds, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
