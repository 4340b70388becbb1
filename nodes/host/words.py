"""What the host knows about the words of a caption: how many tokens they are, its embeddings."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import folder_paths
from comfy.sd1_clip import SDTokenizer

from ...trainers.data.tokens import EMBEDDING

ENDINGS = ("", ".safetensors", ".pt", ".bin")  # as the host tries them
NAMED = re.compile(r"embedding:([^\s<\[]+)")  # in whatever brackets
SIGNS = re.compile("[,():]")


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
    return embedding_file(name) is not None


def embedding_file(name: str) -> str | None:
    """The file that answers to `embedding:name`, by its path in an embeddings folder; None where
    there is none. As the host does, it looks into sub-folders too.
    """
    listed = [file.replace("\\", "/") for file in folder_paths.get_filename_list("embeddings")]
    for wanted in (name + ending for ending in ENDINGS):
        deeper = (file for file in listed if file.endswith(f"/{wanted}"))
        if found := wanted if wanted in listed else next(deeper, None):
            return found
    return None


def embeddings_in(text: str) -> Iterator[str]:
    """The files that a prompt names, by their paths in an embeddings folder."""
    for named in NAMED.findall(text):
        name = named.replace("\\(", "(").replace("\\)", ")").replace("\\", "/")
        # What ends it may be of the name or of the prompt: `mood:1.2),`. The longest file is meant.
        ends = [len(name), *(sign.start() for sign in SIGNS.finditer(name))]
        files = map(embedding_file, (name[:end] for end in sorted(ends, reverse=True)))
        yield from filter(None, [next(filter(None, files), None)])


@functools.cache
def _tokenizer() -> Any:
    return SDTokenizer()
