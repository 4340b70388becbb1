"""Learned tokens in a text: where they stand, and how one is put in.

A learned token is a whole word: `sks` is found in "a sks, please" and in "sks-dog", not in "asks".
Large and small letters are the same, as they are for CLIP's own words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def find_tokens(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches each of `tokens` where it is a whole word, the longest first."""
    longest_first = sorted(tokens, key=len, reverse=True)
    assert longest_first, "an empty pattern would match everywhere"
    return re.compile("|".join(map(_whole_word, longest_first)), re.IGNORECASE)


def has_token(text: str, token: str) -> bool:
    """Whether `token` is one of the words of `text`."""
    return find_tokens([token]).search(text) is not None


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
