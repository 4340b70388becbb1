"""DreamBooth: its step is the formula's, and its settings do what they say."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.plain_loop import plain_loss, plain_run
from trainers import loop
from trainers.data.examples import Examples
from trainers.errors import NonFiniteLossError, SettingsError, UnavailableError
from trainers.loop import train
from trainers.methods.dreambooth import prepare
from trainers.models.architectures import DENOISER
from trainers.settings.run import run_config

# -- one step is that of L_instance + lambda L_prior --------------------------------------


@pytest.fixture
def descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the loop's optimizer w -= gradient, so that each parameter's change is its gradient."""
    monkeypatch.setattr(loop, "make_optimizer", lambda groups, *_: torch.optim.SGD(groups))


def with_class_images(same_shape: bool = True) -> Examples:
    """Three dogs, and four class images of one shape or of two."""
    class_images = tiny.examples(counts=(4, 0) if same_shape else (2, 2))
    captions = ("a photo of a dog",) * 4
    dogs = tiny.examples(counts=(3, 0))
    latents = tuple(1.5 * latent for latent in class_images.latents)
    return dogs.with_class_images(
        dataclasses.replace(class_images, captions=captions, latents=latents)
    )


@pytest.mark.parametrize("same_shape", [True, False], ids=["one shape", "two shapes"])
@pytest.mark.parametrize("train_text_encoder", [False, True], ids=["unet", "text encoder"])
@pytest.mark.parametrize("min_snr_gamma", [0.0, 5.0])
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.usefixtures("descent")
def test_step_equals_a_plain_step_on_instance_and_prior_loss(
    batch_size: int, min_snr_gamma: float, train_text_encoder: bool, same_shape: bool
) -> None:
    config = tiny.run_config(
        "dreambooth", steps=1, batch_size=batch_size, min_snr_gamma=min_snr_gamma, seed=5,
        train_text_encoder=train_text_encoder, prior_weight=0.7, max_grad_norm=1.0,
        learning_rate=1.0, text_encoder_learning_rate=1.0,
    )  # fmt: skip
    pictures = with_class_images(same_shape)
    ready, (report,) = tiny.trained(config, pictures=pictures)

    modules = tiny.parts().modules
    trained = list(modules) if train_text_encoder else [DENOISER]
    named = {
        f"{name}.{key}": parameter
        for name in trained
        for key, parameter in modules[name].requires_grad_(True).named_parameters()
    }
    loss = plain_loss(config, "epsilon", pictures, tuple(modules.values()), step=0)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
    with torch.no_grad():
        for parameter in named.values():
            assert parameter.grad is not None
            parameter -= parameter.grad
    expected = {name: parameter.detach() for name, parameter in named.items()}
    tiny.assert_near(tiny.trainable_state(ready), expected, atol=2e-6)
    assert report.loss == pytest.approx(loss.item(), rel=1e-5)
    assert report.grad_norm == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.usefixtures("damped_adamw")
def test_lora_step_with_class_images_equals_a_plain_loop(batch_size: int) -> None:
    config = tiny.run_config(
        batch_size=batch_size, prior_weight=0.7, min_snr_gamma=5.0, learning_rate=0.1
    )
    pictures = with_class_images()
    ready, reports = tiny.trained(config, pictures=pictures)
    expected, plain_reports = plain_run(config, "epsilon", pictures)
    tiny.assert_near(tiny.trainable_state(ready), expected, atol=2e-7)
    for report, (loss, grad_norm) in zip(reports, plain_reports, strict=True):
        assert report.loss == pytest.approx(loss, rel=1e-5)
        assert report.grad_norm == pytest.approx(grad_norm, rel=1e-4)


def test_prior_weight_of_zero_is_training_without_class_images() -> None:
    pictures = with_class_images()
    alone = dataclasses.replace(
        pictures, latents=pictures.latents[:3], masks=pictures.masks[:3],
        captions=pictures.captions[:3], sizes=pictures.sizes[:3], repeats=pictures.repeats[:3],
        num_class=0,
    )  # fmt: skip
    silent = tiny.trained(tiny.run_config("dreambooth", prior_weight=0.0), pictures=pictures)[1]
    without = tiny.trained(tiny.run_config("dreambooth"), pictures=alone)[1]
    assert silent[0].loss != without[0].loss  # other draws, as the batch is larger
    heavy = tiny.trained(tiny.run_config("dreambooth", prior_weight=2.0), pictures=pictures)[1]
    light = tiny.trained(tiny.run_config("dreambooth", prior_weight=1.0), pictures=pictures)[1]
    prior = heavy[0].loss - light[0].loss
    assert light[0].loss - silent[0].loss == pytest.approx(prior, rel=1e-4)


# -- what is trained ----------------------------------------------------------------------


def learned(**settings: Any) -> dict[str, Tensor]:
    ready, _ = tiny.trained(tiny.run_config("dreambooth", **settings))
    return ready.trainable.export()


def test_every_weight_of_the_denoiser_trains_and_is_exported() -> None:
    before = tiny.parts().denoiser.state_dict()
    exported = learned(learning_rate=1e-3)
    assert exported.keys() == {f"{DENOISER}.{key}" for key in before}
    assert not [
        key for key, was in before.items() if torch.equal(exported[f"{DENOISER}.{key}"], was)
    ]


def test_text_encoder_trains_at_its_own_rate_until_its_stop_step() -> None:
    settings = {"train_text_encoder": True, "text_encoder_learning_rate": 1e-3, "steps": 4}
    stopped = learned(text_encoder_stop_step=2, **settings)
    short = learned(**{**settings, "steps": 2})
    free = learned(**settings)
    text = [key for key in free if key.startswith("clip_l.")]
    assert text
    for key in text:
        assert torch.equal(stopped[key], short[key])
    assert any(not torch.equal(stopped[key], free[key]) for key in text)
    denoiser = next(key for key in free if key.endswith("to_q.weight"))
    assert not torch.equal(stopped[denoiser], short[denoiser])


def test_frozen_text_encoder_stays_bit_equal() -> None:
    base = tiny.parts()
    before = {key: tensor.clone() for key, tensor in base.modules["clip_l"].state_dict().items()}
    tiny.trained(tiny.run_config("dreambooth", learning_rate=0.1), base)
    tiny.assert_equal(base.modules["clip_l"].state_dict(), before)


def test_training_on_one_picture_lowers_the_loss() -> None:
    settings = {"steps": 30, "learning_rate": 1e-3, "timestep_min": 500}
    config = tiny.run_config("dreambooth", **settings)
    _, reports = tiny.trained(config, pictures=tiny.examples(counts=(1,)))
    losses = [report.loss for report in reports]
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])


# -- memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "adafactor", "lion"])
@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_fused_backward_is_bit_equal(optimizer: str, train_text_encoder: bool) -> None:
    if optimizer in ("adamw_8bit", "lion"):
        pytest.importorskip("bitsandbytes")
    settings = {
        "optimizer": optimizer, "max_grad_norm": 0.0, "steps": 3, "batch_size": 2,
        "train_text_encoder": train_text_encoder, "lr_schedule": "linear",
    }  # fmt: skip
    tiny.assert_equal(learned(fused_backward=True, **settings), learned(**settings))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fused_backward_with_two_shapes_in_a_step_is_bit_equal(checkpointing: bool) -> None:
    made = []
    for fused in (False, True):
        config = tiny.run_config(
            "dreambooth", batch_size=2, max_grad_norm=0.0, fused_backward=fused,
            train_text_encoder=True, gradient_checkpointing=checkpointing,
        )  # fmt: skip
        ready, _ = tiny.trained(config, pictures=with_class_images(same_shape=False))
        made.append(ready.trainable.export())
    tiny.assert_equal(*made)


def test_fused_backward_reports_the_same_gradient_norm() -> None:
    norms = [
        [r.grad_norm for r in tiny.trained(tiny.run_config("dreambooth", **settings))[1]]
        for settings in ({"max_grad_norm": 0.0}, {"max_grad_norm": 0.0, "fused_backward": True})
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


def test_fused_backward_stops_before_a_loss_that_is_not_finite_does_harm() -> None:
    pictures = tiny.examples()
    for latent in pictures.latents:
        latent[0, 0, 0] = torch.nan
    ready = tiny.job(tiny.run_config("dreambooth", fused_backward=True), pictures=pictures)
    before = tiny.trainable_state(ready)
    with pytest.raises(NonFiniteLossError, match="at step 1"):
        train(ready)
    tiny.assert_equal(tiny.trainable_state(ready), before)


@pytest.mark.parametrize("computes_in", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("fused", [False, True])
def test_bf16_weights_learn_as_fp32_weights_do(fused: bool, computes_in: torch.dtype) -> None:
    """Updates of a tenth of bf16's step are lost without stochastic rounding."""
    base = tiny.parts(dtype=torch.bfloat16)
    if computes_in == torch.float32:
        tiny.widen(base)
    start = {k: p.detach().float() for k, p in base.denoiser.named_parameters()}
    settings = {"learning_rate": 1e-5, "steps": 40, "weight_decay": 0.0, "seed": 2}
    config = tiny.run_config(
        "dreambooth", weights="bf16", precision="auto", fused_backward=fused, **settings
    )
    half = tiny.trained(config, base)[0].trainable.export()
    wide = tiny.parts()
    for key, parameter in wide.denoiser.named_parameters():
        parameter.data = start[key].clone()
    full = tiny.trained(tiny.run_config("dreambooth", **settings), wide)[0].trainable.export()
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}
    moved, expected = (
        torch.cat([(made[f"{DENOISER}.{k}"].float() - s).flatten() for k, s in start.items()])
        for made in (half, full)
    )
    # The noise of rounding is far larger than the updates; on average over all weights it is none.
    share = (moved @ expected) / (expected @ expected)
    assert 0.5 < share < 1.5


def test_bf16_weights_are_the_same_again_for_the_same_seed() -> None:
    def run(seed: int) -> dict[str, Tensor]:
        config = tiny.run_config("dreambooth", weights="bf16", precision="auto", seed=seed)
        return tiny.trained(config, tiny.parts(dtype=torch.bfloat16))[0].trainable.export()

    tiny.assert_equal(run(3), run(3))


# -- computing in another dtype than the weights have -------------------------------------


def test_fp32_weights_compute_in_the_chosen_precision() -> None:
    config = tiny.run_config("dreambooth", precision="bf16", train_text_encoder=True)
    narrow, reports = tiny.trained(config)
    wide, references = tiny.trained(tiny.run_config("dreambooth", train_text_encoder=True))
    assert narrow.trainable.autocast == torch.bfloat16
    assert wide.trainable.autocast is None
    assert {p.dtype for p in narrow.trainable.parameters} == {torch.float32}
    for report, reference in zip(reports, references, strict=True):
        assert report.loss != reference.loss
        assert report.loss == pytest.approx(reference.loss, rel=0.02)


def test_fused_backward_in_fp16_is_refused() -> None:
    config = tiny.run_config("dreambooth", precision="fp16", fused_backward=True)
    parts = tiny.parts()
    parts.device = torch.device("meta")
    with pytest.raises(UnavailableError, match="fused_backward is not possible in fp16"):
        prepare(parts, config)


# -- the average --------------------------------------------------------------------------


@pytest.mark.parametrize("on_cpu", [False, True])
def test_ema_is_what_is_exported(on_cpu: bool) -> None:
    config = tiny.run_config(
        "dreambooth", steps=4, learning_rate=1e-3, ema_decay=0.3, ema_on_cpu=on_cpu,
        ema_update_step_interval=1,
    )  # fmt: skip
    ready = tiny.job(config)
    name, parameter = next(iter(ready.parts.denoiser.named_parameters()))
    average, step = parameter.detach().clone(), 0

    def follow(progress: loop.Progress) -> None:
        nonlocal average, step
        step = progress.step
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * parameter.detach()

    train(ready, follow)
    exported = ready.trainable.export()[f"{DENOISER}.{name}"]
    torch.testing.assert_close(exported, average, atol=1e-7, rtol=1e-6)
    assert (exported - parameter.detach()).abs().max() > 1e-5


def test_without_ema_the_last_weights_are_exported() -> None:
    ready, _ = tiny.trained(tiny.run_config("dreambooth"))
    exported = ready.trainable.export()
    for name, parameter in ready.parts.denoiser.named_parameters():
        assert torch.equal(exported[f"{DENOISER}.{name}"], parameter)


# -- settings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fused_backward": True, "gradient_accumulation": 2}, "gradient_accumulation is 2"),
        ({"fused_backward": True, "optimizer": "prodigy"}, "optimizer 'prodigy'"),
        ({"weights": "bf16", "optimizer": "prodigy"}, "optimizer 'prodigy'"),
        ({"weights": "bf16", "precision": "fp16"}, "precision is 'fp16'"),
        ({"prior_weight": -1.0}, "prior_weight is -1.0; allowed: 0.0 to 100.0"),
        ({"prior": "teacher"}, "class_prompt is empty"),
    ],
)
def test_settings_that_cannot_go_together_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        run_config("dreambooth", settings)
