"""LoRA and DreamBooth on captions with learned tokens, which train further if asked to."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tests import tiny
from trainers.contracts import Parts, Trainable
from trainers.errors import SettingsError
from trainers.methods import METHODS
from trainers.models.architectures import DENOISER

TOKENS = {"<one>": 2, "<two>": 1}
each_method = pytest.mark.parametrize("method", ["lora", "dreambooth"])


def with_tokens_alone() -> Parts:
    base = tiny.parts()
    generator = torch.Generator().manual_seed(3)
    for token, vectors in TOKENS.items():
        base.add_token(token, {"clip_l": torch.randn(vectors, 32, generator=generator)})
    return base


def with_tokens(method: str, **settings: Any) -> tuple[Parts, Trainable]:
    base = with_tokens_alone()
    return base, METHODS[method](base, tiny.run_config(method, **settings))


def rows_of(base: Parts) -> list[torch.nn.Parameter]:
    return [rows["clip_l"] for rows in base.text.learned.values()]


@each_method
def test_learned_tokens_stay_frozen_unless_asked_for(method: str) -> None:
    base, trainable = with_tokens(method, train_text_encoder=True)
    assert [group["name"] for group in trainable.param_groups] == [DENOISER, "clip_l"]
    rows = rows_of(base)
    assert not any(row.requires_grad for row in rows)
    assert not {id(row) for row in rows} & {id(p) for p in trainable.parameters}
    assert not [key for key in trainable.export() if "<" in key]
    assert trainable.tokens() == {}


@each_method
def test_learned_tokens_train_further_at_their_own_rate(method: str) -> None:
    base, trainable = with_tokens(method, train_token=True, token_learning_rate=3e-3)
    assert trainable.trains_text
    group = trainable.param_groups[-1]
    assert (group["name"], group["lr"], group["weight_decay"]) == ("tokens", 3e-3, 0.0)
    assert [tuple(row.shape) for row in group["params"]] == [(2, 32), (1, 32)]
    rows = rows_of(base)
    assert all(ours is theirs for ours, theirs in zip(group["params"], rows, strict=True))


@each_method
def test_only_the_tokens_of_the_captions_change(method: str) -> None:
    base = with_tokens_alone()
    before = {token: base.text.learned[token]["clip_l"].detach().clone() for token in TOKENS}
    pictures = dataclasses.replace(tiny.examples(counts=(1,)), captions=("a <two> dog",))
    vocabulary = base.text.vocabulary("clip_l").clone()
    ready, _ = tiny.trained(tiny.run_config(method, train_token=True, steps=3), base, pictures)
    after = ready.trainable.tokens()
    assert torch.equal(after["<one>"]["clip_l"], before["<one>"])
    assert (after["<two>"]["clip_l"] - before["<two>"]).abs().min() > 0
    assert torch.equal(base.text.vocabulary("clip_l"), vocabulary)


@each_method
def test_tokens_to_train_where_there_are_none(method: str) -> None:
    with pytest.raises(SettingsError, match="the clip knows no learned token"):
        METHODS[method](tiny.parts(), tiny.run_config(method, train_token=True))
