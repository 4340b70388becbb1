"""Words of a text that are more than words: learned tokens, rare words, names of embeddings.

A learned token is a whole word: `sks` is found in "a sks, please" and in "sks-dog", not in "asks".
Large and small letters are the same, as they are for CLIP's own words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# As the host reads it: up to a blank, a bracket, or commas at the end.
EMBEDDING = re.compile(r"(?<!\S)embedding:([^\s<\[]+)")
# `<dog>`, `my_dog`; and what begins with a consonant and has no vowel, as `sks`, `rb1`, `p3rs0n`.
RARE = re.compile(
    r"<[\w-]+>|(?<!\w)(?:[a-z0-9]*_\w*|[b-df-hj-np-tv-xz][b-df-hj-np-tv-xz0-9]{2,}|ohwx)(?!\w)",
    re.IGNORECASE,
)
NOT_RARE = frozenset(
    "bbq bmw cctv cnc dnd dslr dvd gps hdr html jpg lcd mp3 mrs nsfw nth nyc png ps4 ps5 pvc rgb "
    "rpg sdxl sfw vhs xbox".split()
)


def find_tokens(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches each of `tokens` where it is a whole word, the longest first."""
    longest_first = sorted(tokens, key=len, reverse=True)
    assert longest_first, "an empty pattern would match everywhere"
    return re.compile("|".join(map(_whole_word, longest_first)), re.IGNORECASE)


def has_token(text: str, token: str) -> bool:
    """Whether `token` is one of the words of `text`."""
    return find_tokens([token]).search(text) is not None


def rare_words(text: str) -> tuple[str, ...]:
    """The words of `text` that nobody writes but as a name for what is learned, in small letters.

    Such are `sks`, `ohwx`, `zwx`, `rb1`, `p3rs0n`, `my_dog`, `<dog>`: words in angle brackets, with
    an underscore, or of three letters and more (digits may be among them) without a vowel, save
    abbreviations. A name like `anna` is not told from any other word; an ordinary word is never
    taken for a rare one.
    """
    found = (word.lower() for word in RARE.findall(EMBEDDING.sub("", text)))
    return tuple(dict.fromkeys(word for word in found if word not in NOT_RARE))


def embeddings_in(text: str) -> tuple[str, ...]:
    """The names in `text` that are written as `embedding:name`."""
    names = (name.rstrip(",") for name in EMBEDDING.findall(text))
    return tuple(dict.fromkeys(name for name in names if name))


def put_in(caption: str, token: str, instead_of: str) -> str:
    """`caption` with `token` in it.

    A caption that has it stays as it is. Otherwise it stands for the first `instead_of`, or, where
    there is none, before the caption.
    """
    if has_token(caption, token):
        return caption
    if instead_of.strip() and (found := find_tokens([instead_of.strip()]).search(caption)):
        return caption[: found.start()] + token + caption[found.end() :]
    return f"{token}, {caption}" if caption else token


def _whole_word(token: str) -> str:
    before = r"(?<!\w)" if re.match(r"\w", token) else ""
    after = r"(?!\w)" if re.search(r"\w$", token) else ""
    return before + re.escape(token) + after
