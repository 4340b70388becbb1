"""What class images are made, and how.

Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .dataset import STEP_PX
from .field import Settings, setting


@dataclass(frozen=True)
class ClassImagesConfig(Settings):
    """What class images are made, and how; sampler and scheduler are the host's."""

    prompt: str = setting(
        "a photo of a dog",
        "The class of the subject, without the rare word for its name. It is the caption of every "
        "picture too.",
        advanced=False,
    )  # fmt: skip
    negative_prompt: str = setting("", "What the pictures should not show.", advanced=False)
    count: int = setting(
        100, "Class images in the dataset; those that are there already are not made again.",
        min=1, max=100_000, advanced=False, source="diffusers 100",
    )  # fmt: skip
    width: int = setting(
        512, "Width of each picture in pixels; use the training's resolution.",
        min=STEP_PX, max=2048, step=STEP_PX, advanced=False,
    )  # fmt: skip
    height: int = setting(
        512, "Height of each picture in pixels; use the training's resolution.",
        min=STEP_PX, max=2048, step=STEP_PX, advanced=False,
    )  # fmt: skip
    steps: int = setting(
        25, "Sampling steps of each picture.", min=1, max=1000, advanced=False,
        source="nitrosocke's guide: 30; diffusers 50",
    )  # fmt: skip
    cfg: float = setting(
        7.5, "How closely pictures follow the prompt (classifier-free guidance).",
        min=0.0, max=100.0, step=0.1, advanced=False, source="diffusers 7.5",
    )  # fmt: skip
    seed: int = setting(
        0, "Seed of the first picture; the others have the seeds that follow.",
        min=0, max=2**63 - 1, advanced=False,
    )  # fmt: skip
    batch_size: int = setting(
        4, "Pictures made at once. More is faster on a large GPU.", min=1, max=256,
    )  # fmt: skip

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.count)

    @property
    def resolution_px(self) -> int:
        """The training size at which the pictures keep theirs."""
        return math.ceil(math.sqrt(self.width * self.height) / STEP_PX) * STEP_PX
