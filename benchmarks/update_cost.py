"""What updating in the backward pass costs a step beside the arithmetic: Python and launches.

    python -m benchmarks.update_cost                # all optimizers
    python -m benchmarks.update_cost --against DIR  # another checkout's beside each of ours

The weights of SD1.5's UNet, as many as there are, each a sixteen-thousandth of its size, and the
pieces in which they are updated shrunk with them. So there are as many updates as at full size and
hardly a number in them. Counted is the CPU time of a step, the least of many, less that of the
backward pass alone. Beside it stands how much more that is than what the library's own optimizer
takes to update the same weights in fp32, all at once after the backward pass. One thread. Exit code
1 if that is more than promised.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.running import BEFORE, Limit, add_against, checked, conclude
from tests.checkpoints import SD15_UNET
from tests.host import ROOT
from trainers.optimizers import per_parameter
from trainers.optimizers.factory import clip_gradients, make_optimizer, sum_gradients
from trainers.optimizers.processes import ALONE
from trainers.settings.training import TrainingConfig

SHRUNK = 2**14
MOST_MS = 15.0
OPTIMIZERS = ("adamw", "adamw_8bit", "lion", "adafactor")
HELD_IN = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Contender(NamedTuple):
    """An optimizer over weights of a dtype, in the backward pass or after it."""

    optimizer: str
    weights: str
    fused: bool

    @property
    def title(self) -> str:
        where = "fused" if self.fused else "all at once"
        return f"{self.optimizer}, {self.weights}, {where}"


CONTENDERS = [
    Contender(optimizer, *how)
    for optimizer in OPTIMIZERS
    for how in (("fp32", False), ("fp32", True), ("bf16", True))
]


class Given(torch.autograd.Function):
    """Hands a row through; its parameter gets a gradient that is there already."""

    @staticmethod
    def forward(ctx: Any, row: Tensor, parameter: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return row.view_as(row)

    @staticmethod
    def backward(ctx: Any, coming: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        return coming, ctx.gradient.clone(), None


def tiny_weights(dtype: torch.dtype) -> list[nn.Parameter]:
    """The parameters of SD1.5's UNet, matrices as matrices, but tiny."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15_UNET)
    return [nn.Parameter(torch.randn(tiny(p.shape)).to(dtype)) for p in unet.parameters()]


def tiny(shape: torch.Size) -> tuple[int, ...]:
    numel = math.ceil(shape.numel() / SHRUNK)
    return (numel,) if len(shape) == 1 else (2, math.ceil(numel / 2))


def run_one(contender: Contender, repeats: int) -> float:
    """Milliseconds of a step beside its backward pass."""
    weights = tiny_weights(HELD_IN[contender.weights])
    gradients = [torch.randn_like(weight) for weight in weights]

    def backward() -> None:
        row = torch.zeros(1, requires_grad=True) * 1
        for weight, gradient in zip(weights, gradients, strict=True):
            row = Given.apply(row, weight, gradient)
        row.sum().backward()

    def alone() -> None:
        backward()
        for weight in weights:
            weight.grad = None

    without = fastest(alone, repeats)
    groups = [{"name": "denoiser", "params": weights, "lr": 1e-5}]
    settings = TrainingConfig(optimizer=contender.optimizer)
    optimizer = make_optimizer(groups, settings, contender.fused)

    def step() -> None:
        backward()
        sum_gradients(optimizer, weights, ALONE)
        clip_gradients(optimizer, weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return 1000 * (fastest(step, repeats) - without)


def fastest(what: Callable[[], None], repeats: int) -> float:
    """CPU seconds of the fastest of some calls, after two."""
    found = []
    for _ in range(repeats + 2):
        began = time.process_time()
        what()
        found.append(time.process_time() - began)
    return min(found[2:])


def run_all(optimizers: Sequence[str], repeats: int) -> dict[str, float]:
    """As `run_one`, by title."""
    torch.set_num_threads(1)
    per_parameter.PIECE //= SHRUNK
    return {c.title: run_one(c, repeats) for c in CONTENDERS if c.optimizer in optimizers}


def measure(asked: argparse.Namespace, tree: Path) -> dict[str, float]:
    """As `run_all`, in a process of its own that has the trainers of `tree`."""
    command = [sys.executable, __file__, "--run", "--repeats", str(asked.repeats)]
    command += ["--only", *asked.only]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"It failed in {tree}:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_all(asked: argparse.Namespace) -> list[Limit]:
    """Prints a line for each contender; what is promised of them."""
    trees = [ROOT, *([asked.against] if asked.against else [])]
    rounds = [[measure(asked, tree) for tree in trees] for _ in range(asked.rounds)]
    found = [{title: min(r[i][title] for r in rounds) for title in rounds[0][i]}
             for i in range(len(trees))]  # fmt: skip
    print(f"{'ms a step':34}{'all':>8}{'beside library':>16}{BEFORE if asked.against else '':>9}")
    limits = []
    for contender in CONTENDERS:
        if contender.optimizer not in asked.only:
            continue
        at_once = Contender(contender.optimizer, "fp32", False).title
        ours, library = found[0][contender.title], found[0][at_once]
        before = f"{found[1][contender.title]:9.1f}" if asked.against else ""
        print(f"{contender.title:34}{ours:8.1f}{ours - library:16.1f}{before}")
        if contender.fused:
            what = f"ms a step, {contender.title}, beside the library's"
            limits.append(Limit(what, ours - library, True, MOST_MS))
    return limits


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument(
        "--repeats", type=int, default=30, help="steps, of which the fastest counts"
    )
    parser.add_argument("--rounds", type=int, default=2, help="processes of each checkout")
    add_against(parser)
    parser.add_argument("--quick", action="store_true", help="to see that it works")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    asked = checked(parser)
    if asked.run:
        print(json.dumps(run_all(asked.only, asked.repeats)))
        return 0
    if asked.quick:
        asked.repeats, asked.rounds = 2, 1
    return conclude(measure_all(asked), asked.quick)


if __name__ == "__main__":
    sys.exit(main())
