"""How often each timestep trains."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.schedules import scaled_linear_alphas_cumprod
from trainers.errors import SettingsError
from trainers.objective.noise import Diffusion, Flow, Objective, generator_for
from trainers.objective.timesteps import check_objective, draw_timesteps, even_timesteps, flux_shift
from trainers.settings.objective import ObjectiveConfig

EPSILON, V = (Diffusion(name, scaled_linear_alphas_cumprod()) for name in ("epsilon", "v"))
AREA_PX = 1024 * 1024
NUM = 50_000


def drawn(process: Objective, area_px: int = AREA_PX, seed: int = 0, **settings: Any) -> Tensor:
    return draw_timesteps(NUM, generator_for(seed), ObjectiveConfig(**settings), process, area_px)


def quantiles(levels: Tensor) -> Tensor:
    return torch.quantile(levels.double(), torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]).double())


def normal_quantiles() -> Tensor:
    return math.sqrt(2) * torch.erfinv(2 * torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]).double() - 1)


def test_uniform_over_the_range() -> None:
    bins = 50
    timesteps = drawn(EPSILON)
    counts = torch.histc(timesteps.float(), bins=bins, min=0, max=1000)
    assert timesteps.dtype == torch.int64
    assert (counts - NUM / bins).abs().max() < 4.5 * math.sqrt(NUM / bins)
    levels = drawn(Flow(), timestep_sampling="uniform")
    assert levels.dtype == torch.float32
    torch.testing.assert_close(levels, (timesteps + 0.5) / 1000)


@pytest.mark.parametrize("law", ["uniform", "logit_normal", "flux_shift"])
@pytest.mark.parametrize(("lowest", "highest"), [(0, 999), (3, 7), (999, 999), (0, 0)])
def test_range_is_kept_and_means_the_same(lowest: int, highest: int, law: str) -> None:
    wide = {"logit_std": 5.0} if law == "logit_normal" else {}
    asked = {"timestep_min": lowest, "timestep_max": highest, "timestep_sampling": law, **wide}
    timesteps, shares = drawn(EPSILON, **asked), drawn(Flow(), **asked)
    assert timesteps.min() >= lowest
    assert timesteps.max() <= highest
    assert shares.min() >= lowest / 1000
    assert shares.max() <= (highest + 1) / 1000
    assert (timesteps - 1000 * shares).abs().max() <= 1
    if law == "uniform":
        assert (timesteps.min(), timesteps.max()) == (lowest, highest)


def test_auto_is_uniform_for_noise_and_v_and_logit_normal_for_flow() -> None:
    for process, law in ((EPSILON, "uniform"), (V, "uniform"), (Flow(), "logit_normal")):
        assert torch.equal(drawn(process), drawn(process, timestep_sampling=law))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 1.0), (1.0, 0.5)])
def test_logit_normal_is_the_formula(mean: float, std: float) -> None:
    levels = drawn(Flow(), timestep_sampling="logit_normal", logit_mean=mean, logit_std=std)
    expected = torch.sigmoid(mean + std * normal_quantiles())
    torch.testing.assert_close(quantiles(levels), expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shift_is_the_formula(shift: float) -> None:
    plain = drawn(Flow(), timestep_sampling="logit_normal").double()
    asked = drawn(Flow(), timestep_sampling="shift", discrete_flow_shift=shift).double()
    own = drawn(Flow(shift=shift), timestep_sampling="shift").double()
    expected = shift * plain / (1 + (shift - 1) * plain)
    torch.testing.assert_close(asked, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


def test_flux_shift_goes_by_resolution() -> None:
    assert flux_shift(256 * 256) == pytest.approx(math.exp(0.5))
    assert flux_shift(AREA_PX) == pytest.approx(math.exp(1.15))
    for area_px in (AREA_PX, 512 * 512):
        shift = round(flux_shift(area_px), 6)
        same = drawn(Flow(), timestep_sampling="shift", discrete_flow_shift=shift)
        shares = drawn(Flow(), area_px, timestep_sampling="flux_shift")
        torch.testing.assert_close(shares, same, rtol=1e-4, atol=1e-5)


def test_even_timesteps() -> None:
    settings = ObjectiveConfig(timestep_min=100, timestep_max=190)
    assert even_timesteps(8, settings, EPSILON).tolist() == [110, 120, 130, 140, 150, 160, 170, 180]
    torch.testing.assert_close(
        even_timesteps(8, settings, Flow()), torch.arange(110, 190, 10) / 1000 + 0.0005
    )


@pytest.mark.parametrize(
    ("process", "settings", "says"),
    [
        (Flow(), {"min_snr_gamma": 5.0}, "min_snr_gamma is 5, but this model is trained by flow"),
        (EPSILON, {"logit_std": 2.0}, "'auto' is uniform for this model"),
        (EPSILON, {"timestep_sampling": "shift"}, "discrete_flow_shift is 0"),
    ],
)
def test_settings_that_mean_nothing_to_a_model(
    process: Objective, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(SettingsError, match=says):
        check_objective(ObjectiveConfig(**settings), process)


def test_settings_that_mean_something() -> None:
    check_objective(ObjectiveConfig(min_snr_gamma=5.0), EPSILON)
    check_objective(ObjectiveConfig(timestep_sampling="shift"), Flow(shift=3.0))
    check_objective(ObjectiveConfig(timestep_sampling="shift", discrete_flow_shift=2.0), V)
    check_objective(ObjectiveConfig(logit_std=2.0), Flow())
