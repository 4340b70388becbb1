"""Learned tokens in texts: whole words only, in any case, the longest first."""

from __future__ import annotations

import pytest

from trainers.data.tokens import has_token, put_in, split_at_tokens


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


def test_split_takes_the_longest_and_spells_as_given() -> None:
    pieces = split_at_tokens("a Sks-two, sks", ["sks", "sks-two"])
    assert pieces == [("a ", False), ("sks-two", True), (", ", False), ("sks", True)]


def test_split_without_tokens_is_the_text() -> None:
    assert split_at_tokens("a dog", []) == [("a dog", False)]


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
