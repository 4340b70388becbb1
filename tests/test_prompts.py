"""Texts that are drawn from a caption."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests import tiny
from tests.dataset_files import batch
from trainers.errors import SettingsError
from trainers.objective.prompts import caption_prompts
from trainers.runs.fingerprint import fingerprint_of
from trainers.runs.folder import run_facts
from trainers.settings.objective import ObjectiveConfig

TAGS = "sks dog, 1girl, solo, red hair, smile, outdoors"


def drawn(caption: str, seed: int = 0, **settings: Any) -> tuple[str, ...]:
    return caption_prompts([caption], ObjectiveConfig(**settings), seed)[caption]


@pytest.mark.parametrize("caption", [TAGS, "a {red|blue} dog, (weights:1.2)", "", "  a  b "])
def test_as_it_is_unless_asked_otherwise(caption: str) -> None:
    assert drawn(caption) == (caption.strip(),)


def test_prefix_stands_in_front() -> None:
    assert drawn("a dog", caption_prefix="ohwx, ") == ("ohwx, a dog",)
    assert drawn("", caption_prefix="ohwx") == ("ohwx",)
    texts = drawn(TAGS, caption_prefix="ohwx,", shuffle_caption=True)
    assert all(text.startswith("ohwx, ") for text in texts)


def test_tags_are_shuffled_but_for_those_that_are_kept() -> None:
    texts = drawn(TAGS, shuffle_caption=True, keep_tokens=2, caption_variants=200)
    assert len(texts) == 200
    assert texts[-1] == TAGS
    assert all(text.startswith("sks dog, 1girl, ") for text in texts)
    assert all(sorted(text.split(", ")) == sorted(TAGS.split(", ")) for text in texts)
    assert len(set(texts)) == 24  # 4! orders of the others
    firsts = Counter(text.split(", ")[2] for text in texts)
    assert all(20 < count < 90 for count in firsts.values())


def test_tags_are_left_out_at_the_rate() -> None:
    settings = {"caption_tag_dropout_rate": 0.25, "keep_tokens": 1, "caption_variants": 1000}
    texts = drawn(TAGS, **settings)[:-1]
    left = sum(len(text.split(", ")) - 1 for text in texts) / (5 * len(texts))
    assert left == pytest.approx(0.75, abs=0.03)
    assert all(text.startswith("sks dog") for text in texts)
    orders = [TAGS.split(", ").index(tag) for tag in texts[0].split(", ")]
    assert orders == sorted(orders)
    everything = drawn(TAGS, caption_tag_dropout_rate=1.0, keep_tokens=1)
    assert set(everything[:-1]) == {"sks dog"}


def test_wildcards_take_one_of_several() -> None:
    caption = "a {red|blue | green} {dog|cat}, {alone}"
    texts = drawn(caption, enable_wildcard=True, caption_variants=300)
    counts = Counter(texts[:-1])
    assert texts[-1] == "a red dog, {alone}"
    assert len(counts) == 6
    assert all(25 < count < 80 for count in counts.values())


def test_one_of_several_lines_is_taken() -> None:
    caption = "1girl, solo\na {red|blue} dog\na photo"
    texts = drawn(caption, enable_wildcard=True, caption_variants=300)
    counts = Counter(texts[:-1])
    assert texts[-1] == "1girl, solo"
    assert set(counts) == {"1girl, solo", "a red dog", "a blue dog", "a photo"}
    assert all(70 < counts[line] < 130 for line in ("1girl, solo", "a photo"))
    assert drawn(caption) == ("1girl, solo a {red|blue} dog a photo",)


def test_doubled_braces_are_braces() -> None:
    assert drawn("a {{red|blue}} dog", enable_wildcard=True) == ("a {red|blue} dog",)


def test_lines_count_only_where_one_of_them_is_taken() -> None:
    whole, parted = (batch(captions=[text]) for text in ("a dog, on a beach", "a dog,\non a beach"))
    for wildcard in (False, True):
        config = tiny.run_config("lora", enable_wildcard=wildcard)
        prints = {fingerprint_of(run_facts(config, "sd15", {}, one)) for one in (whole, parted)}
        assert len(prints) == 1 + wildcard


def test_draws_go_by_seed_and_caption() -> None:
    settings = {"shuffle_caption": True}
    assert drawn(TAGS, **settings) == drawn(TAGS, **settings)
    assert drawn(TAGS, **settings) != drawn(TAGS, seed=1, **settings)
    both = caption_prompts(["x, y, z", TAGS, TAGS], ObjectiveConfig(**settings), 0)
    assert list(both) == ["x, y, z", TAGS]
    assert both[TAGS] == drawn(TAGS, **settings)


def test_keeping_needs_something_that_moves() -> None:
    with pytest.raises(SettingsError, match="keep_tokens is 2, but nothing moves"):
        ObjectiveConfig(keep_tokens=2)


@pytest.mark.parametrize("method", ["lora", "textual_inversion"])
def test_variants_are_what_trains(method: str) -> None:
    settings: dict[str, Any] = {"shuffle_caption": True, "caption_prefix": "ohwx,"}
    if method == "textual_inversion":
        settings["caption_prefix"] = "<sks>,"
    job = tiny.job(tiny.run_config(method, **settings))
    caption = job.examples.captions[0]
    texts = job.prompts[caption]
    assert len(texts) >= 10
    assert texts[-1].endswith(caption)
