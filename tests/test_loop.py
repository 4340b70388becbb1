"""The training loop: equal to a plain one, the same again, and nothing changed but the LoRA."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.plain_loop import plain_run
from trainers import loop
from trainers import step as step_module
from trainers.contracts import Size, Text
from trainers.data.batches import batch_plan, num_steps
from trainers.data.examples import Examples
from trainers.errors import NonFiniteLossError
from trainers.loop import Progress, train
from trainers.methods import METHODS
from trainers.objective.noise import PREDICTIONS
from trainers.settings.methods.lora import LORA_VARIANTS
from trainers.settings.run import run_config

# -- equal to a plain loop ----------------------------------------------------------------

VARIATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "min-SNR": {"min_snr_gamma": 5.0},
    "accumulation": {"gradient_accumulation": 3, "min_snr_gamma": 0.1},
    "hard clipping": {"max_grad_norm": 1e-3, "timestep_min": 600, "timestep_max": 700},
    "no clipping": {"max_grad_norm": 0.0, "weight_decay": 1.0, "noise_offset": 0.2},
}


@pytest.mark.parametrize(("batch_size", "masked"), [(1, False), (2, True)])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("settings", VARIATIONS.values(), ids=VARIATIONS)
@pytest.mark.usefixtures("damped_adamw")
def test_step_equals_a_plain_loop(
    settings: dict[str, Any], prediction: str, batch_size: int, masked: bool
) -> None:
    config = tiny.run_config(batch_size=batch_size, seed=3, learning_rate=0.1, **settings)
    pictures = tiny.examples(masked=masked)
    ready, reports = tiny.trained(config, tiny.parts(prediction=prediction), pictures)
    expected, plain_reports = plain_run(config, prediction, pictures)
    tiny.assert_near(tiny.trainable_state(ready), expected, atol=2e-7)
    for report, (loss, grad_norm) in zip(reports, plain_reports, strict=True):
        assert report.loss == pytest.approx(loss, rel=1e-5)
        assert report.grad_norm == pytest.approx(grad_norm, rel=1e-4)


# -- the same again -----------------------------------------------------------------------


def learned(**settings: Any) -> dict[str, Tensor]:
    ready, _ = tiny.trained(tiny.run_config(**{"batch_size": 2} | settings))
    return tiny.trainable_state(ready)


RANDOM = {"dropout": 0.5, "caption_dropout": 0.5, "noise_offset": 0.1, "train_text_encoder": True}


@pytest.mark.parametrize("settings", [{}, RANDOM], ids=["defaults", "all that is random"])
def test_same_seed_same_bits(settings: dict[str, Any]) -> None:
    first = learned(**settings)
    torch.rand(5)  # the global generator moves on
    tiny.assert_equal(learned(**settings), first)


def test_other_seed_other_result() -> None:
    first, other = learned(), learned(seed=1)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_longer_run_begins_like_a_shorter_one() -> None:
    short, long = (tiny.trained(tiny.run_config(steps=steps))[1] for steps in (2, 4))
    assert [report.loss for report in long[:2]] == [report.loss for report in short]


@pytest.mark.parametrize("settings", [{}, RANDOM], ids=["defaults", "all that is random"])
def test_global_generator_untouched(settings: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    learned(**settings)
    assert torch.equal(torch.get_rng_state(), before)


# -- nothing changed but the LoRA ---------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", tiny.BUILDERS)
def test_model_and_method_train_and_export(model: str, method: str) -> None:
    for prediction in tiny.BUILDERS[model].predictions:
        base = tiny.parts(model, prediction)
        ready = tiny.job(tiny.run_config(method), base, tiny.examples(model), model)
        before = tiny.trainable_state(ready)
        losses = train(ready)
        after = tiny.trainable_state(ready)
        assert len(losses) == 2
        assert all(math.isfinite(loss) for loss in losses)
        assert all(not torch.equal(before[name], after[name]) for name in before)
        assert all(tensor.isfinite().all() for tensor in ready.trainable.export().values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_weights_stay_bit_equal(dtype: torch.dtype) -> None:
    base = tiny.parts(dtype=dtype)
    before = tiny.frozen_state(base)
    settings = {"targets": "all with convolutions", "train_text_encoder": True}
    tiny.trained(tiny.run_config(learning_rate=0.1, **settings), base)
    tiny.assert_equal(tiny.frozen_state(base), before)


def test_bf16_base_keeps_an_fp32_lora() -> None:
    config = tiny.run_config(train_text_encoder=True)
    half, reports = tiny.trained(config, tiny.parts(dtype=torch.bfloat16))
    full, references = tiny.trained(config)
    assert all(tensor.dtype == torch.float32 for tensor in tiny.trainable_state(half).values())
    assert tiny.trainable_state(half).keys() == tiny.trainable_state(full).keys()
    losses = [reference.loss for reference in references]
    assert [report.loss for report in reports] == pytest.approx(losses, rel=0.02)


def test_gradients_are_gone_after_the_run() -> None:
    ready, _ = tiny.trained(tiny.run_config(train_text_encoder=True))
    assert all(parameter.grad is None for parameter in ready.trainable.parameters)


def test_text_encoder_trains_at_its_own_rate() -> None:
    rates = {"learning_rate": 0.0, "text_encoder_learning_rate": 1e-3}
    ready = tiny.job(tiny.run_config(train_text_encoder=True, **rates))
    before = tiny.trainable_state(ready)
    train(ready)
    after = tiny.trainable_state(ready)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"clip_l"}


@pytest.mark.parametrize(
    ("method", "optimizer", "rate"),
    [("lora", "adamw", 1e-4), ("lora", "prodigy", 1e-3), ("dreambooth", "adamw", 1e-3)],
)
def test_text_encoder_has_a_rate_of_its_own_accord(
    method: str, optimizer: str, rate: float
) -> None:
    settings = {"train_text_encoder": True, "learning_rate": 1e-3, "optimizer": optimizer}
    assert run_config(method, settings).text_rate == pytest.approx(rate)


# -- gradients: with plain descent, the change of a parameter is its gradient -------------


@pytest.fixture
def descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the loop's optimizer w -= lr * gradient, with lr 1."""
    monkeypatch.setattr(loop, "make_optimizer", lambda groups, *_: torch.optim.SGD(groups, lr=1.0))


def gradients(
    pictures: Examples | None = None, dtype: torch.dtype = torch.float32, **settings: Any
) -> dict[str, Tensor]:
    rates = {"learning_rate": 1.0, "text_encoder_learning_rate": 1.0}
    config = tiny.run_config(**{"steps": 1, "max_grad_norm": 0.0} | rates | settings)
    ready = tiny.job(config, tiny.parts(dtype=dtype), pictures)
    for parameter in ready.trainable.parameters:
        parameter.data += 0.05  # B starts at zero, where A has no gradient
    before = tiny.trainable_state(ready)
    train(ready)
    after = tiny.trainable_state(ready)
    return {name: before[name] - after[name] for name in before}


@pytest.mark.usefixtures("descent")
def test_accumulated_gradient_is_that_of_the_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    # Micro-batches draw noise of their own: here every sample gets the same.
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(step_module, "draw_noise", lambda shape, *_: noise.expand(shape))
    monkeypatch.setattr(step_module, "draw_timesteps", lambda num, *_: torch.full((num,), 300))
    pictures = tiny.examples(counts=(2,))
    whole = gradients(pictures, batch_size=2)
    parts = gradients(pictures, batch_size=1, gradient_accumulation=2)
    tiny.assert_near(parts, whole, atol=1e-5, rtol=1e-4)
    assert max(gradient.abs().max() for gradient in whole.values()) > 1e-2


def gradient_norm(found: dict[str, Tensor]) -> float:
    return math.sqrt(sum(gradient.square().sum().item() for gradient in found.values()))


@pytest.mark.usefixtures("descent")
def test_gradient_longer_than_allowed_is_shortened() -> None:
    free = gradients()
    limit = 0.5 * gradient_norm(free)
    clipped = gradients(max_grad_norm=limit)
    assert gradient_norm(clipped) == pytest.approx(limit, rel=1e-3)
    tiny.assert_near(clipped, {k: 0.5 * g for k, g in free.items()}, atol=1e-5, rtol=1e-3)


@pytest.mark.usefixtures("descent")
def test_reported_gradient_norm_is_before_clipping() -> None:
    ready = tiny.job(tiny.run_config(steps=1, learning_rate=1.0, max_grad_norm=1e-4))
    before = tiny.trainable_state(ready)
    reports: list[Progress] = []
    train(ready, reports.append)
    after = tiny.trainable_state(ready)
    step = gradient_norm({name: before[name] - after[name] for name in before})
    assert reports[0].grad_norm > 10 * step


KINDS = [{"dropout": 0.5}, {"initialization": "pissa"}, *({"variant": v} for v in LORA_VARIANTS)]


@pytest.mark.parametrize("settings", KINDS, ids=str)
@pytest.mark.usefixtures("descent")
def test_gradient_checkpointing_same_gradients(settings: dict[str, Any]) -> None:
    plain = gradients(train_text_encoder=True, **settings)
    recomputed = gradients(train_text_encoder=True, gradient_checkpointing=True, **settings)
    tiny.assert_near(recomputed, plain, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_computes_blocks_twice(checkpointing: bool) -> None:
    config = tiny.run_config(steps=1, train_text_encoder=True, gradient_checkpointing=checkpointing)
    ready = tiny.job(config)
    visits = {name: 0 for name in ready.parts.modules}
    for name, module in ready.parts.modules.items():
        layer = next(m for n, m in module.named_modules() if n.endswith(("to_q", "q_proj")))

        def count(*_: Any, name: str = name) -> None:
            visits[name] += 1

        layer.register_forward_hook(count)
    train(ready)
    assert visits == dict.fromkeys(visits, 2 if checkpointing else 1)


# -- what the settings ask for ------------------------------------------------------------


def test_caption_dropout_of_one_trains_the_empty_caption() -> None:
    pictures = tiny.examples()
    silent = dataclasses.replace(pictures, captions=("",) * len(pictures.captions))
    for trains_text in (False, True):
        settings = {"caption_dropout": 1.0, "train_text_encoder": trains_text}
        dropped, _ = tiny.trained(tiny.run_config(**settings), pictures=pictures)
        empty, _ = tiny.trained(tiny.run_config(train_text_encoder=trains_text), pictures=silent)
        tiny.assert_equal(tiny.trainable_state(dropped), tiny.trainable_state(empty))


def test_caption_dropout_drops_its_share() -> None:
    seen: list[Text] = []

    def predict(
        noisy: Tensor, timesteps: Tensor, texts: Sequence[Text], sizes: Sequence[Size]
    ) -> Tensor:
        seen.extend(texts)
        return noisy * sum(p.sum() for p in ready.trainable.parameters)

    pictures = tiny.examples(counts=(8,))
    ready = tiny.job(tiny.run_config(steps=50, batch_size=8, caption_dropout=0.3), None, pictures)
    assert ready.encoded is not None
    ready.parts.predict = predict
    train(ready)
    share = sum(text is ready.encoded[""] for text in seen) / len(seen)
    assert len(seen) == 400
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / len(seen))


def test_predict_is_told_the_caption_and_the_size_of_each_sample() -> None:
    told: list[tuple[float, Text, Size]] = []

    def predict(
        noisy: Tensor, timesteps: Tensor, texts: Sequence[Text], sizes: Sequence[Size]
    ) -> Tensor:
        told.extend(zip(noisy[:, 0, 0, 0].round().tolist(), texts, sizes, strict=True))
        return noisy * sum(p.sum() for p in ready.trainable.parameters)

    pictures = tiny.examples(counts=(3,))
    pictures = dataclasses.replace(
        pictures,
        latents=tuple(torch.full_like(x, 1000 * i) for i, x in enumerate(pictures.latents)),
        captions=("a", "b", "c"),
        sizes=tuple(pictures.sizes[0]._replace(width_px=100 + i) for i in range(3)),
    )
    settings = {"steps": 4, "batch_size": 2, "timestep_min": 0, "timestep_max": 0}
    ready = tiny.job(tiny.run_config(**settings), None, pictures)
    assert ready.encoded is not None
    ready.parts.predict = predict
    train(ready)
    assert len(told) == 6  # of each two epochs the last batch has one picture
    for level, text, size in told:
        picture = round(level / 1000)
        assert text is ready.encoded[pictures.captions[picture]]
        assert size == pictures.sizes[picture]


def test_text_encoder_that_trains_reads_a_shared_caption_once() -> None:
    pictures = dataclasses.replace(tiny.examples(counts=(3,)), captions=("a", "b", "a"))
    ready = tiny.job(
        tiny.run_config(steps=1, batch_size=3, train_text_encoder=True), None, pictures
    )
    read: list[str] = []
    encode = ready.parts.text.encode
    ready.parts.text.encode = lambda text: read.append(text) or encode(text)  # type: ignore
    train(ready)
    assert sorted(read) == ["a", "b"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 7}, 7),
        ({"epochs": 1}, 3),
        ({"epochs": 4}, 12),
        ({"epochs": 4, "batch_size": 2}, 8),
        ({"epochs": 1, "gradient_accumulation": 2}, 2),
        ({"epochs": 2, "gradient_accumulation": 2}, 3),
        ({"epochs": 1, "gradient_accumulation": 99}, 1),
    ],
)
def test_num_steps(settings: dict[str, Any], expected: int) -> None:
    training = tiny.run_config(**settings).training
    assert num_steps(batch_plan(tiny.examples(), training), training) == expected


def test_epochs_report_every_step_and_the_last() -> None:
    _, reports = tiny.trained(tiny.run_config(epochs=2, steps=1))
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert {report.num_steps for report in reports} == {6}


def test_learning_rate_reported_is_the_one_used() -> None:
    settings = {"steps": 4, "learning_rate": 1e-3, "lr_schedule": "linear"}
    _, reports = tiny.trained(tiny.run_config(**settings))
    rates = [report.learning_rate for report in reports]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_warmup_first_step_changes_nothing() -> None:
    settings = {"steps": 1, "lr_schedule": "constant_with_warmup", "warmup_steps": 2}
    ready = tiny.job(tiny.run_config(**settings))
    before = tiny.trainable_state(ready)
    train(ready)
    tiny.assert_equal(tiny.trainable_state(ready), before)


def test_after_step_follows_every_step() -> None:
    ready = tiny.job(tiny.run_config(steps=3, gradient_accumulation=2))
    calls: list[bool] = []
    ready.trainable.after_step = lambda: calls.append(True)
    train(ready)
    assert len(calls) == 3


def test_training_on_one_picture_lowers_the_loss() -> None:
    settings = {"steps": 30, "learning_rate": 0.01, "rank": 8, "timestep_min": 500}
    config = tiny.run_config(**settings, targets="all with convolutions")
    _, reports = tiny.trained(config, pictures=tiny.examples(counts=(1,)))
    losses = [report.loss for report in reports]
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])


# -- the end ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_not_finite_ends_before_it_does_harm(value: float) -> None:
    config, pictures = tiny.run_config(steps=3), tiny.examples()
    (last,) = batch_plan(pictures, config.training).batch(2)
    pictures.latents[last][0, 0, 0] = value
    ready = tiny.job(config, pictures=pictures)
    reports: list[Progress] = []
    generator = torch.get_rng_state()
    with pytest.raises(NonFiniteLossError, match="at step 3") as error:
        train(ready, reports.append)
    assert "learning_rate" in str(error.value)
    assert [report.step for report in reports] == [1, 2]
    assert all(tensor.isfinite().all() for tensor in tiny.trainable_state(ready).values())
    assert torch.equal(torch.get_rng_state(), generator)


def test_report_that_raises_ends_the_run_after_its_step() -> None:
    class Stopped(Exception):
        pass

    def report(progress: Progress) -> None:
        if progress.step == 2:
            raise Stopped

    ready = tiny.job(tiny.run_config(steps=5))
    generator = torch.get_rng_state()
    with pytest.raises(Stopped):
        train(ready, report)
    tiny.assert_equal(tiny.trainable_state(ready), learned(steps=2, batch_size=1))
    assert torch.equal(torch.get_rng_state(), generator)
