"""Whole trainings with each optimizer: exact resume, rates they find, averages they hand out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.test_optim import PACKAGES
from tests.test_resume import STEPS, goes_on, ready, stored
from trainers.errors import SettingsError, UnavailableError
from trainers.loop import Training
from trainers.optimizers.factory import make_optimizer
from trainers.optimizers.muon import MuonAndAdamW
from trainers.optimizers.states import load_state
from trainers.settings.run import ON_TRAINER, check_queued, run_config
from trainers.settings.training import (
    ALL_AT_ONCE,
    FIND_RATE,
    OPTIMIZERS,
    SCHEDULE_FREE,
    TrainingConfig,
)
from trainers.step import evaluating

# Rates at which each optimizer's numbers move enough to tell two runs apart.
SETTINGS: dict[str, dict[str, Any]] = {
    name: {"optimizer": name, "learning_rate": 0 if name in FIND_RATE else 1e-3}
    for name in OPTIMIZERS
}
SETTINGS["adamw_schedule_free"] |= {"lr_schedule": "constant_with_warmup", "warmup_steps": 2}


def has_package(name: str) -> None:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name].module)


def training_of(method: str = "lora", **settings: Any) -> Training:
    has_package(settings.get("optimizer", "adamw"))
    return Training(ready(tiny.run_config(method, batch_size=2, **settings)))


def trained(training: Training) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in training.parameters]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_run_is_the_same_run(name: str) -> None:
    has_package(name)
    settings = {"steps": STEPS, "batch_size": 2, "train_text_encoder": True}
    config = tiny.run_config(**settings, **SETTINGS[name])
    first, training = goes_on(config, 3)
    assert not equal(trained(training), trained(first))


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - set(ALL_AT_ONCE)))
def test_resumed_run_in_bf16_is_the_same_run(name: str) -> None:
    has_package(name)
    settings = {"weights": "bf16", "precision": "auto", "fused_backward": True, "optimizer": name}
    config = tiny.run_config("dreambooth", steps=4, batch_size=2, learning_rate=1e-3, **settings)
    goes_on(config, 2)


def test_narrow_states_stay_narrow() -> None:
    """What Prodigy of 2025 keeps in bf16; torch's own load_state_dict would make it fp32."""
    first, second = (training_of(**SETTINGS["prodigy_schedule_free"]) for _ in range(2))
    first.step()
    second.load_state(stored(first.state()))
    found = []
    for ours, theirs in zip(first.parameters, second.parameters, strict=True):
        one, other = first._optimizer.state[ours], second._optimizer.state[theirs]
        assert one.keys() == other.keys()
        tensors = [key for key, value in one.items() if isinstance(value, Tensor)]
        found += [one[key].dtype for key in tensors]
        assert all(one[key].dtype == other[key].dtype for key in tensors)
        assert all(torch.equal(one[key], other[key]) for key in tensors)
    assert torch.bfloat16 in found


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_paged_states_are_read_into_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but for the pages themselves."""
    has_package("paged_adamw_8bit")
    made = []
    for _ in range(2):
        parameter = nn.Parameter(torch.ones(64, 100))
        groups = [{"name": "a", "params": [parameter], "lr": 0.1}]
        optimizer: Any = make_optimizer(groups, TrainingConfig(optimizer="paged_adamw_8bit"))
        optimizer.is_paged = True
        parameter.grad = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
        made.append((parameter, optimizer))
    (one, first), (other, second) = made
    first.step()
    pages: list[Tensor] = []
    buffer = second.get_state_buffer

    def page(*args: Any, **kwargs: Any) -> Tensor:
        pages.append(buffer(*args, **kwargs))
        return pages[-1]

    monkeypatch.setattr(second, "get_state_buffer", page)
    load_state(second, stored(first.state_dict()))
    assert len(pages) == 2
    for key, expected in zip(("state1", "state2"), pages, strict=True):
        assert second.state[other][key] is expected
    for key, value in first.state[one].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(second.state[other][key]))


# -- rates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIND_RATE)
def test_a_rate_of_0_is_the_one_it_finds(name: str) -> None:
    runs = [training_of(optimizer=name, learning_rate=rate, steps=30) for rate in (0, 1.0)]
    seen = [[training.step().learning_rate for _ in range(30)] for training in runs]
    assert seen[0] == seen[1]
    assert equal(trained(runs[0]), trained(runs[1]))
    assert 0 < seen[0][0] < seen[0][-1]  # it starts at a millionth


def test_adafactor_s_own_rate_is_relative_to_what_is_trained() -> None:
    training = training_of("dreambooth", optimizer="adafactor", learning_rate=0, steps=3)
    sizes = [p.detach().square().mean().sqrt().clamp(min=1e-3) for p in training.parameters]
    before = trained(training)
    rate = training.step().learning_rate
    assert rate == pytest.approx(1e-2 * torch.stack(sizes).mean().item(), rel=1e-4)
    moved = [
        (p - b).square().mean().sqrt() for p, b in zip(training.parameters, before, strict=True)
    ]
    assert max(moved) <= 1.01e-2 * max(sizes)
    assert any(m > 5e-3 * s for m, s in zip(moved, sizes, strict=True))


def test_adafactor_s_own_rate_in_bf16() -> None:
    settings = {"weights": "bf16", "precision": "auto", "optimizer": "adafactor"}
    training = training_of("dreambooth", learning_rate=0, steps=3, **settings)
    assert 1e-5 < training.step().learning_rate < 1e-2


def test_a_group_s_own_rate_beside_one_that_is_given() -> None:
    settings = {"train_text_encoder": True, "text_encoder_learning_rate": 1e-3}
    training = training_of(optimizer="adafactor", learning_rate=0, **settings)
    assert [group.get("relative_step") for group in training._optimizer.param_groups] == [
        True,
        False,
    ]


# -- averages -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULE_FREE)
@pytest.mark.parametrize("method", ["lora", "dreambooth", "textual_inversion"])
def test_what_is_handed_out_is_the_average(name: str, method: str) -> None:
    rate = 0.0 if name in FIND_RATE else 0.01
    training = training_of(method, optimizer=name, learning_rate=rate, steps=STEPS)
    for _ in range(4):
        training.step()
    at_y = trained(training)
    optimizer: Any = training._optimizer
    with evaluating(training._job):
        at_x = trained(training)
    exported = training._job.trainable.export()
    assert equal(trained(training), at_y)
    assert not equal(at_x, at_y)
    optimizer.eval()
    for ours, theirs in zip(at_x, training.parameters, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=0)
    tiny.assert_equal(exported, training._job.trainable.export())


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_looking_at_the_average_changes_nothing_that_is_learned(name: str) -> None:
    looked_at, left_alone = (training_of(steps=STEPS, **SETTINGS[name]) for _ in range(2))
    for _ in range(STEPS):
        looked_at.step(), left_alone.step()
        with evaluating(looked_at._job):
            looked_at._job.trainable.export()
        looked_at.state()
    assert equal(trained(looked_at), trained(left_alone))


def test_schedule_free_warms_up_by_itself() -> None:
    settings = {"lr_schedule": "constant_with_warmup", "warmup_steps": 4, "learning_rate": 0.01}
    training = training_of(optimizer="adamw_schedule_free", steps=6, **settings)
    rates = [training.step().learning_rate for _ in range(6)]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


# -- Muon -----------------------------------------------------------------------------------


def test_muon_needs_a_torch_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UnavailableError, match="Optimizer 'muon' needs torch 2.9 or newer"):
        training_of(optimizer="muon")


def test_muon_turns_matrices_alone() -> None:
    """A matrix moves by an orthogonal one, of 0.2 a number; vectors and tokens by AdamW's rate."""
    matrix, vector, token = (nn.Parameter(torch.zeros(size)) for size in ((8, 32), (8,), (1, 32)))
    groups: list[dict[str, Any]] = [
        {"name": "denoiser", "params": [matrix, vector], "lr": 0.1},
        {"name": "tokens", "params": [token], "lr": 0.01, "weight_decay": 0.0},
    ]
    optimizer = MuonAndAdamW(groups, weight_decay=0.0)
    for parameter in (matrix, vector, token):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    # torch's iteration leaves singular values between 0.7 and 1.2 (its source).
    lengths = torch.linalg.svdvals(matrix.detach()) / (0.1 * 0.2 * 32**0.5)
    assert 0.6 < lengths.min() <= lengths.max() < 1.3
    for parameter, rate in ((vector, 0.1), (token, 0.01)):
        expected = torch.full_like(parameter, rate)
        torch.testing.assert_close(parameter.detach().abs(), expected, rtol=1e-3, atol=0)


# -- settings -------------------------------------------------------------------------------

CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    (
        "lora",
        {"optimizer": "adamw_schedule_free", "lr_schedule": "cosine"},
        "lr_schedule is 'cosine', but optimizer 'adamw_schedule_free' has an average",
    ),
    (
        "lora",
        {"optimizer": "prodigy_schedule_free", "lr_schedule": "constant_with_warmup"},
        "lr_schedule is 'constant_with_warmup', but optimizer 'prodigy_schedule_free'",
    ),
    (
        "lora",
        {"optimizer": "adafactor", "learning_rate": 0, "lr_schedule": "linear"},
        "lr_schedule is 'linear', but learning_rate 0 leaves the rate to adafactor",
    ),
    (
        "lora",
        {"optimizer": "prodigy", "train_token": True, "learning_rate": 1.0},
        "token_learning_rate is 0.001, but optimizer 'prodigy' finds one rate for all",
    ),
    (
        "dreambooth",
        {"optimizer": "prodigy", "train_text_encoder": True, "text_encoder_learning_rate": 0.5},
        "text_encoder_learning_rate is 0.5, but optimizer 'prodigy'",
    ),
    (
        "dreambooth",
        {"optimizer": "adamw_schedule_free", "ema_decay": 0.99},
        "ema_decay is 0.99, but optimizer 'adamw_schedule_free' hands out an average already",
    ),
    (
        "textual_inversion",
        {"optimizer": "prodigy_schedule_free", "norm_control": True},
        "norm_control is on, but optimizer 'prodigy_schedule_free'",
    ),
    ("textual_inversion", {"optimizer": "muon"}, "optimizer is 'muon', which is for the matrices"),
    *(
        ("dreambooth", {"optimizer": name, **how}, f"optimizer '{name}' looks at all weights")
        for name in ALL_AT_ONCE
        for how in ({"fused_backward": True}, {"weights": "bf16"})
    ),
]


@pytest.mark.parametrize(("method", "settings", "words"), CONTRADICTIONS)
def test_what_contradicts_an_optimizer_is_told(
    method: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError) as error:
        run_config(method, {"token": "<t>", **settings})
    (problem,) = error.value.problems
    assert words in problem
    assert "; allowed: " in problem


TEXT = {"train_text_encoder": True}
TOKEN = {"train_token": True}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lora", {}),
        ("lora", TEXT),  # a tenth of 0
        ("dreambooth", TEXT | {"optimizer": "lion"}),
        ("lora", TOKEN | {"token_learning_rate": 0}),
        ("lora", {"text_encoder_learning_rate": 1e-4}),  # which does not train
        ("textual_inversion", {"token": "<t>"}),
    ],
)
def test_a_rate_of_0_that_nobody_finds_is_refused(method: str, settings: dict[str, Any]) -> None:
    given = {"learning_rate": 0, **settings}
    with pytest.raises(SettingsError) as error:
        run_config(method, given)
    (problem,) = error.value.problems
    assert "learning_rate is 0, which optimizer" in problem
    assert "; allowed: " in problem
    # The optimizer is on another node, which is not known when this one is queued.
    known = run_config(method, settings | {"optimizer": "adafactor"}).as_dict()
    values = known["training"] | known["own"] | given
    check_queued(method, {name: values[name] for name in ON_TRAINER[method]})


@pytest.mark.parametrize(
    "settings",
    [TEXT | {"text_encoder_learning_rate": 1e-5}, TOKEN, {"optimizer": "adafactor"}],
)
def test_a_rate_of_0_beside_another_is_allowed(settings: dict[str, Any]) -> None:
    assert run_config("lora", {"learning_rate": 0, **settings}).training.learning_rate == 0


@pytest.mark.parametrize("name", FIND_RATE)
def test_the_text_encoder_has_the_rate_that_is_found(name: str) -> None:
    config = run_config("lora", {"optimizer": name, "learning_rate": 0, "train_text_encoder": True})
    assert config.text_rate == 0
