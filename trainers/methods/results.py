"""What methods make, as it goes through the graph: adapters and learned tokens.

One text encoder's rows are `emb_params`, as ComfyUI, A1111, Forge and diffusers read them; those
of several are each under their encoder's name (clip_l, clip_g). Inside a LoRA's file they are
`bundle_emb.<name>.*`, as A1111, Forge and ComfyUI read them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ONE_ENCODER = "emb_params"


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors, of any dtype, that have a number that is NaN or infinite."""
    return [name for name, tensor in tensors.items() if not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    # torch has no answer for numbers of one byte
    return bool(torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor).all())


@dataclass(frozen=True)
class Embedding:
    """A learned token.

    Attributes:
        token: how prompts write it.
        rows: (vectors, D) fp32 on the CPU, by text encoder.
        metadata: of its file.
    """

    token: str
    rows: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def vectors(self) -> int:
        return len(next(iter(self.rows.values())))

    @property
    def file_name(self) -> str:
        """The token as a file's name: without < and > and what else names cannot have."""
        return re.sub(r"[^\w-]+", "", self.token) or "token"

    def fingerprint(self) -> str:
        """A hash of the rows."""
        digest = hashlib.sha256()
        for name, rows in sorted(self.rows.items()):
            digest.update(name.encode())
            digest.update(rows.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def bundled(self) -> dict[str, Tensor]:
        """The tensors that carry it inside a LoRA's file."""
        start = f"bundle_emb.{self.file_name}"
        if len(self.rows) == 1:
            return {f"{start}.string_to_param.*": rows for rows in self.rows.values()}
        return {f"{start}.{name}": rows for name, rows in self.rows.items()}


def spelled(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows by text encoder as the tensors of a file."""
    if len(rows) == 1:
        return {ONE_ENCODER: next(iter(rows.values()))}
    return dict(rows)


def read(tensors: Mapping[str, Tensor], encoders: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of a file as rows by text encoder: the inverse of `spelled`."""
    names = tuple(encoders)
    if len(names) == 1:
        return {names[0]: tensors[ONE_ENCODER]}
    return {name: tensors[name] for name in names}


class Adapter(dict[str, Tensor]):
    """A result's tensors by key, as the host's LORA_MODEL, with the metadata of its file.

    Attributes:
        needs: the learned tokens that its captions have.
        preview: the file of its run's last preview, if there is one.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str],
        needs: tuple[Embedding, ...] = (),
        preview: Path | None = None,
    ) -> None:
        super().__init__(tensors)
        self.metadata = dict(metadata)
        self.needs = needs
        self.preview = preview
