"""The folder that keeps the cells of a comparison.

    <parent>/<architecture>-<first 8 of the key>/
        key.json                  all that the cells have in common
        <16 of a hash>.png ...    each named by what is its own: adapter, strength, prompt

A cell is a function of the key and of what its name is made of, so whoever asks again makes only
those that are missing: after a restart, with another row or prompt, or after a Cancel. What a file
is called does not count, only what is in it. Each picture is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from .kept import keyed_folder, write_picture


@dataclass(frozen=True)
class CellFolder:
    """The folder of the cells of one key."""

    path: Path

    @classmethod
    def open(cls, parent: Path, title: str, key: Mapping[str, Any]) -> CellFolder:
        """The folder for `key`, made if it is not there.

        Args:
            title: begins its name.
            key: all that the cells have in common.

        Raises:
            SaveError: it cannot be written.
        """
        return cls(keyed_folder(parent, title, "cells", key))

    def file(self, own: Mapping[str, Any]) -> Path:
        """Where the cell is kept that has all this for itself."""
        content = json.dumps(own, sort_keys=True)
        return self.path / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.png"


def write_cell(file: Path, picture: Image.Image, texts: Mapping[str, str]) -> None:
    """Store one cell with texts for those who look at the file alone.

    Raises:
        SaveError: the disk is full or the folder cannot be written.
    """
    facts = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        # A file's name may hold what is no text, and a null ends one.
        facts.add_itxt(name, text.encode(errors="replace").decode().replace("\0", " "))
    write_picture(file, picture, facts)


def read_cell(file: Path) -> Image.Image | None:
    """A cell in RGB; None where it is missing, or damaged."""
    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError):  # as Pillow says that a file is no whole picture
        return None
