"""What the host knows about the words of a caption: how many tokens they are, its embeddings."""

from __future__ import annotations

import functools
from typing import Any

import folder_paths
from comfy.sd1_clip import SDTokenizer

from ...trainers.data.tokens import EMBEDDING

ENDINGS = ("", ".safetensors", ".pt", ".bin")  # as the host tries them


@functools.lru_cache(maxsize=4096)
def count_tokens(text: str) -> int:
    """How many tokens CLIP makes of a caption, taken literally; `embedding:name` counts for none,
    since training takes no such word.
    """
    literal = EMBEDDING.sub("", text)
    windows = _tokenizer().tokenize_with_weights(
        literal, return_word_ids=True, disable_weights=True
    )
    return sum(word > 0 for window in windows for *_, word in window)


def is_embedding(name: str) -> bool:
    """Whether a file of the host's embeddings folders answers to `embedding:name`."""
    return any(folder_paths.get_full_path("embeddings", name + ending) for ending in ENDINGS)


@functools.cache
def _tokenizer() -> Any:
    return SDTokenizer()
