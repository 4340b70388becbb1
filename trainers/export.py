"""Results as files: key spelling, metadata, and writing without leaving half a file.

kohya's spelling is the one that ComfyUI, A1111, Forge and diffusers all read; `.alpha` tensors are
always written, since readers take a missing one for "scale 1".
"""

from __future__ import annotations

import collections
import datetime
import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from torch import Tensor

from .config import RunConfig
from .contracts import Family
from .data import Dataset
from .errors import SaveError

if TYPE_CHECKING:
    from .embedding import Embedding


def kohya_layer_name(prefix: str, layer: str) -> str:
    """A layer's name in a kohya file: prefix, then the module path with underscores."""
    # transformers 5 dropped "text_model." from the path; files keep it, in the prefix.
    return f"{prefix}_{layer.removeprefix('text_model.')}".replace(".", "_")


class Adapter(dict[str, Tensor]):
    """A result's tensors by key, as the host's LORA_MODEL, with the metadata of its file.

    Attributes:
        needs: the learned tokens that its captions have.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str],
        needs: tuple[Embedding, ...] = (),
    ) -> None:
        super().__init__(tensors)
        self.metadata = dict(metadata)
        self.needs = needs


def lora_metadata(
    config: RunConfig, family: Family, dataset: Dataset, prediction: str
) -> dict[str, str]:
    """Metadata of a LoRA file: kohya's ss_* that readers use, and modelspec 1.0.1.

    The most frequent caption is the trigger phrase.

    Args:
        prediction: "epsilon" or "v".
    """
    lora = config.own
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(lora.alpha),
        **model_metadata(config, family, dataset, prediction),
        "modelspec.architecture": f"{family.modelspec}/lora",
    }


def model_metadata(
    config: RunConfig, family: Family, dataset: Dataset, prediction: str
) -> dict[str, str]:
    """Metadata of any result: how it was trained, by kohya's ss_*, and modelspec 1.0.1.

    Args:
        prediction: "epsilon" or "v".
    """
    counts = collections.Counter(picture.caption for picture in dataset.pictures)
    training = config.training
    return {
        "ss_base_model_version": family.base_model_version,
        "ss_v2": "False",
        "ss_learning_rate": str(training.learning_rate),
        "ss_optimizer": training.optimizer,
        "ss_lr_scheduler": training.lr_schedule,
        "ss_seed": str(training.seed),
        "ss_resolution": f"({dataset.resolution_px}, {dataset.resolution_px})",
        "ss_num_train_images": str(len(dataset)),
        "ss_batch_size_per_device": str(training.batch_size),
        "ss_gradient_accumulation_steps": str(training.gradient_accumulation),
        "ss_min_snr_gamma": str(config.objective.min_snr_gamma or None),
        "ss_tag_frequency": json.dumps({dataset.name: counts}, ensure_ascii=False),
        **modelspec(family, "", dataset, prediction),
        "modelspec.trigger_phrase": counts.most_common(1)[0][0] if counts else "",
    }


def modelspec(family: Family, kind: str, dataset: Dataset, prediction: str) -> dict[str, str]:
    """The part of the modelspec standard 1.0.1 that every result's file has.

    Args:
        kind: what was trained, as the standard's architecture names it: "lora" ..., or "" for
            whole models.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.modelspec + (f"/{kind}" if kind else ""),
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": dataset.name,
        "modelspec.date": now.isoformat(timespec="seconds"),
        "modelspec.resolution": f"{dataset.resolution_px}x{dataset.resolution_px}",
        "modelspec.prediction_type": prediction,
    }


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None,
) -> None:
    """Write a safetensors file at `path`, all or nothing; an existing file is replaced.

    Args:
        dtype: of the file's tensors; None leaves each as it is.

    Raises:
        SaveError: the disk is full or the folder cannot be written.
    """
    import safetensors.torch

    # A scale stays fp32: with rsLoRA it can pass fp16's largest number.
    stored = {
        key: tensor.detach()
        .to("cpu", (dtype or tensor.dtype) if tensor.ndim else torch.float32)
        .contiguous()
        for key, tensor in tensors.items()
    }
    content = safetensors.torch.save(stored, metadata=dict(metadata))
    write_whole(path, content)


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path`, all or nothing; see `whole_file`."""
    with whole_file(path, len(content)) as file:
        file.write(content)


@contextmanager
def whole_file(path: Path, num_bytes: int = 0) -> Iterator[IO[bytes]]:
    """A temporary file beside `path` to write into, renamed into its place at the end.

    Args:
        num_bytes: its size, if that is known, for the message.

    Raises:
        SaveError: the disk is full or the folder cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # a temporary file is private; a result is not
        temporary.replace(path)
    except OSError as error:
        raise save_error(path, num_bytes, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)  # after the rename there is none


def save_error(path: Path, num_bytes: int, error: OSError) -> SaveError:
    """What to tell the user of a file that could not be written; 0 bytes are an unknown number."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = f", {num_bytes / 1e6:.1f} MB are needed" if num_bytes else ""
        return SaveError(
            f"'{path}' was not saved: the disk is full{needed}.\nFree some space and queue again."
        )
    return SaveError(
        f"'{path}' was not saved: {error.strerror}.\n"
        "Make its folder writable, or let ComfyUI write elsewhere (--output-directory)."
    )
