"""Learned tokens in the host's CLIP: a clone whose tokenizer answers for them, without a file.

The host splices rows into a prompt where its tokenizer finds `embedding:<file>`. A copy of the
tokenizer reads the bare token as such a word, named by a character of the private use area, and
answers for that name itself. So weights, long prompts and all else stay the host's own code, and
the conditioning is the one that the saved file would give.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....trainers.data.tokens import find_tokens
from ....trainers.errors import UnsupportedModelError
from ....trainers.methods.results import Embedding

FIRST_NAME = 0xE000  # of the private use area, which no prompt uses
NOT_A_FILE = r"(?![\w/\\-]|\.\w)"  # `embedding:sks.pt` and `embedding:sks/a` mean files
Answers = Mapping[str, Mapping[str, Tensor]]  # what is spliced in, by token, by text encoder


def check_takes_tokens(clip: Any) -> None:
    """Raise UnsupportedModelError if the host's tokenizer of `clip` takes no learned tokens."""
    token = "<probe>"
    rows = {name: torch.zeros(2, width) for name, width in widths(clip).items()}
    try:
        knowing(clip.tokenizer, {token: rows}).tokenize_with_weights(token)
    except RuntimeError as error:  # it compares what may be rows with a number
        raise UnsupportedModelError(
            f"Input 'clip' has {_listed(widths(clip))}, whose tokenizer in this ComfyUI takes no "
            "learned tokens, from files neither.\nTrain a LoRA or DreamBooth instead."
        ) from error


def with_embedding(clip: Any, embedding: Embedding) -> Any:
    """A clone of `clip` that knows the token of `embedding`; one that it knew is replaced.

    Raises:
        UnsupportedModelError: the embedding was made for other text encoders.
    """
    found = widths(clip)
    needed = {name: rows.shape[1] for name, rows in embedding.rows.items()}
    if needed != found:
        raise UnsupportedModelError(
            f"The embedding '{embedding.token}' is for {_listed(needed)}, but input 'clip' has "
            f"{_listed(found)}.\nUse it with the kind of base model that it was trained on."
        )
    check_takes_tokens(clip)
    others = [e for e in embeddings_of(clip) if e.token.lower() != embedding.token.lower()]
    known = (*others, embedding)
    clone = clip.clone()
    clone.tokenizer = knowing(clip.tokenizer, {e.token: e.rows for e in known})
    clone.tokenizer.personalize_embeddings = known
    return clone


def with_embeddings(clip: Any, embeddings: Iterable[Embedding]) -> Any:
    """The same for several; `clip` itself for none."""
    for embedding in embeddings:
        clip = with_embedding(clip, embedding)
    return clip


def embeddings_of(clip: Any) -> tuple[Embedding, ...]:
    """The learned tokens that `clip` knows from nodes of this pack."""
    known: tuple[Embedding, ...] = getattr(clip.tokenizer, "personalize_embeddings", ())
    return known


def encoder_names(clip: Any) -> tuple[str, ...]:
    """The text encoders of a CLIP, by the attributes of its module."""
    return tuple(widths(clip))


def widths(clip: Any) -> dict[str, int]:
    """The width of each text encoder: clip_l, clip_g, t5xxl, qwen3_4b ..."""
    sizes = {
        name: part.embedding_size
        for attribute, part in _tokenizers(clip.tokenizer).items()
        for name in _names(attribute)
    }
    encoders = [name for name, _ in clip.cond_stage_model.named_children()]
    return {name: sizes[name] for name in encoders if name in sizes}


def _tokenizers(tokenizer: Any) -> dict[str, Any]:
    """Those of each text encoder, by their attribute; some only give a denoiser ids."""
    return {name: part for name, part in vars(tokenizer).items() if hasattr(part, "embedding_size")}


def _names(attribute: str) -> tuple[str, ...]:
    """What the text encoder of a tokenizer is called: the same, or without the host's prefix."""
    return attribute, attribute.removeprefix("clip_")


def token_key(encoder: str) -> str:
    """Where the host's tokens of a text have those of one encoder."""
    return encoder.removeprefix("clip_")


def plain_tokenizer(tokenizer: Any) -> Any:
    """The host's own one, without what this pack's nodes taught it."""
    return getattr(tokenizer, "personalize_plain", tokenizer)


def literal(clip: Any) -> Any:
    """A CLIP around the same modules that takes texts literally: parentheses weigh nothing."""
    reader = copy.copy(clip)
    learned = {e.token: e.rows for e in embeddings_of(clip)}
    reader.tokenizer = knowing(clip.tokenizer, learned, weights=False)
    return reader


def knowing(tokenizer: Any, answers: Answers, weights: bool = True) -> Any:
    """A copy that answers for these tokens alone, with these rows.

    Args:
        weights: whether parentheses are weights or text.
    """
    plain = plain_tokenizer(tokenizer)
    known = copy.copy(plain)
    known.personalize_plain = plain
    for attribute, part in _tokenizers(plain).items():
        if not weights:
            part = copy.copy(part)
            part.disable_weights = True
        by_token = {
            token: by[name]
            for token, by in answers.items()
            for name in _names(attribute)
            if name in by
        }
        if by_token:
            part = _one_knowing(part, by_token)
        elif answers:
            part = _one_without(part, answers)
        setattr(known, attribute, part)
    return known


def _one_knowing(plain: Any, rows: Mapping[str, Tensor]) -> Any:
    """A copy of one encoder's tokenizer that answers for the tokens in `rows`."""
    known = copy.copy(plain)
    # Without folders to look in, the host would not read `embedding:` at all.
    known.embedding_directory = plain.embedding_directory or []
    names = {token.lower(): chr(FIRST_NAME + place) for place, token in enumerate(rows)}
    by_name = {names[token.lower()]: vectors for token, vectors in rows.items()}
    marked = partial(_marked, pattern=_pattern(rows), names=names)
    read = type(plain).tokenize_with_weights
    look_up = partial(type(plain)._try_get_embedding, known)
    probe = copy.copy(plain)
    probe.embedding_directory = []
    # Older ComfyUIs answer (rows, leftover), newer ones (rows, name, leftover).
    has_name = len(probe._try_get_embedding(chr(FIRST_NAME))) == 3

    def try_get_embedding(words: str) -> tuple[Any, ...]:
        name, *rest = words.split()
        if name not in by_name:
            answer: tuple[Any, ...] = look_up(words)
            return answer
        return by_name[name], *([name] if has_name else []), " ".join(rest)

    def tokenize_with_weights(text: str, *args: Any, **options: Any) -> Any:
        return read(known, marked(text), *args, **options)

    known._try_get_embedding = try_get_embedding
    known.tokenize_with_weights = tokenize_with_weights
    return known


def _one_without(plain: Any, tokens: Iterable[str]) -> Any:
    """A copy of a tokenizer, of no text encoder that learns, that reads past these tokens."""
    known = copy.copy(plain)
    read, pattern = type(plain).tokenize_with_weights, _pattern(tokens)

    def tokenize_with_weights(text: str, *args: Any, **options: Any) -> Any:
        text = pattern.sub(lambda found: "" if found["named"] or found["bare"] else found[0], text)
        return read(known, text, *args, **options)

    known.tokenize_with_weights = tokenize_with_weights
    return known


def _pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    ours = find_tokens(tokens).pattern
    return re.compile(
        rf"embedding:(?P<named>{ours}){NOT_A_FILE}|embedding:\S+|(?P<bare>{ours})", re.IGNORECASE
    )


def _marked(text: str, pattern: re.Pattern[str], names: Mapping[str, str]) -> str:
    """`text` with each learned token as a word that the host looks up."""

    def mark(found: re.Match[str]) -> str:
        token = found["named"] or found["bare"]
        if not token:
            return found.group()
        # Blanks around it make it a word. They divide words for CLIP anyway; language models read
        # each blank, so there is none beside one that is there already.
        before = "" if found.start() == 0 or text[found.start() - 1].isspace() else " "
        behind = "" if text[found.end() : found.end() + 1].isspace() else " "
        return f"{before}embedding:{names[token.lower()]}{behind}"

    return pattern.sub(mark, text)


def _listed(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({width} wide)" for name, width in widths.items()) or "none"
