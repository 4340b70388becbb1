"""How many tokens a caption has, by the host's own CLIP tokenizer; no model is needed."""

from __future__ import annotations

import functools

from comfy.sd1_clip import SDTokenizer


def count_tokens(text: str) -> int:
    """Tokens of `text` as training reads it, literally, with one mark of start and one of end."""
    parts = _tokenizer().tokenize_with_weights(text, disable_weights=True)
    return sum(len(part) - 2 for part in parts) + 2


@functools.cache
def _tokenizer() -> SDTokenizer:
    return SDTokenizer(pad_to_max_length=False)
