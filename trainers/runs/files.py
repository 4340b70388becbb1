"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from ..errors import SaveError


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

    stored = {key: _as_stored(tensor, dtype) for key, tensor in tensors.items()}
    content = safetensors.torch.save(stored, metadata=dict(metadata))
    write_whole(path, content)


def holds(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None,
) -> bool:
    """Whether the file at `path` is what `save_tensors` would write there."""
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            if (file.metadata() or {}) != dict(metadata) or set(file.keys()) != set(tensors):
                return False
            pairs = ((file.get_tensor(key), _as_stored(t, dtype)) for key, t in tensors.items())
            return all(old.dtype == new.dtype and torch.equal(old, new) for old, new in pairs)
    except (OSError, safetensors.SafetensorError):
        return False


def check_finite(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, most_named: int = 3
) -> None:
    """See that a file of these tensors would hold numbers alone.

    Raises:
        SaveError: some are not finite, or not in the file's dtype.
    """
    bad = [key for key, t in tensors.items() if not _as_stored(t, dtype).isfinite().all()]
    if not bad:
        return
    named = ", ".join(bad[:most_named]) + (", ..." if len(bad) > most_named else "")
    fit = all(tensors[key].isfinite().all() for key in bad)
    raise SaveError(
        f"'{path}' was not saved: {len(bad)} of {len(tensors)} tensors are not finite numbers"
        f"{f' as {dtype}' if fit else ''}: {named}.\n"
        + ("Save them as bf16 or fp32." if fit else "Use another LoRA, or train this one anew.")
    )


def _as_stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    # A scale stays fp32: with rsLoRA it can pass fp16's largest number.
    kept = (dtype or tensor.dtype) if tensor.ndim else torch.float32
    return tensor.detach().to("cpu", kept).contiguous()


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
