"""The settings of previews: pictures that a training samples on its way.

Nothing in them changes what is learned. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from .field import Settings, setting

LATENT_STEP_PX = 8


@dataclass(frozen=True)
class PreviewConfig(Settings):
    """What is sampled and when; sampler and scheduler are the host's."""

    prompts: str = setting(
        "a photo of sks dog",
        "One prompt a line; each gives one picture.",
        advanced=False,
    )
    every_steps: int = setting(
        100, "Steps between two previews. The last step has one too, if the run gets there.",
        min=1, max=1_000_000, advanced=False,
    )  # fmt: skip
    width: int = setting(
        512, "Width of each picture in pixels; that of the training is best.",
        min=64, max=2048, step=LATENT_STEP_PX, advanced=False,
    )  # fmt: skip
    height: int = setting(
        512, "Height of each picture in pixels; that of the training is best.",
        min=64, max=2048, step=LATENT_STEP_PX, advanced=False,
    )  # fmt: skip
    steps: int = setting(
        20, "Sampling steps. An overfitted model looks better with DDIM and 100.",
        min=1, max=1000, advanced=False,
    )  # fmt: skip
    cfg: float = setting(
        7.0, "How strictly the prompts are followed.", min=0.0, max=100.0, step=0.5, advanced=False,
    )  # fmt: skip
    seed: int = setting(
        0, "The same in every preview, so that only the training makes the difference.",
        min=0, max=2**63 - 1, advanced=False,
    )  # fmt: skip
    sampler_name: str = "euler"
    scheduler: str = "normal"

    def problems(self) -> list[str]:
        return [] if self.lines else ["prompts is empty; allowed: one prompt a line"]

    @property
    def lines(self) -> list[str]:
        """The prompts."""
        return [line.strip() for line in self.prompts.splitlines() if line.strip()]

    def is_due(self, step: int, last: int) -> bool:
        """Whether there is a preview after this step, counted from 1."""
        return step % self.every_steps == 0 or step == last
