"""The forward process against its formulas, sample by sample, and against diffusers' scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from tests.schedules import scaled_linear_alphas_cumprod
from trainers.objective.noise import (
    PREDICTIONS,
    Diffusion,
    Flow,
    draw_noise,
    generator_for,
)

TIMESTEPS = torch.tensor([0, 1, 250, 500, 998, 999])
GAMMAS = (0.5, 5.0, 20.0)


def scheduler(prediction: str) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon" if prediction == "epsilon" else "v_prediction",
    )


def process(prediction: str) -> Diffusion:
    return Diffusion(prediction, scaled_linear_alphas_cumprod())


def latents_and_noise(*inner: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (len(TIMESTEPS), *(inner or (4, 6, 5)))
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_schedule_equals_diffusers() -> None:
    ours, theirs = scaled_linear_alphas_cumprod(), scheduler("epsilon").alphas_cumprod
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=0)
    assert ours.dtype == torch.float32


def test_schedule_equals_formula() -> None:
    product = 1.0
    for t, ours in enumerate(scaled_linear_alphas_cumprod().tolist()):
        root = math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * t / 999
        product *= 1 - root**2
        assert ours == pytest.approx(product, rel=1e-6)


@pytest.mark.parametrize("inner", [(), (3,), (4, 6, 5), (4, 2, 6, 5)])
def test_add_noise_equals_formula(inner: tuple[int, ...]) -> None:
    diffusion = process("epsilon")
    latents, noise = latents_and_noise(*inner)
    noisy = diffusion.add_noise(latents, noise, TIMESTEPS)
    for i, t in enumerate(TIMESTEPS.tolist()):
        ac = diffusion.alphas_cumprod[t].item()
        expected = math.sqrt(ac) * latents[i] + math.sqrt(1 - ac) * noise[i]
        torch.testing.assert_close(noisy[i], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_add_noise_equals_diffusers(prediction: str) -> None:
    latents, noise = latents_and_noise()
    theirs = scheduler(prediction).add_noise(latents, noise, TIMESTEPS)
    ours = process(prediction).add_noise(latents, noise, TIMESTEPS)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_target_epsilon_is_the_noise() -> None:
    latents, noise = latents_and_noise()
    assert torch.equal(process("epsilon").target(latents, noise, TIMESTEPS), noise)


def test_target_v_equals_formula() -> None:
    diffusion = process("v")
    latents, noise = latents_and_noise()
    target = diffusion.target(latents, noise, TIMESTEPS)
    for i, t in enumerate(TIMESTEPS.tolist()):
        ac = diffusion.alphas_cumprod[t].item()
        expected = math.sqrt(ac) * noise[i] - math.sqrt(1 - ac) * latents[i]
        torch.testing.assert_close(target[i], expected, rtol=0, atol=1e-6)


def test_target_v_equals_diffusers() -> None:
    latents, noise = latents_and_noise()
    theirs = scheduler("v").get_velocity(latents, noise, TIMESTEPS)
    ours = process("v").target(latents, noise, TIMESTEPS)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_noise_and_v_give_back_the_latents() -> None:
    diffusion = process("v")
    latents, noise = latents_and_noise()
    noisy = diffusion.add_noise(latents, noise, TIMESTEPS)
    ac = diffusion.alphas_cumprod[TIMESTEPS].view(-1, 1, 1, 1)
    recovered = ac.sqrt() * noisy - (1 - ac).sqrt() * diffusion.target(latents, noise, TIMESTEPS)
    torch.testing.assert_close(recovered, latents, rtol=0, atol=1e-5)


def test_snr_equals_diffusers() -> None:
    theirs = compute_snr(scheduler("epsilon"), TIMESTEPS)
    torch.testing.assert_close(process("epsilon").snr(TIMESTEPS), theirs, rtol=1e-4, atol=0)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weight_equals_formula(prediction: str, gamma: float) -> None:
    diffusion = process(prediction)
    weights = diffusion.min_snr_weight(TIMESTEPS, gamma)
    assert weights.shape == TIMESTEPS.shape
    for weight, t in zip(weights.tolist(), TIMESTEPS.tolist(), strict=True):
        ac = diffusion.alphas_cumprod[t].item()
        snr = ac / (1 - ac)
        divisor = snr if prediction == "epsilon" else snr + 1
        assert weight == pytest.approx(min(snr, gamma) / divisor, rel=1e-5)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_min_snr_weight_epsilon_and_v_train_the_same(gamma: float) -> None:
    # An error of d in epsilon is one of d / sqrt(ac) in v: the two losses differ by 1 / ac, and
    # so do the weights, since snr / (snr + 1) = ac.
    ac = scaled_linear_alphas_cumprod()[TIMESTEPS]
    epsilon, v = (process(p).min_snr_weight(TIMESTEPS, gamma) for p in PREDICTIONS)
    torch.testing.assert_close(v, epsilon * ac, rtol=1e-5, atol=0)


def test_diffusion_unknown_prediction() -> None:
    with pytest.raises(AssertionError, match="sample"):
        process("sample")


@pytest.mark.parametrize("inner", [(8, 8), (1, 4, 6)])
@pytest.mark.parametrize("noise_scale", [1.0, 8.0])
def test_flow_equals_formula(inner: tuple[int, ...], noise_scale: float) -> None:
    latents, noise = latents_and_noise(*inner)
    flow, shares = Flow(noise_scale=noise_scale), torch.linspace(0, 1, len(latents))
    wide = shares.double().view(-1, *[1] * (latents.ndim - 1))
    mixed = (1 - wide) * latents.double() + wide * noise_scale * noise.double()
    torch.testing.assert_close(flow.add_noise(latents, noise, shares).double(), mixed)
    # Going all the way along the target from where it is gives the picture.
    target = flow.target(latents, noise, shares)
    back = flow.add_noise(latents, noise, shares).double() - wide * target.double()
    torch.testing.assert_close(back, latents.double(), rtol=0, atol=1e-5 * noise_scale)


def test_flow_equals_diffusers() -> None:
    latents, noise = latents_and_noise(8, 8)
    theirs = FlowMatchEulerDiscreteScheduler()
    timesteps = theirs.timesteps[:: 1000 // len(latents)][: len(latents)]
    mixed = theirs.scale_noise(latents, timesteps, noise)
    torch.testing.assert_close(Flow().add_noise(latents, noise, timesteps / 1000), mixed)


def test_generator_same_place_same_draws() -> None:
    first, again = (torch.randn(8, generator=generator_for(3, 5, 0)) for _ in range(2))
    assert torch.equal(first, again)


def test_generator_other_place_other_draws() -> None:
    places = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0), (0, "1"), (0, "epoch", 1), (10,)]
    draws = {torch.randn(4, generator=generator_for(*place)) for place in places}
    seeds = {generator_for(*place).initial_seed() for place in places}
    assert len(seeds) == len(draws) == len(places)


def test_generator_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    draw_noise((2, 4, 8, 8), generator_for(0, 0), offset=0.1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_generator_any_allowed_seed(seed: int) -> None:
    assert generator_for(seed, 0).initial_seed() >= 0


@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_noise_variance(offset: float) -> None:
    noise = draw_noise((4000, 4, 8, 8), generator_for(2), offset)
    channel_means = noise.mean((2, 3))
    assert noise.var().item() == pytest.approx(1 + offset**2, rel=0.02)
    assert channel_means.var().item() == pytest.approx(1 / 64 + offset**2, rel=0.05)
    assert noise.dtype == torch.float32


def test_noise_offset_adds_one_number_a_channel() -> None:
    plain = draw_noise((2, 4, 3, 5), generator_for(0), 0.0)
    added = draw_noise((2, 4, 3, 5), generator_for(0), 0.1) - plain
    torch.testing.assert_close(added, added[..., :1, :1].expand_as(added), rtol=0, atol=1e-6)
    assert len(added[..., 0, 0].unique()) == 8
