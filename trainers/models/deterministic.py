"""The same bits each time, on a GPU too.

On a CPU torch adds in the same order each time as it is. On a GPU the backward passes of attention,
the library of convolutions and cuBLAS choose what is fastest, and some add in whatever order their
threads end. torch has a mode without that. In its strict form, not where it only warns, attention
too is deterministic: flash and memory-efficient attention work in one order, cuDNN's is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import UnavailableError

WORKSPACE, WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
HAS_NONE = "does not have a deterministic implementation"  # torch's words


def check_deterministic(device: torch.device) -> None:
    """See that the arithmetic of `device` can be made deterministic now.

    Raises:
        UnavailableError: cuBLAS was not told so before it began.
    """
    if device.type == "cuda" and os.environ.get(WORKSPACE) not in WORKSPACES:
        raise UnavailableError(
            f"deterministic is on, but {WORKSPACE} is {os.environ.get(WORKSPACE)!r}; cuBLAS needs "
            f"{' or '.join(WORKSPACES)} before it begins.\nStart ComfyUI with --deterministic, "
            "which sets it, or turn deterministic off."
        )


@contextmanager
def deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    """Inside, if `wanted`, what is computed on `device` is the same each time; then as it was.

    Raises:
        UnavailableError: see `check_deterministic`; or torch has no such form of an operation.
    """
    if not wanted:
        yield
        return
    check_deterministic(device)
    cudnn: Any = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    was = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # What is not yet written is filled by this mode too, for code that reads it all the same.
    cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = True, False, False
    try:
        yield
    except RuntimeError as error:
        if HAS_NONE not in str(error):
            raise
        raise UnavailableError(
            f"deterministic is on, but {str(error).partition(HAS_NONE)[0].strip()} {HAS_NONE} in "
            "torch.\nTurn deterministic off for this model."
        ) from error
    finally:
        torch.use_deterministic_algorithms(was, warn_only=only_warned)
        cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = flags
