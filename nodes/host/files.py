"""Files in the host's output folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import folder_paths
import torch
from torch import Tensor

from ...trainers.errors import SaveError, SettingsError
from ...trainers.methods.results import Adapter, Embedding, spelled
from ...trainers.models.precision import DTYPES
from ...trainers.runs.files import save_tensors


def save_lora(
    lora: Mapping[str, Tensor], filename_prefix: str, dtype: str, bundle: bool = False
) -> Path:
    """Save under the next free number; see trainers.runs.files.save_tensors for errors.

    Args:
        filename_prefix: as in the host's own save nodes; may name sub-folders of output/.
        dtype: "fp32", "fp16" or "bf16".
        bundle: put the learned token that the captions have into the file.

    Raises:
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
    path = _free_path(filename_prefix)
    metadata = lora.metadata if isinstance(lora, Adapter) else {}
    save_tensors(path, tensors, {**metadata, "ss_output_name": path.stem}, DTYPES[dtype])
    return path


def save_embedding(embedding: Embedding, filename_prefix: str) -> Path:
    """Save in fp32 under the next free number; see trainers.runs.files.save_tensors for errors.

    Args:
        filename_prefix: as for save_lora; %token% becomes the token as a file's name.
    """
    path = _free_path(filename_prefix.replace("%token%", embedding.file_name))
    save_tensors(path, spelled(embedding.rows), embedding.metadata, torch.float32)
    return path


def _free_path(filename_prefix: str) -> Path:
    """A safetensors file in output/ that does not exist yet.

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
    return Path(folder) / f"{name}_{counter:05}_.safetensors"
