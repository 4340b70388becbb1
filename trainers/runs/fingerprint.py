"""Hashes of weights: of all their bytes, so that no finetune or merge passes for another."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

MOST_THREADS = 8


def weights_fingerprint(modules: Mapping[str, nn.Module]) -> str:
    """A hash of the modules' weights; see `tensors_fingerprint`."""
    return tensors_fingerprint(
        {
            f"{name}.{key}": tensor
            for name, module in sorted(modules.items())
            for key, tensor in module.state_dict().items()
        }
    )


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes, dtypes and every byte of the tensors.

    A checksum of each tensor, in threads, then a cryptographic hash of the checksums: it has to
    tell models apart, not to withstand forgers, and gigabytes are read at the speed of memory.
    """
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        checksums = list(pool.map(_checksum, tensors.values()))
    digest = hashlib.sha256()
    for (key, tensor), checksum in zip(tensors.items(), checksums, strict=True):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype} {checksum};".encode())
    return digest.hexdigest()


def _checksum(tensor: Tensor) -> int:
    flat = tensor.detach().cpu().contiguous().flatten()
    return zlib.crc32(flat.view(torch.uint8).numpy().data) if len(flat) else 0
