"""The settings of pictures that show what was learned: a training's previews, and comparisons.

Nothing in them changes what is learned. Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import SettingsError
from .field import Settings, setting

LATENT_STEP_PX = 8
STRONGEST = 10.0  # an adapter, either way
MOST_CELLS, MOST_CELL_PIXELS = 400, 200 * 2**20  # of a comparison: as an IMAGE they take 2.5 GB


@dataclass(frozen=True)
class PreviewConfig(Settings):
    """What is sampled and when; sampler and scheduler are the host's.

    Attributes:
        control_images: what an edit model makes the pictures from, (h, w, C) in 0..1 each.
    """

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
    control_images: tuple[Any, ...] = ()

    def problems(self) -> list[str]:
        return [] if self.lines else ["prompts is empty; allowed: one prompt a line"]

    @property
    def lines(self) -> list[str]:
        """The prompts."""
        return prompt_lines(self.prompts)

    def check_controls(self, each: int) -> None:
        """Raise SettingsError unless there are control images for all prompts, or none.

        Args:
            each: how many each trained picture has.
        """
        given, lines = len(self.control_images), len(self.lines)
        if given in (0, each, each * lines):
            return
        allowed = "none, since the dataset has none"
        if each:
            allowed = f"{each} for all prompts, or {each * lines}: {each} for each prompt in turn"
        raise SettingsError(
            (f"Preview Settings has {given} control images; allowed: {allowed}",)
        )  # fmt: skip

    def controls_of(self, line: int, each: int) -> tuple[Any, ...]:
        """The control images of a prompt, by its place; see check_controls."""
        start = line * each if len(self.control_images) > each else 0
        return self.control_images[start : start + each]

    def is_due(self, step: int, last: int) -> bool:
        """Whether there is a preview after this step, counted from 1."""
        return step % self.every_steps == 0 or step == last


@dataclass(frozen=True)
class CompareConfig(Settings):
    """What a comparison of adapters shows; the adapters, sampler and scheduler are the host's."""

    strengths: str = setting(
        "0.5, 0.75, 1.0",
        "How strongly each LoRA is applied, to model and clip: numbers with commas between, "
        "a row each. Learned tokens and trained models have one row.",
        advanced=False,
    )
    prompts: str = setting(
        "a photo of sks dog",
        "One prompt a line, a column each. Learned tokens are written as they are.",
        advanced=False,
    )
    negative_prompt: str = setting("", "What the pictures should not show.", advanced=False)
    width: int = setting(
        512, "Width of each picture in pixels; that of the training is best.",
        min=64, max=2048, step=LATENT_STEP_PX, advanced=False,
    )  # fmt: skip
    height: int = setting(
        512, "Height of each picture in pixels; that of the training is best.",
        min=64, max=2048, step=LATENT_STEP_PX, advanced=False,
    )  # fmt: skip
    steps: int = setting(20, "Sampling steps.", min=1, max=1000, advanced=False)
    cfg: float = setting(
        7.0, "How strictly the prompts are followed.", min=0.0, max=100.0, step=0.5, advanced=False,
    )  # fmt: skip
    seed: int = setting(
        0, "The same for each picture, so that only adapter, strength and prompt differ.",
        min=0, max=2**63 - 1, advanced=False,
    )  # fmt: skip
    baseline: bool = setting(True, "Begin with a row of the base, without any adapter.")

    def problems(self) -> list[str]:
        problems = [] if self.lines else ["prompts is empty; allowed: one prompt a line"]
        wrong = [text for text in self._texts if not _is_strength(text)]
        if wrong or not self._texts:
            given = ", ".join(map(repr, wrong)) or "nothing"
            problems.append(
                f"strengths has {given[:80]}; allowed: numbers from {-STRONGEST:g} to "
                f"{STRONGEST:g} with commas between, such as 0.5, 0.75, 1.0"
            )
        return problems

    @property
    def lines(self) -> list[str]:
        """The prompts, each once."""
        return list(dict.fromkeys(prompt_lines(self.prompts)))

    @property
    def strength_values(self) -> list[float]:
        """The strengths, each once."""
        return list(dict.fromkeys(map(float, self._texts)))

    @property
    def _texts(self) -> list[str]:
        return [text.strip() for text in self.strengths.split(",") if text.strip()]

    @property
    def most_rows(self) -> int:
        """Of one comparison."""
        return self._most_cells // len(self.lines)

    @property
    def _most_cells(self) -> int:
        return min(MOST_CELLS, MOST_CELL_PIXELS // (self.width * self.height))

    def check_cells(self, num_rows: int) -> None:
        """Raise SettingsError if so many rows make more cells than one comparison may have."""
        num_cells, most = num_rows * len(self.lines), self._most_cells
        if num_cells > most:
            problem = (
                f"{num_rows} rows by {len(self.lines)} prompts are {num_cells} cells; allowed: "
                f"{most} of {self.width} x {self.height} px; take fewer adapters, strengths or "
                "prompts, or use a second node"
            )
            raise SettingsError((problem,))


def prompt_lines(text: str) -> list[str]:
    """The prompts of a text, one a line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _is_strength(text: str) -> bool:
    try:
        return math.isfinite(value := float(text)) and abs(value) <= STRONGEST
    except ValueError:
        return False
