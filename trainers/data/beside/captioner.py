"""Captions by a vision-language model of the transformers library, from a folder of this machine.

A folder as the Hub has it: config.json, weights in safetensors, and what its processor reads.
Florence-2, BLIP, PaliGemma, Qwen-VL, SmolVLM, LLaVA ...: whatever transformers itself has a class
for. Code in the folder is never run, and nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from PIL import Image
from torch import Tensor

from ...errors import SettingsError, UnavailableError
from ..captions import one_line
from ..listing import named
from .caption_models import CONFIG, DESCRIBE

FLORENCE = "florence2"
FLORENCE_TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
# What a model without a chat is asked where the user asks nothing, by its type: as their cards say.
ASKED = {FLORENCE: "<DETAILED_CAPTION>", "paligemma": "caption en"}
CONTINUING = ("blip", "git")  # they go on from the words they are given, which stay in the caption
DTYPE = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"


class Captioner:
    """A model that says what a picture shows, the same each time: the likeliest word follows.

    Args:
        check: called before each token; may raise.

    Raises:
        SettingsError: it is no such model, its weights do not fit its class, or it cannot be asked
            this.
        UnavailableError: this transformers does not know it, or lacks a package for it.
    """

    def __init__(
        self,
        folder: Path,
        instruction: str,
        max_length: int,
        device: torch.device,
        dtype: torch.dtype,
        check: Callable[[], None],
    ) -> None:
        self._max_length, self._check = max_length, check
        self._device, self._dtype = device, dtype
        self._kind = model_type(folder)
        self._processor, model = _loaded(folder, dtype)
        self._model = model.to(device).eval()
        self._chats = bool(getattr(self._processor, "chat_template", None))
        self._asked = self._question(instruction.strip())

    def __call__(self, image: Image.Image) -> str:
        """The caption of an RGB picture, in one line."""
        inputs = self._inputs(image)
        stops = transformers.StoppingCriteriaList([_Checking(self._check)])
        with torch.inference_mode():
            made = self._model.generate(
                **inputs, max_new_tokens=self._max_length, do_sample=False, stopping_criteria=stops
            )
        given = inputs.get("input_ids")
        if given is not None and self._kind not in CONTINUING and _begins_with(made, given):
            made = made[:, given.shape[1] :]
        (text,) = self._processor.batch_decode(made, skip_special_tokens=True)
        return one_line(text)

    def _question(self, instruction: str) -> str:
        if self._kind == FLORENCE and instruction and instruction not in FLORENCE_TASKS:
            raise SettingsError(
                (f"instruction is {instruction[:80]!r}, but model is a Florence-2, which knows "
                 f"tasks alone; allowed: {', '.join(FLORENCE_TASKS)}, or empty",)
            )  # fmt: skip
        if self._chats:
            return instruction or DESCRIBE
        return instruction or ASKED.get(self._kind, "")

    def _inputs(self, image: Image.Image) -> dict[str, Tensor]:
        """What the model takes, on its device."""
        text = self._asked
        if self._chats:
            said = [{"type": "image"}, {"type": "text", "text": text}]
            text = self._processor.apply_chat_template(
                [{"role": "user", "content": said}], add_generation_prompt=True
            )
        told = {"text": text} if text else {}
        found = self._processor(images=image, return_tensors="pt", **told)
        return {
            name: value.to(self._device, self._dtype if value.is_floating_point() else None)
            for name, value in found.items()
            if isinstance(value, Tensor)
        }


class _Checking(transformers.StoppingCriteria):
    """Never ends a caption, but asks whether somebody wants to."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def __call__(self, input_ids: Any, scores: Any, **more: Any) -> Any:
        self._check()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def model_type(folder: Path) -> str:
    """What config.json calls the model.

    Raises:
        SettingsError: there is no such file, or it does not say.
    """
    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return str(told["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            (f"model is {folder.name!r}, whose {CONFIG} does not say what it is; allowed: a folder "
             "of a vision-language model for the transformers library, as the Hub has it",)
        ) from error  # fmt: skip


def _loaded(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Processor and model, the model on the CPU."""
    library: Any = transformers  # whose types do not say that a report may come along
    here = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = library.AutoProcessor.from_pretrained(folder, **here)
        model, report = library.AutoModelForImageTextToText.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **{DTYPE: dtype}, **here
        )
    except ImportError as error:
        raise UnavailableError(
            f"model {folder.name!r} needs a package that is not installed: {one_line(str(error))}"
            "\nInstall it with the Python that runs ComfyUI, or choose another model."
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise UnavailableError(
            f"model {folder.name!r} cannot be loaded by transformers {transformers.__version__} "
            f"without code of its own: {one_line(str(error))[:300]}\nTake a repository made for "
            "the library (Florence-2: florence-community/Florence-2-base), whole, with its "
            "weights in safetensors; or a newer transformers."
        ) from error
    # Whatever is missing would be random numbers: words without sense, and no error.
    if missing := sorted({*report["missing_keys"], *map(str, report["mismatched_keys"])}):
        raise SettingsError(
            (f"model is {folder.name!r}, whose weights do not fit its class: {len(missing)} are "
             f"missing ({named(missing, 3)}); allowed: a repository made for the transformers "
             "library, such as florence-community/Florence-2-base",)
        )  # fmt: skip
    return processor, model


def _begins_with(made: Tensor, given: Tensor) -> bool:
    return made.shape[1] >= given.shape[1] and torch.equal(made[:, : given.shape[1]], given)
