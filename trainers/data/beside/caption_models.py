"""Which files are a model that writes captions, by their names alone.

Imports neither torch nor transformers, so that menus can ask it.
"""

from __future__ import annotations

from pathlib import Path

CONFIG, TAGS = "config.json", "selected_tags.csv"
# What a model that can be talked to is asked, where the user asks nothing.
DESCRIBE = "Describe this picture in one or two plain sentences. Begin with the description itself."


def is_captioner(folder: Path) -> bool:
    """Whether a folder is a model's for the transformers library; see captioner.py."""
    return (folder / CONFIG).is_file() and any(folder.glob("*.safetensors"))


def tags_file(model: Path) -> Path | None:
    """The list of tags of a tagger, an ONNX file; None where it is none. See tagger.py."""
    if model.suffix.casefold() != ".onnx":
        return None
    beside = (model.with_suffix(".csv"), model.with_name(TAGS))
    return next((path for path in beside if path.is_file()), None)
