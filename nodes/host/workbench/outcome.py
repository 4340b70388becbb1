"""What a run on disk came to, as nodes hand it out: by the node that trained it, or later."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ....trainers.data.captions import one_line
from ....trainers.data.tokens import has_token
from ....trainers.methods.results import Adapter, Embedding
from ....trainers.objective.prompts import caption_prompts
from ....trainers.runs.folder import Result, RunFolder
from ....trainers.runs.story import last_preview, preview_steps
from ....trainers.settings.run import RunConfig
from ..models.tokenizer import embeddings_of


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
        text_encoders: names of the base's.
        loss_map: the loss of every step, and what else Plot Loss shows.
    """

    learned: Adapter
    text_encoders: tuple[str, ...]
    loss_map: dict[str, list[Any]]
    run: Path


def outcome_of(
    folder: RunFolder,
    result: Result,
    text_encoders: tuple[str, ...],
    needed: tuple[Embedding, ...],
) -> Outcome:
    """What a result is to the graph.

    Args:
        needed: the learned tokens that its captions have.
    """
    preview = last_preview(folder.path, result.steps)
    learned = Adapter(result.tensors, result.metadata, needed, preview)
    return Outcome(learned, text_encoders, loss_map_of(folder, result), folder.path)


def loss_map_of(folder: RunFolder, result: Result) -> dict[str, list[Any]]:
    """The loss of every step, and by step what else Plot Loss shows."""
    rows = result.metrics
    began = [rows[0]["step"]] if rows and rows[0]["step"] > 1 else []  # with another run's state
    return {
        "loss": [row["loss"] for row in rows],
        "validation": [(row["step"], row["validation"]) for row in rows if "validation" in row],
        "previews": preview_steps(folder.path, result.steps),
        "states": [step for step in folder.state_steps if step <= result.steps],
        **({"first_step": began} if began else {}),
    }


def captions_read(
    config: RunConfig, captions: Sequence[str], of_classes: Iterable[str]
) -> list[str]:
    """All that prompts say in a run, but for what templates make of it."""
    drawn = caption_prompts(captions, config.objective, config.training.seed)
    prompts = [text for texts in drawn.values() for text in texts]
    return [*prompts, *map(one_line, of_classes), config.objective.class_prompt]


def needed_tokens(
    clip: Any, trained: Mapping[str, Mapping[str, Tensor]], captions: Sequence[str]
) -> tuple[Embedding, ...]:
    """What a clip knows of the words in captions beside its vocabulary, as trained now.

    Args:
        clip: one that is not loaded, None, comes from a file and knows no more than that.
        trained: rows by token and text encoder.
    """
    return tuple(
        dataclasses.replace(embedding, rows=trained.get(embedding.token, embedding.rows))
        for embedding in (embeddings_of(clip) if clip is not None else ())
        if any(has_token(caption, embedding.token) for caption in captions)
    )
