"""Class images: their settings, and the folder that keeps them.

    <parent>/<slug of the prompt>-<first 8 of the key>/
        key.json             all that decides what the pictures are, but for their seeds
        00000000.png ...     each named by its seed

A picture is a function of the key and its seed, so whoever asks again makes only those that are
missing, and two who ask at once write the same. Each file is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .buckets import STEP_PX
from .config import DatasetConfig
from .data import Dataset, folder_dataset
from .export import write_whole
from .settings import check, setting

SLUG_CHARACTERS = 40


@dataclass(frozen=True)
class ClassImagesConfig:
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

    def __post_init__(self) -> None:
        check(self)

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.count)

    @property
    def resolution_px(self) -> int:
        """The training size at which the pictures keep theirs."""
        return math.ceil(math.sqrt(self.width * self.height) / STEP_PX) * STEP_PX


@dataclass(frozen=True)
class ClassFolder:
    """The folder of the class images of one key."""

    path: Path

    @classmethod
    def open(cls, parent: Path, prompt: str, key: Mapping[str, Any]) -> ClassFolder:
        """The folder for `key`, made if it is not there.

        Args:
            key: all that decides what the pictures are, but for their seeds.

        Raises:
            SaveError: it cannot be written.
        """
        content = json.dumps(key, indent=2, sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.casefold())[:SLUG_CHARACTERS].strip("-")
        folder = cls(parent / f"{slug or 'class'}-{digest}")
        if not (folder.path / "key.json").exists():
            write_whole(folder.path / "key.json", content.encode())
        return folder

    def file(self, seed: int) -> Path:
        return self.path / f"{seed:08}.png"

    def missing(self, seeds: range) -> list[int]:
        """Seeds whose pictures are not there, in order."""
        return [seed for seed in seeds if not self.file(seed).exists()]

    def write(self, seed: int, picture: Image.Image) -> None:
        """Store one picture.

        Raises:
            SaveError: the disk is full or the folder cannot be written.
        """
        content = io.BytesIO()
        picture.save(content, "PNG")
        write_whole(self.file(seed), content.getvalue())

    def dataset(self, config: ClassImagesConfig) -> Dataset:
        """Exactly the pictures of `config.seeds`, each with the prompt as its caption."""
        settings = DatasetConfig(
            prompt=config.prompt, captions="prompt", resolution=config.resolution_px
        )
        names = {self.file(seed).name for seed in config.seeds}
        return folder_dataset(self.path, settings, only=names)
