"""Files in the host's output folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import folder_paths
from torch import Tensor

from ...trainers.export import Adapter, save_tensors
from ...trainers.precision import DTYPES


def save_lora(lora: Mapping[str, Tensor], filename_prefix: str, dtype: str) -> Path:
    """Save under the next free number; see trainers.export.save_tensors for errors.

    Args:
        filename_prefix: as in the host's own save nodes; may name sub-folders of output/.
        dtype: "fp32", "fp16" or "bf16".
    """
    folder, name, counter, *_ = folder_paths.get_save_image_path(
        filename_prefix, folder_paths.get_output_directory()
    )
    path = Path(folder) / f"{name}_{counter:05}_.safetensors"
    metadata = lora.metadata if isinstance(lora, Adapter) else {}
    save_tensors(path, lora, {**metadata, "ss_output_name": path.stem}, DTYPES[dtype])
    return path
