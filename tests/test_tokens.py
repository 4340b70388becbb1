"""Learned tokens in texts: whole words only, in any case, the longest first."""

from __future__ import annotations

import pytest

from trainers.data.tokens import has_token, put_in


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a sks dog", True),
        ("a SKS dog", True),
        ("a (sks:1.2)", True),
        ("sks-dog", True),
        ("asks", False),
        ("sks2", False),
        ("", False),
    ],
)
def test_token_is_a_whole_word(text: str, found: bool) -> None:
    assert has_token(text, "sks") is found


def test_token_in_brackets_needs_no_blanks() -> None:
    assert has_token("a<sks>dog", "<sks>")
    assert not has_token("a sks dog", "<sks>")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog and a dog", "a <x> and a dog"),
        ("a hotdog", "<x>, a hotdog"),
        ("a <X> dog", "a <X> dog"),
        ("", "<x>"),
    ],
)
def test_put_in(caption: str, expected: str) -> None:
    assert put_in(caption, "<x>", instead_of="dog") == expected
