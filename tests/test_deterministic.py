"""The setting that makes a GPU's arithmetic the same each time: what it turns on, and off again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from tests import tiny
from trainers import loop
from trainers.errors import UnavailableError
from trainers.loop import Training
from trainers.models.deterministic import HAS_NONE, check_deterministic, deterministic
from trainers.models.precision import computes_in
from trainers.settings.run import RunConfig, run_config
from trainers.step import Job

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def flags() -> dict[str, bool]:
    cudnn = torch.backends.cudnn
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": cudnn.deterministic,
        "benchmark": cudnn.benchmark,
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
    }


ON = {"algorithms": True, "warn only": False, "cudnn": True, "benchmark": False, "fill": False}


@pytest.fixture(params=["plain", "as --deterministic leaves it"])
def before(request: pytest.FixtureRequest) -> Iterator[dict[str, bool]]:
    plain = flags()
    if request.param != "plain":
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    yield flags()
    torch.use_deterministic_algorithms(plain["algorithms"], warn_only=plain["warn only"])
    torch.backends.cudnn.benchmark = plain["benchmark"]


def test_all_is_on_inside_and_as_it_was_after(before: dict[str, bool]) -> None:
    with deterministic(True, CPU):
        assert flags() == ON
    assert flags() == before
    with pytest.raises(KeyboardInterrupt), deterministic(True, CPU):
        raise KeyboardInterrupt
    assert flags() == before
    with deterministic(False, CPU):
        assert flags() == before


def test_operation_without_such_a_form_is_named() -> None:
    said = f"cumsum_cuda_kernel {HAS_NONE}, but you set 'torch.use_deterministic_algorithms(True)'"
    words = "but cumsum_cuda_kernel does not have .* in torch.\nTurn deterministic off"
    with pytest.raises(UnavailableError, match=words), deterministic(True, CPU):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="something else"), deterministic(True, CPU):
        raise RuntimeError("something else")


def test_torch_says_it_in_these_words() -> None:
    with deterministic(True, CPU), pytest.raises(RuntimeError, match=HAS_NONE):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))


@pytest.mark.parametrize("found", [None, ":4096:2"])
def test_cublas_must_have_been_told_before(
    found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if found is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", found)
    with pytest.raises(UnavailableError, match=r"\nStart ComfyUI with --deterministic"):
        check_deterministic(CUDA)
    check_deterministic(CPU)
    for told in (":4096:8", ":16:8"):
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", told)
        check_deterministic(CUDA)


@pytest.mark.parametrize("wanted", [False, True])
def test_steps_and_validations_are_computed_so(
    wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, before = [], flags()
    losses, validation = loop.losses_and_weights, loop.validation_loss

    def watched(job: Job, *args: object) -> object:
        seen.append(flags())
        return (losses if args else validation)(job, *args)  # type: ignore[operator]

    monkeypatch.setattr(loop, "losses_and_weights", watched)
    monkeypatch.setattr(loop, "validation_loss", watched)
    config = tiny.run_config(deterministic=wanted, validate_every=1, batch_size=1)
    training = Training(dataclasses.replace(tiny.job(config), held_out=tiny.examples()))
    training.step()
    assert seen == [ON if wanted else before] * 2
    assert flags() == before


def test_it_changes_nothing_on_a_cpu() -> None:
    made = [
        tiny.trained(tiny.run_config(deterministic=wanted, batch_size=2))[0].trainable.export()
        for wanted in (False, True)
    ]
    tiny.assert_equal(*made)


# -- what a run's facts say of it ---------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "wanted", "expected"),
    [
        (CPU, False, "torch.float32 on cpu"),
        (CPU, True, "torch.float32 on cpu"),
        (CUDA, False, "torch.float32 on cuda"),
        (CUDA, True, "torch.float32 on Card 9"),
    ],
)
def test_facts_name_the_card_where_bits_depend_on_it_alone(
    device: torch.device, wanted: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Card 9")
    assert computes_in(configured(deterministic=wanted), device) == expected


@pytest.mark.parametrize(
    ("weights", "has_bf16", "expected"),
    [
        ("fp32", True, "torch.bfloat16 on cuda"),
        ("fp32", False, "torch.float16 on cuda"),
        ("bf16", True, "torch.bfloat16 on cuda"),
        ("bf16", False, "torch.float32 on cuda"),
    ],
)
def test_facts_say_what_trained_weights_compute_in(
    weights: str, has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    config = configured("dreambooth", weights=weights, precision="auto")
    assert computes_in(config, CUDA) == expected


def configured(method: str = "lora", **settings: object) -> RunConfig:
    return run_config(method, {"precision": "fp32", **settings})
