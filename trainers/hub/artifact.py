"""A file to be shared: what is in it, as it says itself or as its tensors' names tell."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors

from ..errors import SettingsError
from ..methods.results import ONE_ENCODER
from ..models.architectures import ARCHITECTURES
from ..runs.files import shown

LORA, EMBEDDING, CHECKPOINT = "lora", "embedding", "checkpoint"
OF_A_LORA = re.compile(r"lora_(up|down|[AB])\b|\.(hada|lokr|oft)_|\.dora_scale$")
# What no pipeline of diffusers reads: other kinds, tokens, and T5's and language models' layers.
BEYOND_LORA = re.compile(
    r"\.(hada|lokr|oft)_|\.dora_scale$|^(bundle_emb|text_encoders)\.|^lora_te3_"
)
# Metadata that tells of the pictures, and of the graph that saved the file.
OF_PICTURES = (
    "ss_tag_frequency", "ss_dataset_dirs", "modelspec.trigger_phrase", "modelspec.title"
)  # fmt: skip
GRAPH = ("prompt", "workflow")
# Kinds of models whose files diffusers reads, by what is in the file.
IN_DIFFUSERS = {
    LORA: tuple(name for name, record in ARCHITECTURES.items() if record.diffusers),
    EMBEDDING: ("sd15", "sd2"),
    CHECKPOINT: ("sd15", "sdxl"),
}


@dataclass(frozen=True)
class Artifact:
    """A safetensors file.

    Attributes:
        kind: LORA, EMBEDDING or CHECKPOINT.
        metadata: as it is in the file.
        architecture: the kind of base model, a name in ARCHITECTURES; "" where nobody says.
        is_plain: a LoRA that is nothing more, by names that diffusers reads; true of all else.
    """

    path: Path
    kind: str
    metadata: Mapping[str, str]
    architecture: str
    is_plain: bool = True

    @property
    def in_diffusers(self) -> bool:
        """Whether diffusers reads it."""
        return self.is_plain and self.architecture in IN_DIFFUSERS[self.kind]

    @property
    def told_of_pictures(self) -> list[str]:
        """Names of the metadata that tell of the pictures it was trained on."""
        if self.kind == EMBEDDING:  # its title and trigger are the word itself
            return []
        named = {**self.metadata, "modelspec.title": self._title_of_pictures}
        return [name for name in OF_PICTURES if named.get(name)]

    @property
    def told_of_the_graph(self) -> list[str]:
        """Names of the metadata that hold the graph that saved it."""
        return [name for name in GRAPH if self.metadata.get(name)]

    @property
    def _title_of_pictures(self) -> str:
        title = self.metadata.get("modelspec.title", "")
        return "" if title == self.path.stem else title

    def beginning(self, without: Collection[str]) -> bytes:
        """The bytes before the tensors, as many as in the file, without some of the metadata."""
        with self.path.open("rb") as file:
            start = file.read(8)
            size = int.from_bytes(start, "little")
            header = file.read(size)
        if not without:
            return start + header
        told = json.loads(header)
        told["__metadata__"] = {n: v for n, v in told["__metadata__"].items() if n not in without}
        text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "less of it takes less room"
        return start + text.ljust(size)  # blanks are the format's own filling


def artifact_at(path: Path, architecture: str = "") -> Artifact:
    """What a file holds.

    Args:
        architecture: of the run that made it, where one is known.

    Raises:
        SettingsError: it is no safetensors file, or only a part of one.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata, keys = dict(file.metadata() or {}), list(file.keys())
    except (OSError, safetensors.SafetensorError):
        raise SettingsError(
            (f"path is '{shown(path)}', which is not a whole safetensors file; allowed: a file "
             "that Save LoRA, Save Embedding or ComfyUI's Save Checkpoint wrote",)
        ) from None  # fmt: skip
    told = metadata.get("modelspec.architecture", "").split("/")
    named = (name for name, record in ARCHITECTURES.items() if record.modelspec == told[0])
    return Artifact(
        path,
        _kind(told[1:], keys),
        metadata,
        architecture or next(named, ""),
        _is_plain(keys),
    )


def _is_plain(keys: list[str]) -> bool:
    others = map(BEYOND_LORA.search, keys)
    of_sd3 = (key.startswith("diffusion_model.joint_blocks.") for key in keys)  # save in diffusers'
    return not any(others) and not any(of_sd3)


def _kind(told: list[str], keys: list[str]) -> str:
    if told == ["textual-inversion"] or ONE_ENCODER in keys:
        return EMBEDDING
    if told == ["lora"] or any(map(OF_A_LORA.search, keys)):
        return LORA
    return EMBEDDING if {*keys} <= {"clip_l", "clip_g", "t5xxl"} else CHECKPOINT
