"""What can write captions: the host's own CLIP where it can talk of a picture, and models in
folders of models/.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from PIL import Image

from ....trainers.data.beside.caption_models import DESCRIBE, is_captioner, tags_file
from ....trainers.errors import SettingsError, UnsupportedModelError
from ....trainers.settings.dataset import CaptioningConfig
from ..memory import check_interrupt, device, make_room
from ..pictures.overview import image_of

# Of models/: ours, and where packs for Florence-2 and other such models keep theirs.
FOLDERS = ("captioners", "LLM")
WIRED = "clip (wired in)"
MOST_DEPTH = 3  # LLM/owner/name
ENDINGS = (".safetensors", ".onnx")

Captioning = Callable[[Image.Image], str]


def register_captioners() -> None:
    """Let the host know the folders, so that others can be named in extra_model_paths.yaml."""
    for name in FOLDERS:
        folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir) / name))


def captioners() -> list[str]:
    """Names of all models in FOLDERS, sorted: `captioners/Florence-2-base`,
    `captioners/wd-vit-tagger-v3/model.onnx`.
    """
    return sorted(_found(), key=str.casefold)


@contextmanager
def captioning(model: str, clip: Any, config: CaptioningConfig) -> Iterator[Captioning]:
    """What says of a picture what it shows; let go of at the end.

    Args:
        model: WIRED, or one of `captioners`.
        clip: what is wired in, or None.

    Raises:
        SettingsError: there is no such model, or it cannot be used.
        UnavailableError: a package is missing.
        UnsupportedModelError: the clip cannot talk of a picture.
    """
    if model == WIRED:
        yield ClipCaptioner(clip, config)
        return
    path = _found().get(model)
    if path is None:
        raise SettingsError(
            (f"model is {model!r}; allowed: {WIRED}, or a folder of models/captioners with a model "
             f"in it: {', '.join(captioners()) or 'there is none yet'}",)
        )  # fmt: skip
    if path.is_file():
        from ....trainers.data.beside.tagger import Tagger

        yield Tagger(path, config)
        return
    from ....trainers.data.beside.captioner import Captioner

    make_room()  # beside a model that the host does not know of
    try:
        with torch.inference_mode():
            yield Captioner(
                path, config.instruction, config.max_length, device(), _dtype(), check_interrupt
            )
    finally:
        gc.collect()
        comfy.model_management.soft_empty_cache()


class ClipCaptioner:
    """The host's own CLIP, as its Generate Text asks it; without sampling, so the same each time.

    Raises:
        SettingsError: none is wired in.
        UnsupportedModelError: it cannot write, or it does not look at pictures.
    """

    def __init__(self, clip: Any, config: CaptioningConfig) -> None:
        if clip is None:
            raise SettingsError(
                (f"model is '{WIRED}', but input 'clip' is not; allowed: with a vision-language "
                 "text encoder there (Load CLIP: Qwen3-VL, Gemma 3 ...), or a model of the list",)
            )  # fmt: skip
        if not writes(clip):
            raise UnsupportedModelError(_refusal("only reads: it cannot write text"))
        self._clip = clip
        self._instruction = config.instruction.strip() or DESCRIBE
        self._max_length = config.max_length

    def __call__(self, image: Image.Image) -> str:
        """The caption of an RGB picture."""
        # Those that think aloud unless told not to would have the thoughts in the caption.
        tokens = self._clip.tokenize(
            self._instruction, image=image_of(image), skip_template=False, min_length=1,
            thinking=False,
        )  # fmt: skip
        if not _has_picture(tokens):
            raise UnsupportedModelError(_refusal("writes text, but this ComfyUI shows it no image"))
        with torch.inference_mode():
            written = self._clip.generate(tokens, do_sample=False, max_length=self._max_length)
        return " ".join(str(self._clip.decode(written)).split())


def writes(clip: Any) -> bool:
    """Whether one of a CLIP's text encoders is a model that continues a text."""
    encoders = (getattr(part, "transformer", None) for part in clip.cond_stage_model.children())
    return hasattr(clip, "generate") and any(hasattr(one, "generate") for one in encoders)


def _has_picture(tokens: dict[str, Any]) -> bool:
    """Whether a tokenizer that was given an image has put it among the tokens."""
    rows = (row for rows in tokens.values() for row in rows)
    return any(isinstance(token[0], dict) for row in rows for token in row)


def _refusal(what: str) -> str:
    return (
        f"The text encoder at input 'clip' {what}.\nWire in one that describes pictures by "
        "ComfyUI's own Generate Text (Load CLIP with Gemma 3, or on newer versions Qwen3-VL and "
        "others), or choose a model of models/captioners."
    )


def _dtype() -> torch.dtype:
    where = device()
    if where.type == "cpu":
        return torch.float32
    return torch.bfloat16 if comfy.model_management.should_use_bf16(where) else torch.float16


def _found() -> dict[str, Path]:
    """Folders of transformers' models and files of taggers, by name."""
    found: dict[str, Path] = {}
    for kind in FOLDERS:
        for root in map(Path, folder_paths.get_folder_paths(kind)):
            for folder, inside, files in os.walk(root, followlinks=True):
                depth = len(Path(folder).relative_to(root).parts)
                inside[:] = [] if depth >= MOST_DEPTH else [n for n in inside if n[0] != "."]
                if any(name.casefold().endswith(ENDINGS) for name in files):
                    found |= _models_in(Path(folder), kind, root)
    return found


def _models_in(folder: Path, kind: str, root: Path) -> dict[str, Path]:
    paths = [path for path in folder.glob("*.onnx") if tags_file(path)]
    if folder != root and is_captioner(folder):
        paths.append(folder)
    return {f"{kind}/{path.relative_to(root).as_posix()}": path for path in paths}
