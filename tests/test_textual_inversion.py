"""Textual Inversion: only the rows learn, and they learn what a table trained whole would."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from trainers import loop
from trainers import step as step_module
from trainers.contracts import Parts, Trainable
from trainers.data.batches import batch_plan
from trainers.data.examples import Examples
from trainers.errors import DatasetError, SettingsError
from trainers.loop import train
from trainers.methods.textual_inversion import prepare
from trainers.models.architectures import DENOISER
from trainers.objective.losses import sample_losses
from trainers.objective.noise import generator_for

METHOD = "textual_inversion"
VOCABULARY, WIDTH = 100, 32  # of the tiny text encoder
KEY = "clip_l.<sks>"


def config(**settings: Any) -> Any:
    return tiny.run_config(METHOD, **settings)


def prepared(dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[Parts, Trainable]:
    base = tiny.parts(dtype=dtype)
    return base, prepare(base, config(**settings))


def rows_of(trainable: Trainable) -> Tensor:
    (rows,) = trainable.parameters
    return rows.detach()


def table() -> Tensor:
    return tiny.parts().text.vocabulary("clip_l")


# -- what is trained ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm_control", [False, True])
def test_all_but_the_new_rows_stay_bit_equal(dtype: torch.dtype, norm_control: bool) -> None:
    base = tiny.parts(dtype=dtype)
    before = tiny.frozen_state(base)
    ready, _ = tiny.trained(config(learning_rate=0.1, norm_control=norm_control), base)
    tiny.assert_equal(tiny.frozen_state(base), before)
    state = tiny.trainable_state(ready)
    assert list(state) == [KEY]
    assert state[KEY].dtype == torch.float32


@pytest.mark.parametrize("vectors", [1, 5])
def test_optimizer_has_as_many_entries_a_moment_as_the_rows(
    vectors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Optimizer] = []
    make = loop.make_optimizer
    monkeypatch.setattr(loop, "make_optimizer", lambda *a: made.append(make(*a)) or made[0])
    tiny.trained(config(vectors=vectors))
    ((_, state),) = made[0].state.items()
    assert [state[name].numel() for name in ("exp_avg", "exp_avg_sq")] == [vectors * WIDTH] * 2


def test_gradients_reach_nothing_else() -> None:
    ready = tiny.job(config())
    text = ready.parts.text.encode("a <sks>")
    # A sum over the width is nearly the same whatever a norm was given.
    text["hidden"].square().sum().backward()  # type: ignore[no-untyped-call]
    parameters = [p for module in ready.parts.modules.values() for p in module.parameters()]
    assert [p for p in parameters if p.grad is not None] == []
    (rows,) = ready.trainable.parameters
    assert rows.grad is not None
    assert rows.grad.abs().min() > 0


def test_same_seed_same_bits_and_another_seed_another_result() -> None:
    first, again, other = (
        tiny.trainable_state(tiny.trained(config(seed=seed, batch_size=2))[0])[KEY]
        for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_on_one_picture_lowers_the_loss() -> None:
    settings = {"steps": 120, "learning_rate": 0.2, "timestep_min": 900, "vectors": 16}
    _, reports = tiny.trained(config(**settings), pictures=tiny.examples(counts=(1,)))
    losses = [report.loss for report in reports]
    assert sum(losses[-40:]) < 0.96 * sum(losses[:40])


@pytest.mark.parametrize("optimizer", ["adafactor"])
def test_another_optimizer_moves_only_the_rows(optimizer: str) -> None:
    base = tiny.parts()
    before = tiny.frozen_state(base)
    ready, _ = tiny.trained(config(optimizer=optimizer), base)
    tiny.assert_equal(tiny.frozen_state(base), before)
    assert not torch.equal(tiny.trainable_state(ready)[KEY], rows_of(prepared()[1]))


@pytest.mark.usefixtures("damped_adamw")
def test_gradient_checkpointing_learns_the_same() -> None:
    settings = {"steps": 3, "learning_rate": 0.1}
    plain, recomputed = (
        tiny.trainable_state(tiny.trained(config(gradient_checkpointing=on, **settings))[0])[KEY]
        for on in (False, True)
    )
    torch.testing.assert_close(recomputed, plain, atol=1e-6, rtol=0)


def test_min_snr_weighs_the_same_draws() -> None:
    plain, weighted = (
        tiny.trained(config(min_snr_gamma=gamma, steps=1))[1][0].loss for gamma in (0.0, 0.1)
    )
    assert 0 < weighted < plain


# -- equal to training the whole table ----------------------------------------------------


def ids_in_table(caption: str, vectors: int) -> Tensor:
    """The ids of a caption with the token, whose rows follow the vocabulary's."""
    before, token, after = caption.partition("<sks>")
    rows = range(VOCABULARY, VOCABULARY + vectors) if token else ()
    return torch.tensor(
        tiny.framed([*map(tiny.character, before), *rows, *map(tiny.character, after)])
    )


def plain_table_run(settings: Any, pictures: Examples, start: Tensor) -> tuple[Tensor, Tensor]:
    """As the published scripts do it: a longer table, trained whole, the old rows put back.

    Returns the gradient of the new rows at the first step, and the new rows after the last.
    """
    training = settings.training
    unet, clip = tiny.parts().modules.values()
    old = table()
    longer = nn.Embedding.from_pretrained(torch.cat([old, start]), freeze=False)
    clip.embeddings.token_embedding = longer
    optimizer = torch.optim.AdamW(
        longer.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    objective = tiny.parts().objective
    plan = batch_plan(pictures, training)
    first = torch.empty(0)
    for step in range(training.steps):
        (batch,) = plan.step(step, 1)
        generator = generator_for(training.seed, step, 0)
        latents = torch.stack([pictures.latents[i] for i in batch])
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (len(batch),), generator=generator)
        torch.rand(len(batch), generator=generator)  # the loop draws which captions to drop
        ids = torch.stack([ids_in_table(pictures.captions[i], len(start)) for i in batch])
        hidden = clip(ids).last_hidden_state
        noisy = objective.add_noise(latents, noise, timesteps)
        predicted = unet(noisy, timesteps, encoder_hidden_states=hidden).sample
        sample_losses(predicted, noise).mean().backward()  # type: ignore[no-untyped-call]
        assert longer.weight.grad is not None
        longer.weight.grad[:VOCABULARY] = 0  # clipping must see the same length
        if not step:
            first = longer.weight.grad[VOCABULARY:].clone()
        nn.utils.clip_grad_norm_([longer.weight], training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        longer.weight.data[:VOCABULARY] = old
    return first, longer.weight.detach()[VOCABULARY:]


@pytest.fixture
def spoken() -> Examples:
    """Pictures whose captions have the token."""
    pictures = tiny.examples()
    captions = ("a <sks>", "<sks> on a beach", "a <sks>")
    return dataclasses.replace(pictures, captions=captions)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.usefixtures("damped_adamw")
def test_equals_training_the_whole_table(spoken: Examples, batch_size: int) -> None:
    settings = config(
        templates="captions only", batch_size=batch_size, steps=3, seed=2, learning_rate=0.1
    )
    start = rows_of(prepare(tiny.parts(), settings))
    gradient, expected = plain_table_run(settings, spoken, start)
    ready, reports = tiny.trained(settings, pictures=spoken)
    torch.testing.assert_close(tiny.trainable_state(ready)[KEY], expected, atol=1e-6, rtol=0)
    assert (expected - start).abs().max() > 1e-2
    assert reports[0].grad_norm == pytest.approx(gradient.norm().item(), rel=1e-4)


def test_gradient_equals_that_of_the_whole_table(
    spoken: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "make_optimizer", lambda groups, *_: torch.optim.SGD(groups, lr=1.0))
    settings = config(
        templates="captions only", batch_size=2, steps=1, learning_rate=1.0, max_grad_norm=0.0
    )
    start = rows_of(prepare(tiny.parts(), settings))
    gradient, _ = plain_table_run(config(batch_size=2, steps=1), spoken, start)
    ready, _ = tiny.trained(settings, pictures=spoken)
    ours = start - tiny.trainable_state(ready)[KEY]
    torch.testing.assert_close(ours, gradient, atol=1e-6, rtol=0)
    assert gradient.abs().max() > 1e-4


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.usefixtures("damped_adamw")
def test_captions_without_the_token_train_nothing_as_in_the_whole_table(vectors: int) -> None:
    pictures = dataclasses.replace(tiny.examples(), captions=("a <sks>", "a dog", "a cat"))
    settings = config(
        templates="captions only", vectors=vectors, steps=6, seed=2, learning_rate=0.1
    )
    start = rows_of(prepare(tiny.parts(), settings))
    _, expected = plain_table_run(settings, pictures, start)
    ready, reports = tiny.trained(settings, pictures=pictures)
    assert [report.grad_norm == 0 for report in reports].count(True) == 4
    torch.testing.assert_close(tiny.trainable_state(ready)[KEY], expected, atol=1e-6, rtol=0)
    assert (expected - start).abs().max() > 1e-2


# -- the rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_added_rows_are_frozen_copies_in_fp32(dtype: torch.dtype) -> None:
    base, given = tiny.parts(), torch.randn(2, WIDTH).to(dtype)
    rows = base.add_token("one", {"clip_l": given})["clip_l"]
    assert base.text.learned == {"one": {"clip_l": rows}}
    assert (rows.dtype, rows.requires_grad) == (torch.float32, False)
    assert torch.equal(rows, given.float())
    given.zero_()
    assert rows.abs().min() > 0


def test_token_that_is_learned_already_is_learned_anew(caplog: pytest.LogCaptureFixture) -> None:
    base = tiny.parts()
    old = base.add_token("<sks>", {"clip_l": torch.randn(5, WIDTH)})
    with caplog.at_level(logging.WARNING):
        trainable = prepare(base, config(vectors=2, initializer="a b"))
    assert "knows a learned token '<sks>' already" in caplog.text
    assert base.text.learned["<sks>"] is not old
    assert torch.equal(rows_of(trainable), table()[[ord("a") % 97, ord("b") % 97]])


# -- where the rows start -----------------------------------------------------------------


def test_start_is_the_initializers_row_and_jittered_copies() -> None:
    rows = rows_of(prepared(initializer="d", vectors=4)[1])
    word = table()[ord("d") % 97]
    assert torch.equal(rows[0], word)
    deviation = table().std(dim=0)
    for copied in rows[1:]:
        assert 0.05 < ((copied - word) / deviation).std() < 0.2
    assert len({tuple(row.tolist()) for row in rows}) == 4


def test_start_of_several_words_is_one_row_each() -> None:
    rows = rows_of(prepared(initializer="a, b", vectors=2)[1])
    assert torch.equal(rows, table()[[ord("a") % 97, ord("b") % 97]])


def test_start_of_more_words_than_vectors_is_their_means() -> None:
    rows = rows_of(prepared(initializer="a b c", vectors=2)[1])
    a, b, c = (table()[ord(letter) % 97] for letter in "abc")
    torch.testing.assert_close(rows, torch.stack([(a + b) / 2, c]))


def test_start_at_random_has_the_tables_statistics() -> None:
    rows = rows_of(prepared(initializer="", vectors=32)[1])
    assert rows.std().item() == pytest.approx(table().std().item(), rel=0.15)
    assert (rows.mean() - table().mean()).abs() < 0.03
    assert not torch.equal(rows, rows_of(prepared(initializer="", vectors=32, seed=1)[1]))


def test_initializer_that_no_encoder_knows() -> None:
    with pytest.raises(SettingsError, match="initializer 'qwertz' has no word that clip_l knows"):
        prepared(initializer="qwertz")


def test_initializer_may_be_a_learned_token() -> None:
    base = tiny.parts()
    learned = torch.randn(2, WIDTH)
    base.add_token("<old>", {"clip_l": learned})
    trainable = prepare(base, config(initializer="<old>", vectors=2))
    assert torch.equal(rows_of(trainable), learned)


# -- norm control -------------------------------------------------------------------------


def test_norm_control_keeps_rows_as_long_as_the_vocabularys_median() -> None:
    ready, _ = tiny.trained(config(norm_control=True, learning_rate=0.1, steps=3))
    median = table().norm(dim=1).median().item()
    norms = tiny.trainable_state(ready)[KEY].norm(dim=1).tolist()
    assert norms == pytest.approx([median] * 3, rel=1e-5)
    free, _ = tiny.trained(config(learning_rate=0.1, steps=3))
    free_norms = tiny.trainable_state(free)[KEY].norm(dim=1)
    assert (free_norms - median).abs().max() > 0.05 * median


# -- what it is learned in ----------------------------------------------------------------


def test_prompts_are_templates_and_the_caption_with_the_token() -> None:
    _, trainable = prepared(initializer="d")
    prompts = trainable.prompts(["a d, a d", "a cat", "my <SKS> here", ""])
    assert len(prompts["a cat"]) == 21
    assert all("<sks>" in text.lower() for texts in prompts.values() for text in texts)
    own = {caption: texts[-1] for caption, texts in prompts.items()}
    assert own == {
        "a d, a d": "a <sks>, a d",
        "a cat": "<sks>, a cat",
        "my <SKS> here": "my <SKS> here",
        "": "<sks>",
    }


def test_each_prompt_has_its_turn() -> None:
    ready = tiny.job(config(), None, tiny.examples(counts=(1,)))
    seen = set()
    for step in range(400):
        seen.add(step_module._prompt(ready, 0, generator_for(0, step)))
    assert seen == set(ready.prompts[ready.examples.captions[0]])


def test_class_images_keep_their_captions() -> None:
    classes = tiny.examples(counts=(1,))
    ready = tiny.job(config(), None, tiny.examples(counts=(1,)).with_class_images(classes))
    assert step_module._prompt(ready, 1, generator_for(0)) == classes.captions[0]


def test_token_in_no_caption() -> None:
    _, trainable = prepared(templates="captions only")
    with pytest.raises(DatasetError, match="'<sks>' is in none of the captions.*'a dog', 'a cat'"):
        trainable.prompts(["a dog", "a cat"])


def test_captions_only_are_taken_as_they_are() -> None:
    _, trainable = prepared(templates="captions only")
    assert trainable.prompts(["a <sks>", "a dog"]) == {"a <sks>": ("a <sks>",), "a dog": ("a dog",)}


def test_token_that_is_a_word_already_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        prepared(token="z")
    assert "'z' is a word of clip_l already" in caplog.text
    caplog.clear()
    prepared(token="zz")
    assert not caplog.text


@pytest.mark.parametrize("token", ["", "my dog", "(dog)", "dog:1", "../dog", "<dog", "a/b", "d,g"])
def test_token_of_other_characters_is_refused(token: str) -> None:
    with pytest.raises(SettingsError, match="allowed: one word of letters, digits"):
        config(token=token)


@pytest.mark.parametrize("token", ["sks", "<my-dog>", "S*", "*", "hündchen", "dog_2"])
def test_token_of_these_characters_is_allowed(token: str) -> None:
    assert config(token=token).own.token == token


def test_denoiser_is_not_trained() -> None:
    base, trainable = prepared()
    assert [group["name"] for group in trainable.param_groups] == ["clip_l"]
    assert not any(p.requires_grad for p in base.modules[DENOISER].parameters())
    train(tiny.job(config()))
