"""Where weights and activations stay while a model trains, and what is done where memory is short.

None of this changes what a run learns, but for rounding, so a run is the same run whatever is
chosen here. Imports no torch. Sources: K = kohya's musubi-tuner and sd-scripts, O = OneTrainer,
S = SimpleTuner.
"""

from __future__ import annotations

from dataclasses import dataclass

from .field import Settings, setting

AUTO = "auto"
DEVICE, RAM = PLACES = ("device", "RAM")
NONE, HALF, ALL = CHECKPOINTED = ("none", "half", "all")
REFUSE, WARN, OFF = PLANS = ("refuse", "warn", "off")


@dataclass(frozen=True)
class MemoryConfig(Settings):
    """What a training keeps on its device, and what it keeps in RAM or computes again."""

    weights_in: str = setting(
        AUTO,
        "Where frozen weights stay. device: all of them on the GPU. RAM: in RAM, and each block's "
        "come to the GPU a block ahead of its work: slower, for models that are larger than the "
        "GPU. auto: device if that fits, then with checkpointing, then RAM.",
        choices=(AUTO, *PLACES), source="K blocks_to_swap; O layer offload fraction",
    )  # fmt: skip
    checkpointing: str = setting(
        AUTO,
        "How many blocks compute their activations again in the backward pass: none, every second "
        "one, or all. auto: all if gradient_checkpointing is on or activations_in is RAM; else "
        "none, or as many as it takes to fit.",
        choices=(AUTO, *CHECKPOINTED), source="S gradient_checkpointing_interval",
    )  # fmt: skip
    activations_in: str = setting(
        DEVICE,
        "Where what checkpointed blocks are given waits for the backward pass. RAM: less memory "
        "for many blocks and large pictures, a little slower; with checkpointing auto all blocks "
        "are checkpointed.",
        choices=PLACES, source="O activation offloading",
    )  # fmt: skip
    memory_plan: str = setting(
        REFUSE,
        "What is done where the plan of a run's memory, made before anything is encoded, is above "
        "what the GPU has free. refuse: the run ends with settings that fit. warn: it is tried. "
        "off: no plan is made, and auto takes the device.",
        choices=PLANS,
    )

    def problems(self) -> list[str]:
        found = []
        if self.weights_in == RAM and self.checkpointing in (NONE, HALF):
            found.append(
                f"checkpointing is '{self.checkpointing}', but weights_in 'RAM' needs every block "
                "computed again, since its weights are gone by then; allowed: auto or all"
            )
        if self.activations_in == RAM and self.checkpointing == NONE:
            found.append(
                "activations_in is 'RAM', but checkpointing 'none' keeps what blocks compute, and "
                "that stays; allowed: device, or checkpointing auto, half or all"
            )
        return found
