"""Folders of pictures that are made once: named by a hash of all that decides what they are."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ..files import write_whole

SLUG_CHARACTERS = 40


def keyed_folder(parent: Path, title: str, otherwise: str, key: Mapping[str, Any]) -> Path:
    """The folder <slug of the title>-<first 8 of the key>, with the key in its key.json.

    Args:
        otherwise: stands for a title without letters and digits.
        key: all that decides what the pictures are, but for what their files are named by.

    Raises:
        SaveError: it cannot be written.
    """
    content = json.dumps(key, indent=2, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    slug = re.sub(r"[^a-z0-9]+", "-", title.casefold())[:SLUG_CHARACTERS].strip("-")
    folder = parent / f"{slug or otherwise}-{digest}"
    if not (folder / "key.json").exists():
        write_whole(folder / "key.json", content.encode())
    return folder


def write_picture(
    file: Path, picture: Image.Image, facts: PngImagePlugin.PngInfo | None = None
) -> None:
    """Store one picture as PNG, whole or not at all.

    Args:
        facts: texts to go into the file.

    Raises:
        SaveError: the disk is full or the folder cannot be written.
    """
    content = io.BytesIO()
    picture.save(content, "PNG", pnginfo=facts)
    write_whole(file, content.getvalue())
