"""The demo base and its meters: what a training teaches it can be measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from demo import meters, world
from demo.autoencoder import Codec, to_tensor
from demo.checkpoint import BASE_FILES
from demo.evidence import Laboratory, Task
from demo.panel import SAMPLING, add_shots, of_group, run_shots
from demo.recipes import BASE, Recipe, sockets
from tests.conftest import DEV_DIR
from tests.graphs import Graph
from tests.host import Host

SUBJECT = "heart"
NUM_DRAWN = 240  # a share of 0.97 among so many is known to 0.011


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.from_host(load_file(BASE_FILES / "vae.safetensors"))


@pytest.fixture(scope="module")
def reader(codec: Codec) -> meters.Reader:
    return meters.load_reader(DEV_DIR / "reader.pt", codec)


def test_classifier_is_right_on_held_out_drawings(codec: Codec, reader: meters.Reader) -> None:
    for following in meters.reader_accuracy(reader, codec, NUM_DRAWN):
        assert min(following.shape, following.colour, following.background) >= 0.97


@pytest.mark.parametrize("name", world.SUBJECTS)
def test_subject_meter_knows_the_subject_from_its_class(codec: Codec, name: str) -> None:
    meter = meters.SubjectMeter(name)
    shape = world.SUBJECTS[name].shape
    own = to_tensor([picture for picture, _ in world.instance_pictures(name, seed=1)])
    triples = [t for t in world.HELD_OUT_TRIPLES if t.shape == shape]
    rng = np.random.default_rng(8)
    plain = to_tensor([world.draw_triple(triple, rng) for triple in triples])
    assert meter.fidelity(own).mean() > 0.9
    assert meter.fidelity(meters.round_trip(codec, own)).mean() > 0.5
    assert meter.fidelity(plain).mean() < 0.2


def test_lora_learns_the_subject_and_leaves_the_rest(
    host: Host, reader: meters.Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SAMPLING, "steps", 10)  # the rise is eleven times its error then
    Laboratory(tmp_path, reader).prepare(host)
    short = Recipe("a short LoRA", settings={"steps": 80})
    wanted = [shot for shot in Task(short, SUBJECT, 0).shots if shot.group != "class"]
    asked = [shot.asked for shot in wanted if shot.group == "others"]
    subject, right = [], []
    for recipe in (BASE, short):
        graph = Graph()
        add_shots(graph, *sockets(graph, recipe, SUBJECT, 0), wanted)
        pictures = run_shots(host, graph, wanted)
        subject.append(to_tensor(of_group(pictures, wanted, "subject")))
        others = to_tensor(of_group(pictures, wanted, "others"))
        right.append(meters.all_right(reader, others, asked))
    rise, error = meters.rise(meters.SubjectMeter(SUBJECT), *subject)
    assert rise > 3 * error
    assert right[1] >= 0.9 * right[0]
