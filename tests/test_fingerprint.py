"""What tells one base model from another."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from trainers.models.architectures import DENOISER
from trainers.runs.fingerprint import tensors_fingerprint, weights_fingerprint


def test_weights_fingerprint_same_weights() -> None:
    assert weights_fingerprint(tiny.parts().modules) == weights_fingerprint(tiny.parts().modules)


def test_weights_fingerprint_other_weights() -> None:
    prints = {weights_fingerprint(tiny.parts(seed=seed).modules) for seed in range(3)}
    assert len(prints) == 3


@pytest.mark.parametrize("module", [DENOISER, "clip_l"])
def test_weights_fingerprint_one_tensor_changed(module: str) -> None:
    base = tiny.parts()
    before = weights_fingerprint(base.modules)
    with torch.no_grad():
        list(base.modules[module].parameters())[-1].mul_(1.01)
    assert weights_fingerprint(base.modules) != before


def test_weights_fingerprint_depends_on_which_module() -> None:
    unet, text = tiny.parts().modules.values()
    assert weights_fingerprint({"a": unet, "b": text}) != weights_fingerprint(
        {"b": unet, "a": text}
    )
    assert weights_fingerprint({"a": unet, "b": text}) == weights_fingerprint(
        {"b": text, "a": unet}
    )


def test_a_single_number_of_a_large_tensor_counts() -> None:
    before = torch.zeros(1000, 1000, dtype=torch.float16)
    after = before.clone()
    after[123, 457] = 1e-4
    assert tensors_fingerprint({"a": before}) != tensors_fingerprint({"a": after})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8])
def test_every_dtype_has_one(dtype: torch.dtype) -> None:
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    prints = {tensors_fingerprint({"a": t}) for t in (tensor, tensor.T, tensor.clone())}
    assert len(prints) == 2
    assert tensors_fingerprint({"a": tensor.T}) == tensors_fingerprint({"a": tensor.T.contiguous()})


def test_an_empty_tensor_and_a_scalar_have_one() -> None:
    assert tensors_fingerprint({"a": torch.empty(0)}) != tensors_fingerprint({"a": torch.ones(())})
