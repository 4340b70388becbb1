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

from torch import Tensor

from ....trainers.data.tokens import find_tokens
from ....trainers.errors import UnsupportedModelError
from ....trainers.methods.results import Embedding

FIRST_NAME = 0xE000  # of the private use area, which no prompt uses
NOT_A_FILE = r"(?![\w/\\-]|\.\w)"  # `embedding:sks.pt` and `embedding:sks/a` mean files
Answers = Mapping[str, Mapping[str, Tensor]]  # what is spliced in, by token, by text encoder


def with_embedding(clip: Any, embedding: Embedding) -> Any:
    """A clone of `clip` that knows the token of `embedding`; one that it knew is replaced.

    Raises:
        UnsupportedModelError: the embedding was made for other text encoders.
    """
    found = widths(clip.tokenizer)
    needed = {name: rows.shape[1] for name, rows in embedding.rows.items()}
    if needed != found:
        raise UnsupportedModelError(
            f"The embedding '{embedding.token}' is for {_listed(needed)}, but input 'clip' has "
            f"{_listed(found)}.\nUse it with the kind of base model that it was trained on."
        )
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
    """The text encoders of a CLIP, by the attributes that its module and its tokenizer share."""
    names = [name for name, _ in clip.cond_stage_model.named_children()]
    return tuple(name for name in names if name in widths(clip.tokenizer))


def token_key(encoder: str) -> str:
    """Where the host's tokens of a text have those of one encoder."""
    return encoder.removeprefix("clip_")


def plain_tokenizer(tokenizer: Any) -> Any:
    """The host's own one, without what this pack's nodes taught it."""
    return getattr(tokenizer, "personalize_plain", tokenizer)


def knowing(tokenizer: Any, answers: Answers) -> Any:
    """A copy that answers for these tokens alone, with these rows."""
    plain = plain_tokenizer(tokenizer)
    known = copy.copy(plain)
    known.personalize_plain = plain
    if answers:
        for name in widths(plain):
            by_token = {token: by[name] for token, by in answers.items() if name in by}
            setattr(known, name, _one_knowing(getattr(plain, name), by_token))
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


def _pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    ours = find_tokens(tokens).pattern
    return re.compile(
        rf"embedding:(?P<named>{ours}){NOT_A_FILE}|embedding:\S+|(?P<bare>{ours})", re.IGNORECASE
    )


def _marked(text: str, pattern: re.Pattern[str], names: Mapping[str, str]) -> str:
    """`text` with each learned token as a word that the host looks up."""

    def mark(found: re.Match[str]) -> str:
        token = found["named"] or found["bare"]
        # Blanks divide words for CLIP anyway: the token is a whole word.
        return f" embedding:{names[token.lower()]} " if token else found.group()

    return pattern.sub(mark, text)


def widths(tokenizer: Any) -> dict[str, int]:
    """The width of each text encoder, by its tokenizer's attribute: clip_l, clip_g ..."""
    return {
        name: part.embedding_size
        for name, part in vars(tokenizer).items()
        if hasattr(part, "embedding_size")
    }


def _listed(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({width} wide)" for name, width in widths.items()) or "none"
