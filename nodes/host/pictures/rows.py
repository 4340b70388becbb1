"""The rows of a comparison: the base, adapters at strengths, and what one run has learned."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
from torch import Tensor

from ....trainers.errors import AdapterError, RunError
from ....trainers.methods.results import ONE_ENCODER, Embedding
from ....trainers.runs.fingerprint import tensors_fingerprint
from ....trainers.runs.folder import Result, RunFolder
from ....trainers.runs.foreign import read_lora
from ....trainers.runs.kept.steps import result_at, steps_with_room
from ....trainers.runs.pictures.grid import Label
from ..folders import find_run, runs_folder
from ..models.adapters.stack import Row as StackRow
from ..models.adapters.stack import apply_stack
from ..models.tokenizer import encoder_names, with_embeddings
from ..models.weights import apply_weights, changed_weights, host_key, host_weights

log = logging.getLogger(__name__)

FOLDER = "compare"  # of cells, in the folder of all runs or of the one that is compared
LORA, TOKEN = "lora", "textual-inversion"  # what the file of a run's result says that it is

Pair = tuple[Any, Any]  # MODEL and CLIP
Patch = Callable[[Any, Any], Pair]


@dataclass(frozen=True)
class Row:
    """One row of a comparison.

    Attributes:
        strength: of what is patched in; None for nothing, and where none can be chosen.
        digest: a hash of what is patched in; None for nothing.
        parent: where the folders of its cells are.
        tokens: what the clip is taught.
        patch: puts the rest onto a MODEL and CLIP.
    """

    label: Label
    parent: Path
    strength: float | None = None
    digest: str | None = None
    tokens: tuple[Embedding, ...] = ()
    patch: Patch = lambda model, clip: (model, clip)

    def clip(self, clip: Any) -> Any:
        """The base's clip, with the learned tokens alone."""
        return with_embeddings(clip, self.tokens)

    def apply(self, model: Any, clip: Any) -> Pair:
        """MODEL and CLIP of this row."""
        return self.patch(model, self.clip(clip))


def base_row() -> Row:
    """The base without any adapter."""
    return Row(Label("base"), runs_folder() / FOLDER)


def adapter_rows(
    base: Pair, place: str, item: str | Mapping[str, Tensor] | Embedding, strengths: Sequence[float]
) -> Iterator[Row]:
    """A learned token, or a LoRA at each strength.

    Args:
        base: MODEL and CLIP, only to see that it fits.
        place: the input that it came by.
        item: a file's name in the loras folders, a LoRA's tensors, or a learned token.

    Raises:
        AdapterError, UnsupportedModelError: it cannot be used with this base.
    """
    apply_stack(*base, [StackRow(place, item, 1.0, 1.0)])
    parent = runs_folder() / FOLDER
    if isinstance(item, Embedding):
        yield Row(Label(item.token), parent, tokens=(item,))
        return
    if isinstance(item, str):
        title = os.path.splitext(item)[0]
        tensors: Mapping[str, Tensor] = read_lora(
            Path(folder_paths.get_full_path_or_raise("loras", item))
        )[0]
    else:
        title = f"{getattr(item, 'metadata', {}).get('modelspec.title', 'LoRA')} ({place})"
        tensors = item
    digest = _digest(tensors)
    for strength in strengths:
        patch = partial(_with_lora, StackRow(place, item, strength, strength))
        yield _lora_row(title, parent, strength, digest, (), patch)


def run_rows(base: Pair, run: str, strengths: Sequence[float], most_rows: int) -> Iterator[Row]:
    """What a run has learned, at each step that it keeps, and a LoRA at each strength.

    Args:
        base: MODEL and CLIP, only to see that it fits.
        run: the run's folder, or its name.
        most_rows: of results there are all, of states as many as have room.

    Raises:
        AdapterError, RunError, UnsupportedModelError: there is no such run, or it cannot be used
            with this base.
    """
    folder = find_run(run, "run", "Wire the run output of a training node.")
    rows_each = len(strengths) if folder.facts.get("method") == "lora" else 1
    kept, left_out = steps_with_room(folder, most_rows // rows_each)
    if left_out:
        log.warning(
            "Personalize: Compare: %d states of '%s' have no row, since one sheet bears no more; "
            "fewer strengths or prompts leave room.", left_out, folder.path.name,
        )  # fmt: skip
    if not kept:
        raise RunError(
            f"run: '{folder.path.name}' has no result; allowed: runs that came to an end, or "
            "keep a state.\nLet the training finish, or end it with Stop and keep."
        )
    for steps in kept:
        result = result_at(folder, steps)
        title, parent = f"{steps:,} steps", folder.path / FOLDER
        tokens = _tokens(result, base[1])
        kind, digest = _kind(result), _digest(result.tensors)
        _patched(result, 1.0, *base)
        if kind == TOKEN:
            yield Row(Label(title), parent, tokens=tokens)
            continue
        for strength in strengths if kind == LORA else (1.0,):
            patch = partial(_with_result, folder, steps, strength)
            row = _lora_row(title, parent, strength, digest, tokens, patch)
            yield row if kind == LORA else Row(Label(title), parent, None, digest, tokens, patch)


def _lora_row(
    title: str,
    parent: Path,
    strength: float,
    digest: str,
    tokens: tuple[Embedding, ...],
    patch: Patch,
) -> Row:
    label = Label(title, f"{strength:g}")
    if not strength:  # as the base
        return Row(label, parent, tokens=tokens)
    return Row(label, parent, strength, digest, tokens, patch)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return tensors_fingerprint(dict(sorted(tensors.items())))


def _with_lora(row: StackRow, model: Any, clip: Any) -> Pair:
    return apply_stack(model, clip, [row])[:2]


# -- one run ------------------------------------------------------------------


def _kind(result: Result) -> str:
    return result.metadata.get("modelspec.architecture", "").partition("/")[2]


def _tokens(result: Result, clip: Any) -> tuple[Embedding, ...]:
    """The token that was learned, or those that were trained beside a LoRA."""
    if _kind(result) != TOKEN:
        return tuple(Embedding(token, rows, {}) for token, rows in result.tokens.items())
    rows = dict(result.tensors)
    if ONE_ENCODER in rows:
        rows = {encoder_names(clip)[0]: rows[ONE_ENCODER]}
    return (Embedding(result.metadata["personalize.token"], rows, result.metadata),)


def _with_result(folder: RunFolder, steps: int, strength: float, model: Any, clip: Any) -> Pair:
    # Read when its turn comes: trained models are gigabytes.
    return _patched(result_at(folder, steps), strength, model, clip)


def _patched(result: Result, strength: float, model: Any, clip: Any) -> Pair:
    """MODEL and CLIP with what a run learned, but for tokens."""
    place = f"run, {result.steps} steps"
    if _kind(result) == LORA:
        return _with_lora(StackRow(place, result.tensors, strength, strength), model, clip)
    if _kind(result) == TOKEN:
        return model, clip
    held = host_weights(model, clip)
    shapes = {host_key(key): tensor.shape for key, tensor in result.tensors.items()}
    foreign = [k for k, shape in shapes.items() if k not in held or held[k].shape != shape]
    if foreign:
        raise AdapterError(
            f"{place}: it is a trained model of another kind than 'model': {len(foreign)} of "
            f"{len(shapes)} weights do not fit, such as {foreign[0]}; allowed: runs on this kind "
            "of base model.\nWire the base that the run was trained on, or another run."
        )
    return apply_weights(model, clip, changed_weights(model, clip, dict(result.tensors)))
