"""The settings of validation: pictures that are not trained but watched, and what follows from it.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from .field import Settings, setting

LAST, BEST = HAND_OUT = ("last step", "best step")


@dataclass(frozen=True)
class ValidationConfig(Settings):
    """Which pictures are held out, how often they are looked at, and who decides the end."""

    held_out: float = setting(
        0.0,
        "Share of the pictures that are not trained: their loss, always at the same noise, shows "
        "when the others are only learned by heart. At least one picture; 0 is off. Or wire "
        "pictures of their own into validation_dataset.",
        min=0.0, max=0.9, step=0.05,
    )  # fmt: skip
    validate_every: int = setting(
        50, "Steps between two validations on the held-out pictures.", min=1, max=1_000_000,
    )  # fmt: skip
    hand_out: str = setting(
        LAST,
        "What the node gives: what was learned at the last step, or at the one where the held-out "
        "pictures had the lowest loss (keeps a copy of it in RAM).",
        choices=HAND_OUT,
    )
    patience: int = setting(
        0,
        "Ends the training when so many validations in a row brought no lower loss; 0 never does.",
        min=0, max=100_000,
    )  # fmt: skip
