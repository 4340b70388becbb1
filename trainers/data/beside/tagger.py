"""Captions as lists of tags, by a tagger such as WD14 in ONNX.

A folder with model.onnx and selected_tags.csv, as SmilingWolf's wd-*-tagger repositories have
them; or name.onnx and name.csv beside each other. Picture in (1, S, S, 3), BGR, 0..255, on a white
square; out come probabilities (1, tags).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import SettingsError, UnavailableError
from ...settings.dataset import CaptioningConfig
from .caption_models import TAGS, tags_file

GENERAL, CHARACTER = "0", "4"  # of the category column; 9 are ratings
FACE = 3  # characters: `^_^` is no two words; as kohya has it
# What onnxruntime raises of a file that is no model, or none that it can run.
UNREADABLE = ("Fail", "InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NotImplemented")
INSTALL = "python -m pip install onnxruntime"


@dataclass(frozen=True)
class Tag:
    """One column of what comes out."""

    words: str
    category: str


class Tagger:
    """A model that lists what a picture shows.

    Raises:
        SettingsError: it is no such model, or its list of tags is another one's.
        UnavailableError: onnxruntime is not installed.
    """

    def __init__(self, model: Path, config: CaptioningConfig) -> None:
        self._config = config
        self._excluded = {
            _words(name.strip()).casefold() for name in config.exclude_tags.split(",")
        }
        self._tags = tags_of(model)
        self._session = _session(model)
        taken = self._session.get_inputs()[0]
        self._input, shape = taken.name, taken.shape
        (outputs,) = (given.shape for given in self._session.get_outputs())
        if len(shape) != 4 or shape[3] != 3 or not isinstance(shape[1], int):
            raise SettingsError(
                (f"model is {model.name!r}, which takes {shape}; allowed: a tagger that takes "
                 "pictures (1, size, size, 3), as the wd-*-tagger models do",)
            )  # fmt: skip
        if outputs[-1] != len(self._tags):
            raise SettingsError(
                (f"model is {model.name!r} with {outputs[-1]} tags, but its list has "
                 f"{len(self._tags)}; allowed: the list that came with it",)
            )  # fmt: skip
        self._size_px = int(shape[1])

    def __call__(self, image: Image.Image) -> str:
        """The tags of an RGB picture with commas between, characters first, likeliest first."""
        pixels = squared(image, self._size_px)[None]
        (given,) = self._session.run(None, {self._input: pixels})
        return ", ".join(self._chosen(given[0]))

    def _chosen(self, probabilities: Sequence[float]) -> list[str]:
        least = {
            CHARACTER: self._config.character_threshold,
            GENERAL: self._config.threshold,
        }
        found = [
            (tag.category != CHARACTER, -float(probability), tag.words)
            for tag, probability in zip(self._tags, probabilities, strict=True)
            if tag.category in least and probability >= least[tag.category]
        ]
        return [words for *_, words in sorted(found) if words.casefold() not in self._excluded]


def tags_of(model: Path) -> list[Tag]:
    """The tags of a model, from the list beside it.

    Raises:
        SettingsError: there is none, or it lacks the columns name and category.
    """
    path = tags_file(model)
    try:
        if path is None:
            raise KeyError(TAGS)
        with path.open(encoding="utf-8", newline="") as file:
            return [Tag(_words(row["name"]), row["category"]) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise SettingsError(
            (f"model is {model.name!r}, which has no list of tags beside it; allowed: with {TAGS} "
             f"of the columns name and category, or {model.stem}.csv",)
        ) from error  # fmt: skip


def squared(image: Image.Image, size_px: int) -> Any:
    """fp32 (size, size, 3), BGR, 0..255: the picture whole, in the middle of a white square."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    small = square.resize((size_px, size_px), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(small, dtype=np.float32)[:, :, ::-1])


def _words(name: str) -> str:
    return name if len(name) <= FACE else name.replace("_", " ")


def _session(model: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UnavailableError(
            f"model {model.name!r} needs the package onnxruntime, which is not installed.\n"
            f"Install it with the Python that runs ComfyUI: {INSTALL}"
        ) from error
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    there = onnxruntime.get_available_providers()
    try:
        return onnxruntime.InferenceSession(
            model, providers=[name for name in wanted if name in there]
        )
    except tuple(getattr(state, name) for name in UNREADABLE) as error:
        raise SettingsError(
            (f"model is {model.name!r}, which onnxruntime cannot read: {str(error)[:200]}; "
             "allowed: a tagger in ONNX, whole",)
        ) from error  # fmt: skip
