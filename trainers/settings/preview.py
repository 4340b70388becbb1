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


# What all of these have alike; a field belongs to one class, so each has its own.


def _side(name: str) -> Any:
    told = f"{name} of each picture in pixels; that of the training is best."
    return setting(512, told, min=64, max=2048, step=LATENT_STEP_PX, advanced=False)


def _steps(told: str) -> Any:
    return setting(20, told, min=1, max=1000, advanced=False)


def _cfg() -> Any:
    told = "How strictly the prompts are followed."
    return setting(7.0, told, min=0.0, max=100.0, step=0.5, advanced=False)


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
    width: int = _side("Width")
    height: int = _side("Height")
    steps: int = _steps("Sampling steps. An overfitted model looks better with DDIM and 100.")
    cfg: float = _cfg()
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
    width: int = _side("Width")
    height: int = _side("Height")
    steps: int = _steps("Sampling steps.")
    cfg: float = _cfg()
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


@dataclass(frozen=True)
class BeforeAfterConfig(Settings):
    """What base and trained are sampled with; sampler and scheduler are the host's."""

    prompt: str = setting(
        "a photo of sks dog",
        "What the pictures show, of both sides unless base_prompt says something else.",
        advanced=False,
    )
    negative_prompt: str = setting("", "What the pictures should not show.", advanced=False)
    count: int = setting(
        4, "Pairs of pictures, each from noise of its own.", min=1, max=MOST_CELLS // 2,
        advanced=False,
    )  # fmt: skip
    width: int = _side("Width")
    height: int = _side("Height")
    steps: int = _steps("Sampling steps.")
    cfg: float = _cfg()
    seed: int = setting(
        0, "Of the first pair; the others have the seeds that follow. Both pictures of a pair "
        "have the same.",
        min=0, max=2**63 - 1, advanced=False,
    )  # fmt: skip
    base_prompt: str = setting(
        "",
        "What the base is asked for instead, such as `a photo of a dog` where only what was "
        "trained knows the word. Empty: the same prompt.",
        advanced=False,
    )

    def problems(self) -> list[str]:
        most = MOST_CELL_PIXELS // (2 * self.width * self.height)
        if self.count <= most:
            return []
        size = f"{self.width} x {self.height} px"
        return [
            f"count is {self.count}; allowed: 1 to {most} pairs of {size}; take fewer or smaller "
            "pictures, or use a second node"
        ]

    @property
    def prompts(self) -> tuple[str, str]:
        """Before and after."""
        return self.base_prompt if self.base_prompt.strip() else self.prompt, self.prompt

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.count)


@dataclass(frozen=True)
class SimilarityConfig(Settings):
    """Which pictures are measured together, and what of them."""

    prompts: str = setting(
        "",
        "What the pictures should show, without the trigger word: one prompt for all; or one a "
        "line, which the pictures have in turn, as in Compare's images.",
        advanced=False,
    )
    images_per_row: int = setting(
        0, "How many pictures in a row are measured together, such as those of one strength. 0: "
        "as many as there are prompts.",
        min=0, max=MOST_CELLS, advanced=False,
    )  # fmt: skip
    row_labels: str = setting(
        "", "What each row is called, one a line: wire rows of Compare. Empty: its number."
    )
    crop: str = setting(
        "none",
        "How pictures that are not square become so: none takes all of them, in another shape; "
        "center takes the middle, as CLIP was trained. The same as in CLIP Vision Encode.",
        choices=("none", "center"),
    )
    dataset_masks: bool = setting(
        False,
        "Of the dataset's pictures, look only at what their masks leave, on grey. Wire masks "
        "too, so that both sides show the subject alone.",
    )

    @property
    def lines(self) -> list[str]:
        """The prompts."""
        return prompt_lines(self.prompts)

    def prompts_of(self, num_images: int) -> list[str]:
        """The prompt of each picture.

        Raises:
            SettingsError: the prompts do not fit so many pictures.
        """
        lines = self.lines
        if not lines or num_images % len(lines):
            problem = (
                f"prompts has {len(lines)} lines for {num_images} images; allowed: one for all, "
                "or so many that the images have them in turn"
            )
            raise SettingsError((problem,))
        return lines * (num_images // len(lines))

    def rows(self, num_images: int) -> tuple[range, ...]:
        """The places of each row's pictures.

        Raises:
            SettingsError: the pictures do not make whole rows.
        """
        each = self.images_per_row or max(1, len(self.lines))
        if num_images % each:
            problem = (
                f"{num_images} images are no whole rows of {each}; allowed: as many images in "
                "each row; set images_per_row, or as many prompts as a row has images"
            )
            raise SettingsError((problem,))
        return tuple(range(start, start + each) for start in range(0, num_images, each))

    def labels(self, num_rows: int) -> tuple[str, ...]:
        """What each row is called.

        Raises:
            SettingsError: there are not as many labels as rows.
        """
        given = prompt_lines(self.row_labels)
        if given and len(given) != num_rows:
            problem = (
                f"row_labels has {len(given)} lines for {num_rows} rows; allowed: one for each "
                "row, or none"
            )
            raise SettingsError((problem,))
        return tuple(given or (f"{number}" for number in range(1, num_rows + 1)))


def prompt_lines(text: str) -> list[str]:
    """The prompts of a text, one a line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _is_strength(text: str) -> bool:
    try:
        return math.isfinite(value := float(text)) and abs(value) <= STRONGEST
    except ValueError:
        return False
