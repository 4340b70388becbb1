"""The folder that keeps class images.

    <parent>/<slug of the prompt>-<first 8 of the key>/
        key.json             all that decides what the pictures are, but for their seeds
        00000000.png ...     each named by its seed

A picture is a function of the key and its seed, so whoever asks again makes only those that are
missing, and two who ask at once write the same. Each file is written whole or not at all. Several
processes that train together make a share each, into the one folder that all of them see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...data.dataset import Dataset, folder_dataset
from ...data.pictures import file_hash
from ...errors import ProcessesError
from ...optimizers.processes import ALONE, Processes
from ...settings.class_images import ClassImagesConfig
from ...settings.dataset import DatasetConfig
from .kept import keyed_folder, write_picture


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
        return cls(keyed_folder(parent, prompt, "class", key))

    def file(self, seed: int) -> Path:
        return self.path / f"{seed:08}.png"

    def missing(self, seeds: range) -> list[int]:
        """Seeds whose pictures are not there, in order."""
        return [seed for seed in seeds if not self.file(seed).exists()]

    def share(self, config: ClassImagesConfig, processes: Processes = ALONE) -> list[list[int]]:
        """Seeds of the pictures that this process is to make, in batches.

        Whole batches are dealt out: what rounding makes of a picture depends on its batch, so those
        are the same for any number of processes.

        Raises:
            ProcessesError: another one ended.
        """
        absent = torch.tensor([not self.file(seed).exists() for seed in config.seeds])
        # As the first one saw it: it may have begun to make them before another looks.
        absent = processes.given(absent.byte())
        seeds = [seed for seed, is_absent in zip(config.seeds, absent, strict=True) if is_absent]
        starts = range(0, len(seeds), config.batch_size)
        batches = [seeds[start : start + config.batch_size] for start in starts]
        return batches[processes.rank :: processes.count]

    def wait(self, seeds: range, processes: Processes) -> None:
        """Until all processes have made their share.

        Raises:
            ProcessesError: another one ended, or writes into a folder that is not seen here.
        """
        processes.wait()
        if processes.count > 1 and (missing := self.missing(seeds)):
            raise ProcessesError(
                f"Several processes: class images that another one made are not in '{self.path}' "
                f"here, {len(missing)} of {len(seeds)}.\nAll of them must see the same files: give "
                "them one output folder, on a disk that they share."
            )

    def write(self, seed: int, picture: Image.Image) -> None:
        """Store one picture.

        Raises:
            SaveError: the disk is full or the folder cannot be written.
        """
        write_picture(self.file(seed), picture)

    def dataset(
        self, config: ClassImagesConfig, hash_file: Callable[[Path], bytes] = file_hash
    ) -> Dataset:
        """Exactly the pictures of `config.seeds`, each with the prompt as its caption.

        Args:
            hash_file: see `folder_dataset`.
        """
        settings = DatasetConfig(
            prompt=config.prompt, captions="prompt", resolution=config.resolution_px
        )
        names = {self.file(seed).name for seed in config.seeds}
        return folder_dataset(self.path, settings, only=names, hash_file=hash_file)
