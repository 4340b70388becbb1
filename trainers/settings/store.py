"""How a run is kept on disk: what is used of one that is there, and how often its state is written.

None of this changes what a run learns, so a run is the same run whatever is chosen here; but for
the state of another run that it begins with, which its facts name by that run's fingerprint (see
trainers/runs/kept/resumed.py). Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from .field import Settings, setting

NOTHING, TENSORBOARD = LOGS = ("nothing", "tensorboard")
USE, CONTINUE, ANEW = IF_RUN_EXISTS = ("use it", "continue if stopped", "start anew")


@dataclass(frozen=True)
class StoreConfig(Settings):
    """What is kept of a run, and what is made of one that was kept."""

    if_run_exists: str = setting(
        USE,
        "When the same pictures, base model and settings were trained before. use it: a finished "
        "or stopped run is handed out at once, an interrupted one goes on. continue if stopped: "
        "one that was ended by Stop and keep goes on too. start anew: train from the beginning.",
        choices=IF_RUN_EXISTS,
    )
    state_every: int = setting(
        0,
        "Steps between two states on disk, from which a run goes on after a crash or Cancel. 0: "
        "as often as it costs no more than a hundredth of the time.",
        min=0, max=1_000_000,
    )  # fmt: skip
    keep_states: int = setting(
        2,
        "How many of the last states are kept. 0 writes none: then nothing can go on, and more "
        "steps start from the beginning.",
        min=0, max=100,
    )  # fmt: skip
    old_states_gb: float = setting(
        20.0,
        "Room for the states of earlier runs, in GB; beyond that the oldest go. Results are never "
        "deleted.",
        min=0.0, max=100_000.0, step=1.0,
    )  # fmt: skip
    log_with: str = setting(
        NOTHING,
        "Also writes loss, learning rate and gradient length for TensorBoard, into the folder of "
        "the run; needs the package tensorboard.",
        choices=LOGS,
    )
    resume_from: str = setting(
        "",
        "A run in output/personalize to begin with, by its folder's name: a new run with the "
        "settings of this graph goes on from one of its states, weights, optimizer and step "
        "counter. What its states are made of must be the same: method, base model, layers, "
        "ranks, optimizer. Steps count from the beginning of that run. Empty: begin anew.",
        before="",
    )
    resume_step: int = setting(
        0,
        "The step of the state in resume_from that the run begins with. 0: its last one.",
        min=0, max=1_000_000, before=0,
    )  # fmt: skip

    def problems(self) -> list[str]:
        if self.resume_step and not self.resume_from.strip():
            return [
                f"resume_step is {self.resume_step}, but resume_from is empty; allowed: 0, or a "
                "run in resume_from"
            ]
        return []
