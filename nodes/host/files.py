"""Files in the host's output folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import folder_paths
import torch
from torch import Tensor

from ...trainers.errors import SaveError, SettingsError
from ...trainers.methods.results import Adapter, Embedding, spelled
from ...trainers.models.precision import DTYPES
from ...trainers.runs.files import holds, save_tensors
from .status import running_node, show_text, tell_of_files

# What of a LoRA's metadata tells of the pictures; a title is the file's own name then.
OF_PICTURES = ("ss_tag_frequency", "modelspec.trigger_phrase", "modelspec.title")


def save_lora(
    lora: Mapping[str, Tensor],
    filename_prefix: str,
    dtype: str,
    bundle: bool = False,
    captions: bool = False,
) -> Path:
    """Save under the next free number, unless the last file is the same.

    Args:
        captions: put captions, trigger phrase and the folder's name into the file.
        filename_prefix: as in the host's own save nodes; may name sub-folders of output/, and
            %dataset% becomes the name of the pictures' folder.
        dtype: "fp32", "fp16" or "bf16".
        bundle: put the learned token that the captions have into the file.

    Raises:
        SaveError: see trainers.runs.files.save_tensors.
        SettingsError: it is to be bundled, and there is none, or more than one.
    """
    needs = lora.needs if isinstance(lora, Adapter) else ()
    if bundle and len(needs) != 1:
        found = ", ".join(embedding.token for embedding in needs) or "none"
        raise SettingsError(
            ("bundle_embedding is on, but a file can carry one learned token, and the captions of "
             f"this LoRA have: {found}; allowed: off, or a LoRA with one",)
        )  # fmt: skip
    tensors = {**lora, **(needs[0].bundled() if bundle else {})}
    told = dict(lora.metadata) if isinstance(lora, Adapter) else {}
    dataset = re.sub(r"[^\w.-]+", "_", told.get("modelspec.title", "personalize"))
    private = () if captions else [name for name in OF_PICTURES if told.pop(name, None)]

    def metadata(path: Path) -> dict[str, str]:
        title = {"modelspec.title": path.stem} if private else {}
        return {**told, **title, "ss_output_name": path.stem}

    return _save(filename_prefix.replace("%dataset%", dataset), tensors, metadata, DTYPES[dtype])


def save_embedding(embedding: Embedding, filename_prefix: str) -> Path:
    """Save in fp32; otherwise as save_lora.

    Args:
        filename_prefix: %token% becomes the token as a file's name.
    """
    prefix = filename_prefix.replace("%token%", embedding.file_name)
    return _save(prefix, spelled(embedding.rows), lambda path: embedding.metadata, torch.float32)


def _save(
    filename_prefix: str,
    tensors: Mapping[str, Tensor],
    metadata: Callable[[Path], Mapping[str, str]],
    dtype: torch.dtype,
) -> Path:
    """Write a file unless the last one is the same; the page is told."""
    last, path = _paths(filename_prefix)
    if holds(last, tensors, metadata(last), dtype):
        path = last
    else:
        save_tensors(path, tensors, metadata(path), dtype)
    already = "is there already: " if path == last else ""
    output = os.path.realpath(folder_paths.get_output_directory())
    place = f"output/{path.relative_to(output).as_posix()}"
    show_text(f"{already}{place}, {path.stat().st_size / 1e6:.1f} MB", running_node())
    tell_of_files()
    return path


def _paths(filename_prefix: str) -> tuple[Path, Path]:
    """The last safetensors file in output/ with this prefix, and the one after it.

    Raises:
        SaveError: it would lie outside output/.
    """
    output = Path(os.path.realpath(folder_paths.get_output_directory()))
    if output not in Path(os.path.realpath(output / filename_prefix)).parents:
        raise SaveError(
            f"Filename prefix {filename_prefix!r} leads out of the folder {output}.\n"
            "Use a name inside it, such as embeddings/dog."
        )
    folder, name, counter, *_ = folder_paths.get_save_image_path(filename_prefix, str(output))
    last, following = (f"{name}_{number:05}_.safetensors" for number in (counter - 1, counter))
    return Path(folder) / last, Path(folder) / following
