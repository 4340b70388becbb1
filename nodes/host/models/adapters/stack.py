"""Several LoRAs and learned tokens onto one MODEL and CLIP, from files and from the graph."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import comfy.hooks
import folder_paths
from torch import Tensor

from .....trainers.errors import AdapterError
from .....trainers.methods.results import Embedding
from .....trainers.models.architectures import GENERIC
from .....trainers.runs.foreign import (
    ENDINGS,
    TEXT,
    check_numbers,
    made_for,
    read_lora,
    said_architecture,
    trigger_words,
)
from ..support import record_of
from ..tokenizer import with_embedding
from ..weights import apply_lora
from .limits import blocks_of, hooks_of, portions, with_hooks, with_portions


@dataclass(frozen=True)
class Row:
    """One thing to stack.

    Attributes:
        place: the input that it came by.
        item: a file's name in the loras folders, a LoRA's tensors, or a learned token.
        strength_model: of the denoiser's part; nothing to a learned token.
        strength_clip: of the text encoders' part; nothing to a learned token.
        start, end: the part of sampling in which it is in force, from 0 to 1.
        blocks: block weights as a text; empty for no limit.
    """

    place: str
    item: str | Mapping[str, Tensor] | Embedding
    strength_model: float
    strength_clip: float
    start: float = 0.0
    end: float = 1.0
    blocks: str = ""

    @property
    def title(self) -> str:
        named = f"'{self.item}'" if isinstance(self.item, str) else "the LoRA that is wired in"
        return f"{self.place}: {named}"

    @property
    def counts(self) -> bool:
        strengths = (self.strength_model, self.strength_clip)
        return isinstance(self.item, Embedding) or any(strengths)

    @property
    def is_scheduled(self) -> bool:
        return self.start > 0 or self.end < 1

    @property
    def is_limited(self) -> bool:
        return self.is_scheduled or bool(self.blocks.strip())


def lora_files() -> list[str]:
    """The files in the host's loras folders, output/loras among them, that can be stacked."""
    names: list[str] = folder_paths.get_filename_list("loras")
    return [name for name in names if name.lower().endswith(ENDINGS)]


def rows_of_stack(lora_stack: Any) -> list[Row]:
    """A LORA_STACK as rows.

    Raises:
        AdapterError: it is something else than triples of file, model and clip strength.
    """
    rows = []
    for number, entry in enumerate(lora_stack or (), start=1):
        if not isinstance(entry, Sequence) or len(entry) != 3 or not isinstance(entry[0], str):
            raise AdapterError(
                f"lora_stack: entry {number} is {str(entry)[:80]!r}; allowed: a file's name and "
                "two strengths.\nWire a LORA_STACK of a node that stacks LoRA files."
            )
        rows.append(Row(f"lora_stack, entry {number}", *entry))
    return rows


class Stacked(NamedTuple):
    """What a stack gives: see the outputs of Adapter Stack."""

    model: Any
    clip: Any
    lora_stack: list[tuple[str, float, float]]
    triggers: str
    hooks: Any


def apply_stack(model: Any, clip: Any, rows: Sequence[Row]) -> Stacked:
    """All rows that have a strength on MODEL and CLIP, of which one that is None stays None.

    The LORA_STACK has what came as files; limits have no place in it, so those with limits are
    left out. Rows for a part of sampling are hooks, and the CLIP carries them.

    Raises:
        AdapterError: a file that is not there or cannot be used, something that is there twice, or
            a limit that is not allowed.
        UnsupportedModelError: a learned token is for other text encoders.
    """
    rows = [row for row in rows if row.counts]
    _check_strengths(rows)
    _check_files(rows)
    _check_limits(model, clip, rows)
    _check_each_once(rows)
    triggers: list[str] = []
    hooks = comfy.hooks.HookGroup()
    for row in rows:
        if isinstance(row.item, Embedding):
            clip = _with_token(clip, row.place, row.item)
            triggers.append(row.item.token)
        else:
            tensors, metadata = _read(row.item)
            check_numbers(row.title, tensors)
            before = model, clip
            model, clip = _with_lora(*before, row, tensors, metadata)
            if row.is_limited:
                model, clip, more = _limited(before, (model, clip), row)
                hooks = hooks.clone_and_combine(more)
            triggers += trigger_words(metadata)
    if len(hooks):
        clip = with_hooks(clip, hooks)
    stack = [
        (row.item, row.strength_model, row.strength_clip)
        for row in rows
        if isinstance(row.item, str) and not row.is_limited
    ]
    return Stacked(model, clip, stack, ", ".join(dict.fromkeys(triggers)), hooks)


def _limited(before: tuple[Any, Any], patched: tuple[Any, Any], row: Row) -> tuple[Any, Any, Any]:
    """(MODEL, CLIP, hooks) with what of a row's LoRA its limits leave."""
    blocks = blocks_of(before[0])
    weights = blocks.weights(row.blocks.strip() or "ALL", row.title)
    parts = portions(before, patched, weights, blocks)
    strengths = row.strength_model, row.strength_clip
    if row.is_scheduled:
        return *before, hooks_of(parts, strengths, row.start, row.end)
    return *with_portions(*before, parts, *strengths), None


def _check_strengths(rows: Iterable[Row]) -> None:
    for row in rows:
        for strength in (row.strength_model, row.strength_clip):
            if not isinstance(strength, int | float) or not math.isfinite(strength):
                raise AdapterError(
                    f"{row.title} has the strength {strength!r}; allowed: a finite number.\n"
                    "Change it and queue again."
                )


def _check_files(rows: Iterable[Row]) -> None:
    """Only what the host lists is opened: no name leads out of its folders."""
    listed = lora_files()
    missing = [r.title for r in rows if isinstance(r.item, str) and r.item not in listed]
    if missing:
        raise AdapterError(
            f"No such file: {'; '.join(missing)}; allowed: .safetensors files in ComfyUI's loras "
            "folders (models/loras, output/loras).\nPut it there and press R, or choose another "
            "one or None."
        )


def _check_limits(model: Any, clip: Any, rows: Iterable[Row]) -> None:
    """Raise AdapterError for parts of sampling that are none, and limits that nothing can hold."""
    for row in rows:
        if not 0 <= row.start < row.end <= 1:
            raise AdapterError(
                f"{row.title} has start {row.start!r} and end {row.end!r}; allowed: from 0 to 1, "
                "start below end.\nChange them, or switch the row off."
            )
        if row.is_limited and isinstance(row.item, Embedding):
            raise AdapterError(
                f"{row.place}: the token '{row.item.token}' has blocks, start or end; allowed: "
                "none, for it works through the prompt.\nPut the prompt with it into a part of "
                "sampling with ComfyUI's ConditioningSetTimestepRange."
            )
        needed = {"model": row.is_limited, "clip": row.is_scheduled}
        sockets = {"model": model, "clip": clip}
        missing = [name for name, wanted in needed.items() if wanted and sockets[name] is None]
        if missing:
            raise AdapterError(
                f"{row.title} is for a part of {'sampling' if row.is_scheduled else 'the blocks'}, "
                f"and input '{missing[0]}' has nothing; allowed: with model"
                f"{' and clip, whose prompts carry the schedule' if row.is_scheduled else ''}.\n"
                "Wire it and encode the prompts with the clip output, or clear blocks, start and "
                "end."
            )


def _check_each_once(rows: Sequence[Row]) -> None:
    """Raise AdapterError for what is there twice at one time: it would count twice unseen."""
    for number, row in enumerate(rows):
        for first in rows[:number]:
            apart = first.end <= row.start or row.end <= first.start
            if apart or _identity(first.item) != _identity(row.item):
                continue
            what = f"token '{row.item.token}'" if isinstance(row.item, Embedding) else row.title
            raise AdapterError(
                f"{what} is in {first.place} as well; allowed: each once, or in parts of sampling "
                "that are apart.\nSwitch one of them off and set the strength of the other. Of "
                "another stack, wire either model and clip or lora_stack."
            )


def _identity(item: str | Mapping[str, Tensor] | Embedding) -> Any:
    if isinstance(item, str):
        return os.path.realpath(_path(item))
    return ("token", item.token.lower()) if isinstance(item, Embedding) else id(item)


def _path(name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise("loras", name))


def _read(item: str | Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    if isinstance(item, str):
        return read_lora(_path(item))
    return item, getattr(item, "metadata", {})


def _with_token(clip: Any, place: str, embedding: Embedding) -> Any:
    if clip is None:
        raise AdapterError(
            f"{place}: the token '{embedding.token}' needs a clip, and input 'clip' has none.\n"
            "Wire the clip of Load Checkpoint, or switch the row off."
        )
    return with_embedding(clip, embedding)


def _with_lora(
    model: Any, clip: Any, row: Row, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[Any, Any]:
    patched = apply_lora(model, clip, tensors, row.strength_model, row.strength_clip)
    text = any(TEXT.match(key) for key in tensors)
    denoiser = not all(TEXT.match(key) for key in tensors)
    judged = [
        _num_patches(new) > _num_patches(old)
        for old, new, has_part in ((model, patched[0], denoiser), (clip, patched[1], text))
        if old is not None and has_part
    ]
    said, wanted = said_architecture(metadata), GENERIC
    if model is not None:
        wanted = record_of(model)
    other = GENERIC not in (said, wanted) and said is not wanted
    # Kinds of models share names of text layers: where there is a denoiser, it decides.
    if other or not tensors or (judged and not judged[0]):
        target = (
            "none of its layers is there" if wanted is GENERIC else f"'model' is {wanted.title}"
        )
        raise AdapterError(
            f"{row.title} is not for this model: it seems to be for {made_for(metadata, tensors)}; "
            f"{target}.\nChoose a LoRA that was trained on this kind of base model, or switch it "
            "off."
        )
    return patched


def _num_patches(target: Any) -> int:
    """How often a MODEL's or CLIP's weights are patched."""
    return sum(map(len, getattr(target, "patcher", target).patches.values()))
