"""The drawn world: the same pictures everywhere, and held-out prompts that are really held out."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo import world
from demo.evaluate import held_out_shots


def test_draw_same_seed_gives_same_picture():
    first, second = (
        world.draw_triple(world.HELD_OUT_TRIPLES[0], np.random.default_rng(1)) for _ in "ab"
    )
    assert first.tobytes() == second.tobytes()
    assert first.size == (world.SIZE_PX, world.SIZE_PX)


def test_held_out_triples_hide_no_pair_of_names():
    for parts in combinations(("shape", "colour", "background"), 2):
        seen = {tuple(getattr(t, p) for p in parts) for t in world.TRAIN_TRIPLES}
        every = {tuple(getattr(t, p) for p in parts) for t in world.ALL_TRIPLES}
        assert seen == every
    assert not set(world.TRAIN_TRIPLES) & set(world.HELD_OUT_TRIPLES)


def test_held_out_shots_are_two_hundred_pictures_of_prompts_never_trained():
    wanted = held_out_shots(5)
    assert sum(shot.count for shot in wanted) == 200
    assert not {shot.asked for shot in wanted} & set(world.TRAIN_TRIPLES)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("star",), "a photo of a star"),
        (("star", "red"), "a photo of a red star"),
        (("star", "red", "teal"), "a photo of a red star on a teal background"),
        (("star", "", "teal"), "a photo of a star on a teal background"),
    ],
)
def test_caption_names_the_parts_it_is_given(parts: tuple[str, ...], text: str):
    assert world.caption(*parts) == text


@pytest.mark.parametrize("name", world.SUBJECTS)
def test_write_subject_writes_each_before_another_background(name: str, tmp_path: Path):
    paths = world.write_subject(name, tmp_path / name, "sks thing")
    pictures = [Image.open(path) for path in paths]
    corners = {picture.getpixel((0, 0)) for picture in pictures}
    assert corners == set(world.BACKGROUNDS.values())
    captions = {path.with_suffix(".txt").read_text() for path in paths}
    assert captions == {f"a photo of a sks thing on a {b} background" for b in world.BACKGROUNDS}


@pytest.mark.parametrize("name", world.SUBJECTS)
def test_subject_is_no_look_of_the_training_world(name: str):
    subject = world.SUBJECTS[name]
    colours = {subject.look.fill, *(colour for _, colour in subject.look.patterns)}
    assert len(colours) == 1 + len(subject.look.patterns) >= 2


def test_text_weights_are_the_same_on_every_machine():
    text = pytest.importorskip("demo.text")
    made = text.weights()  # raises where the hash differs
    assert len(made) == 196
