"""Which dtype each precision means on each device."""

from __future__ import annotations

import pytest
import torch

from trainers.errors import UnavailableError
from trainers.models import precision
from trainers.models.precision import compute_dtype, gradient_scaler, trained_compute_dtype
from trainers.settings.training import PRECISIONS

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))

# precision, device, whether the device has bf16 -> dtype
CASES = [
    ("fp32", CPU, True, torch.float32),
    ("fp32", CUDA, True, torch.float32),
    ("bf16", CPU, False, torch.bfloat16),
    ("bf16", CUDA, False, torch.bfloat16),
    ("fp16", CUDA, True, torch.float16),
    ("auto", CPU, True, torch.bfloat16),
    ("auto", CPU, False, torch.float32),
    ("auto", CUDA, True, torch.bfloat16),
    ("auto", CUDA, False, torch.float16),
    ("auto", MPS, True, torch.float32),
]


@pytest.mark.parametrize(("chosen", "device", "has_bf16", "expected"), CASES)
def test_compute_dtype(
    chosen: str,
    device: torch.device,
    has_bf16: bool,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: has_bf16)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert compute_dtype(chosen, device) == expected


def test_every_precision_is_tested() -> None:
    assert {chosen for chosen, *_ in CASES} == set(PRECISIONS)


def test_compute_dtype_fp16_on_cpu() -> None:
    with pytest.raises(UnavailableError, match="fp16 is not possible on a CPU") as error:
        compute_dtype("fp16", CPU)
    assert "bf16, fp32 or auto" in str(error.value)


def test_compute_dtype_auto_on_this_cpu_computes() -> None:
    dtype = compute_dtype("auto", CPU)
    ones = torch.ones(4, 4, dtype=dtype)
    assert torch.equal(ones @ ones, 4 * ones)


# precision, whether a GPU has bf16, what trained weights are held in -> what modules compute in;
# where that is fp32 over fp32, autocast narrows it.
TRAINED = [
    ("auto", True, torch.bfloat16, torch.bfloat16),
    ("auto", False, torch.bfloat16, torch.float32),  # bf16 would be emulated, fp16 overflow
    ("auto", False, torch.float32, torch.float32),
    ("auto", True, torch.float32, torch.float32),
    ("fp32", True, torch.bfloat16, torch.float32),
    ("bf16", False, torch.bfloat16, torch.bfloat16),  # as it was asked for
]


@pytest.mark.parametrize(("chosen", "has_bf16", "held_in", "expected"), TRAINED)
def test_compute_dtype_of_trained_weights_on_a_gpu(
    chosen: str,
    has_bf16: bool,
    held_in: torch.dtype,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert trained_compute_dtype(chosen, held_in, CUDA) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradient_scaler_works_for_fp16_alone(dtype: torch.dtype) -> None:
    assert gradient_scaler(dtype, CPU).is_enabled() == (dtype == torch.float16)
