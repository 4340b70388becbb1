"""Learned tokens in texts: whole words only, in any case, the longest first."""

from __future__ import annotations

import pytest

from trainers.data.tokens import embeddings_in, has_token, put_in, rare_words


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


@pytest.mark.parametrize(
    ("text", "rare"),
    [
        ("a photo of sks dog", ("sks",)),
        ("OHWX man, (zwx:1.2), RB1 and p3rs0n", ("ohwx", "zwx", "rb1", "p3rs0n")),
        ("<my-dog> beside my_dog and rex_01", ("<my-dog>", "my_dog", "rex_01")),
        ("sks-dog, sks", ("sks",)),
        ("embedding:sks.pt", ()),
        ("a 3d render, 8k hdr dslr photo, 50mm, 1girl, tv, mr. and mrs. rhythm, anna", ()),
        ("a bokeh of a gecko: chiaroscuro, gouache, art nouveau, 1990s", ()),
        ("фото пёс 犬の写真", ()),
    ],
)
def test_rare_words_are_spelled_like_no_other(text: str, rare: tuple[str, ...]) -> None:
    assert rare_words(text) == rare


def test_embeddings_are_named_after_a_blank() -> None:
    text = "embedding:a.pt, x embedding:b/c<d> (embedding:e) notembedding:f embedding:a.pt"
    assert embeddings_in(text) == ("a.pt", "b/c")
