"""Trainings of two processes that have but parts of the denoiser's weights; one of the two."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from tests import together
from tests.together import PRIOR, Outcome
from trainers.optimizers.processes import Processes, join
from trainers.optimizers.sharded import is_shared_out

PLAIN = {"weights": "fp32", "fused_backward": False}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": together.CASES["lora"],
    "output preservation": together.CASES["output preservation"],
    "pissa": ("lora", {"initialization": "pissa"}),
    "dora": (
        "lora",
        {"variant": "dora", "train_text_encoder": True, "gradient_checkpointing": True},
    ),
    "dreambooth": (
        "dreambooth",
        {**PLAIN, "train_text_encoder": True, "text_encoder_stop_step": 4, "ema_decay": 0.9}
        | {"gradient_accumulation": 2, **PRIOR},
    ),
    "checkpointed": (
        "dreambooth",
        {**PLAIN, "gradient_checkpointing": True, "max_grad_norm": 0.01, "held_out": 0.4}
        | {"validate_every": 2, "hand_out": "best step"},
    ),
}
GO_ON = ("pissa", "dreambooth")  # whose states are read


def choose() -> None:
    """Let tests.together know these cases."""
    together.CASES |= {f"sharded {case}": facts for case, facts in CASES.items()}


def held(processes: Processes) -> tuple[int, int]:
    """How many numbers of blocks this process has, and how many of the rest."""
    _, job = together.training("sharded dreambooth", processes)
    numbers = list(job.parts.denoiser.parameters())
    parts = sum(p.to_local().numel() for p in numbers if is_shared_out(p))
    return parts, sum(p.numel() for p in numbers if not is_shared_out(p))


def main(folder: Path) -> None:
    """What one of the two does."""
    together.damp()
    choose()
    processes = join(cpu=True, shard=True)
    outcomes: Outcome = {"held": held(processes)}
    for case in CASES:
        outcomes[case] = together.finished(*together.training(f"sharded {case}", processes))
    outcomes["half"] = {case: together.half(f"sharded {case}", processes) for case in GO_ON}
    outcomes["resumed"] = {
        case: together.resumed(
            f"sharded {case}", (folder / f"{case}.state").read_bytes(), processes
        )
        for case in GO_ON
    }
    outcomes["overflowing"] = together.overflowing("sharded checkpointed", processes)
    torch.save(outcomes, folder / f"{processes.rank}.pt")
    together.lose_one(processes, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
