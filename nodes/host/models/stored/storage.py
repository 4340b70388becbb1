"""Normal tensors on the host's storage."""

from __future__ import annotations

import torch
from torch import Tensor


def alias(tensor: Tensor) -> Tensor:
    """A normal tensor (autograd accepts it) on the storage of an inference tensor. No copy."""
    with torch.inference_mode(False):
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return empty.set_(
            tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )
