"""LoRA files of any program: read, checked, and asked what they are for and what prompts need."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import AdapterError
from ..methods.results import not_finite
from ..models.architectures import ARCHITECTURES, GENERIC, Architecture

ENDINGS = (".safetensors", ".sft")  # others cannot be read without trusting them
# Of a text encoder, as kohya, ComfyUI and diffusers spell it; all else is of the denoiser.
TEXT = re.compile(r"lora_te\d?_|text_encoders?(_\d)?\.|clip_[a-z]\.|bundle_emb\.")
# What the keys of a file give away where its metadata is silent; the first that fits counts.
SIGNS = (
    (r"emb_params$|string_to_param|(clip_[lgh]|t5xxl)$",
     "an embedding: put it into models/embeddings and write embedding:name in the prompt"),
    (r"(model\.diffusion_model|cond_stage_model|conditioner)\.",
     "a whole checkpoint: use Load Checkpoint"),
    (r"control_model\.|controlnet_|lllite_", "a ControlNet: use Load ControlNet Model"),
    (r"(first_stage_model\.)?(encoder|decoder)\.(conv_in|down|up|mid)", "a VAE: use Load VAE"),
    (r".*(double_blocks|single_transformer_blocks)[._]", "Flux or a relative of it"),
    (r".*joint_blocks[._]|lora_te3_", "Stable Diffusion 3"),
    (r"lora_te2_|lora_unet_(input|output)_blocks", "Stable Diffusion XL"),
    (r"lora_te_|lora_unet_(down|mid|up)_block", "Stable Diffusion 1.5 or 2"),
)  # fmt: skip


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file on the CPU, and its metadata.

    Raises:
        AdapterError: it is cut, or no safetensors file, or cannot be read.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise AdapterError(
            f"'{path.name}' cannot be read ({error}); allowed: a whole safetensors file.\n"
            "Download or copy it again, or save it anew."
        ) from error


def check_numbers(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise AdapterError if a tensor has numbers that are NaN or infinite."""
    if broken := not_finite(tensors):
        raise AdapterError(
            f"{name} has numbers that are NaN or infinite, in {len(broken)} of {len(tensors)} "
            f"tensors, such as {broken[0]}; allowed: finite ones.\n"
            "Switch it off, or take one from an earlier step of its training."
        )


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """What a LoRA needs in a prompt, as its file says; nothing where it does not say.

    That is modelspec's trigger phrase, or else the tags that each picture of a folder has, by
    kohya's counts. One picture has each of its tags, so folders of one say nothing.
    """
    if phrase := metadata.get("modelspec.trigger_phrase", "").strip():
        return [phrase]
    tags, folders = (_record(metadata, f"ss_{what}") for what in ("tag_frequency", "dataset_dirs"))
    found = []
    for folder, counts in tags.items():
        about = folders.get(folder)
        pictures = about.get("img_count") if isinstance(about, dict) else None
        if isinstance(pictures, int) and pictures > 1 and isinstance(counts, dict):
            found += [tag.strip() for tag, number in counts.items() if number == pictures]
    return list(dict.fromkeys(filter(None, found)))


def _record(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        record = json.loads(metadata.get(name, ""))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def said_architecture(metadata: Mapping[str, str]) -> Architecture:
    """The record of the base model that a file says it is for; GENERIC where there is none."""
    spec = metadata.get("modelspec.architecture", "").split("/")[0]
    version = metadata.get("ss_base_model_version", "")
    for record in ARCHITECTURES.values():
        if record is not GENERIC and (spec == record.modelspec or version.startswith(
            record.base_model_version
        )):  # fmt: skip
            return record
    return GENERIC


def made_for(metadata: Mapping[str, str], keys: Iterable[str]) -> str:
    """What a file seems to be for, in the user's words."""
    record = said_architecture(metadata)
    if record is not GENERIC:
        return record.title
    said = metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version")
    if said:
        return f"'{said[:80]}'"
    names = sorted(keys)
    for sign, words in SIGNS:
        if any(re.match(sign, name) for name in names):
            return words
    return f"something unknown: its first tensor is {names[0][:80]!r}" if names else "nothing"
