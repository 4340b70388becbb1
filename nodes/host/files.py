"""Files in the host's output folder."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import folder_paths
import torch
from PIL import Image
from torch import Tensor

from ...trainers.errors import SaveError, SettingsError
from ...trainers.methods.adapters.layers import ALPHA, shortened
from ...trainers.methods.adapters.spelling import diffusers_spelling, published_spelling
from ...trainers.methods.results import Adapter, Embedding, spelled
from ...trainers.models.precision import DTYPES
from ...trainers.runs.files import (
    check_finite,
    checked_prefix,
    content_hashes,
    differences,
    holds,
    save_error,
    save_tensors,
    whole_file,
)
from ...trainers.runs.foreign import said_architecture
from ...trainers.runs.metadata import RANK_AND_ALPHA
from .models.adapters.check import check_lora
from .models.adapters.names import diffusers_places, read_by_diffusers
from .status import running_node, show_text, tell_of_files

# What of a LoRA's metadata tells of the pictures; a title is the file's own name then.
OF_PICTURES = (
    "ss_tag_frequency",
    "ss_dataset_dirs",
    "modelspec.trigger_phrase",
    "modelspec.title",
)


@dataclass(frozen=True)
class Choices:
    """What a LoRA's file is to hold beside the LoRA, and how.

    Attributes:
        diffusers: diffusers' spelling instead of that of the model's community.
        bundle: the learned token that the captions have.
        captions: captions, trigger phrase and the folder's name.
        thumbnail: a picture beside it, the last preview of its run.
        graph: what ComfyUI's own files have: the graph, as "prompt" and "workflow".
    """

    diffusers: bool = False
    bundle: bool = False
    captions: bool = False
    thumbnail: bool = False
    graph: Mapping[str, Any] = field(default_factory=dict)


def save_lora(
    lora: Mapping[str, Tensor],
    filename_prefix: str,
    dtype: str,
    choices: Choices,
    model: Any = None,
    clip: Any = None,
) -> Path:
    """Save under the next free number, unless the last file is the same.

    Args:
        filename_prefix: as in the host's own save nodes; may name sub-folders of output/, and
            %dataset% becomes the name of the pictures' folder.
        dtype: "fp32", "fp16" or "bf16".
        model, clip: the host's loader reads the file for them, where they are given.

    Raises:
        AdapterError: it has no place in diffusers' spelling.
        SaveError: see trainers.runs.files and check_lora; or what was written is something else.
        SettingsError: it is to be bundled, and there is none, or more than one; or the choices do
            not go together.
    """
    places = diffusers_places(model) if choices.diffusers and model is not None else {}
    _check_choices(lora, choices, model, bool(places))
    needs = lora.needs if isinstance(lora, Adapter) else ()
    told = dict(lora.metadata) if isinstance(lora, Adapter) else {}
    if choices.diffusers:
        own = diffusers_spelling(lora, places)
    else:
        own = published_spelling(lora, said_architecture(told))
    tensors = {**own, **(needs[0].bundled() if choices.bundle else {})}
    if RANK_AND_ALPHA[0] in told and not any(key.endswith(ALPHA) for key in own):
        told |= dict.fromkeys(RANK_AND_ALPHA, told[RANK_AND_ALPHA[0]])  # the scale is worked in
    dataset = re.sub(r"[^\w.-]+", "_", told.get("modelspec.title", "personalize"))
    private = () if choices.captions else [n for n in OF_PICTURES if told.pop(n, None)]
    told |= {name: json.dumps(value) for name, value in choices.graph.items()}
    told |= content_hashes(tensors, DTYPES[dtype])

    def metadata(path: Path) -> dict[str, str]:
        title = {"modelspec.title": path.stem} if private else {}
        return {**told, **title, "ss_output_name": path.stem}

    def check(path: Path) -> None:
        check_lora(path, lora, tensors, model, clip)

    prefix = filename_prefix.replace("%dataset%", dataset)
    path = _save(prefix, tensors, metadata, DTYPES[dtype], check)
    preview = lora.preview if isinstance(lora, Adapter) else None
    if choices.thumbnail and preview is not None:
        _save_thumbnail(preview, path.with_suffix(".png"))
    return path


def _check_choices(
    lora: Mapping[str, Tensor], choices: Choices, model: Any, has_names: bool
) -> None:
    needs = lora.needs if isinstance(lora, Adapter) else ()
    problems = []
    if choices.bundle and len(needs) != 1:
        found = ", ".join(embedding.token for embedding in needs) or "none"
        problems.append(
            "bundle_embedding is on, but a file can carry one learned token, and the captions of "
            f"this LoRA have: {found}; allowed: off, or a LoRA with one"
        )
    if choices.bundle and choices.diffusers:
        problems.append(
            "bundle_embedding is on, but diffusers reads no file with a token in it; allowed: off, "
            "with the token by Save Embedding, or a kohya format"
        )
    if choices.diffusers and not has_names:
        wired = "has no" if model is None else "is of a kind without"
        problems.append(
            f"format is diffusers, but input 'model' {wired} names of layers in that spelling; "
            f"allowed: with the model that the LoRA was made for wired in, a {read_by_diffusers()},"
            " or a kohya format"
        )
    if problems:
        raise SettingsError(tuple(problems))


def _save_thumbnail(preview: Path, target: Path) -> None:
    """The preview without what its file says of prompts; one that is gone is left out."""
    with contextlib.suppress(FileNotFoundError), Image.open(preview) as picture:
        with whole_file(target) as file:
            picture.convert("RGB").save(file, "PNG")


def save_embedding(embedding: Embedding, filename_prefix: str) -> Path:
    """Save in fp32; otherwise as save_lora.

    Args:
        filename_prefix: %token% becomes the token as a file's name.
    """
    prefix = filename_prefix.replace("%token%", embedding.file_name)
    rows = spelled(embedding.rows)
    return _save(prefix, rows, lambda path: embedding.metadata, torch.float32, lambda path: None)


def _save(
    filename_prefix: str,
    tensors: Mapping[str, Tensor],
    metadata: Callable[[Path], Mapping[str, str]],
    dtype: torch.dtype,
    check: Callable[[Path], None],
) -> Path:
    """Write a file unless the last one is the same; the page is told.

    Args:
        check: looks the file over; if it raises, a file that was written for it goes.
    """
    last, path = _paths(filename_prefix)
    check_finite(path, tensors, dtype)
    if holds(last, tensors, metadata(last), dtype):
        path = last
        check(path)
    else:
        save_tensors(path, tensors, metadata(path), dtype)
        try:
            if other := differences(path, tensors, metadata(path), dtype):
                raise SaveError(
                    f"'{path.name}' was not saved: read back, it is not what was written, in "
                    f"{shortened(other)}.\nLook after the disk, and queue again."
                )
            check(path)
        except BaseException:  # also for want of memory, or by Cancel
            path.unlink(missing_ok=True)
            raise
    already = "is there already: " if path == last else ""
    output = os.path.realpath(folder_paths.get_output_directory())
    place = f"output/{path.relative_to(output).as_posix()}"
    show_text(f"{already}{place}, {path.stat().st_size / 1e6:.1f} MB", running_node())
    tell_of_files()
    return path


def _paths(filename_prefix: str) -> tuple[Path, Path]:
    """The last safetensors file in output/ with this prefix, and the one after it.

    Raises:
        SaveError: it would lie outside output/, or cannot be a file's name everywhere.
    """
    filename_prefix = checked_prefix(filename_prefix)
    output = Path(os.path.realpath(folder_paths.get_output_directory()))
    place = Path(os.path.realpath(output / filename_prefix))
    if output not in place.parents:
        raise SaveError(
            f"Filename prefix {filename_prefix!r} leads out of ComfyUI's output folder.\n"
            "Use a name inside it, such as loras/dog."
        )
    try:
        folder, name, counter, *_ = folder_paths.get_save_image_path(filename_prefix, str(output))
    except OSError as error:  # a folder's name is a file's
        raise save_error(place, 0, error) from error
    last, following = (f"{name}_{number:05}_.safetensors" for number in (counter - 1, counter))
    return Path(folder) / last, Path(folder) / following
