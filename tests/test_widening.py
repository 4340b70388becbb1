"""Layers on narrow weights against the same layers on fp32 copies: outputs, gradients, memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from trainers.loop import train
from trainers.models.convolution import SmallMapConv2d
from trainers.models.precision import computes_in
from trainers.models.widening import widen

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 5), (2, 3, 6)),
    "linear without bias": (nn.Linear(6, 5, bias=False), (7, 6)),
    "convolution": (nn.Conv2d(6, 5, 3, padding=1, stride=2), (2, 6, 7, 8)),
    "grouped convolution": (nn.Conv2d(6, 4, 1, groups=2), (1, 6, 3, 3)),
    "large map": (SmallMapConv2d(6, 5, 3, padding=1), (2, 6, 8, 8)),
    "small map": (SmallMapConv2d(6, 5, 3, padding=1), (2, 6, 3, 4)),
    "layer norm": (nn.LayerNorm(6), (2, 3, 6)),
    "group norm": (nn.GroupNorm(2, 6), (2, 6, 3, 3)),
}


def outputs_and_gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_(True)
    y = layer(x)
    (y * torch.arange(y.numel()).view_as(y)).sum().backward()
    trained = [parameter.grad for parameter in layer.parameters() if parameter.requires_grad]
    return [y, x.grad, *trained]


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_layer_equals_a_widened_copy(
    layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, frozen: bool
) -> None:
    narrow = copy.deepcopy(layer).to(dtype).requires_grad_(not frozen)
    wide = copy.deepcopy(narrow).float()
    model = nn.Sequential(narrow)
    widen(model, torch.float32)
    x = torch.randn(shape)
    got = outputs_and_gradients(model, x)
    for ours, expected in zip(got, outputs_and_gradients(wide, x), strict=True):
        # Gradients of weights come in the weights' own dtype.
        torch.testing.assert_close(ours, expected.to(ours.dtype), rtol=2e-6, atol=1e-4)


RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"targets": "all with convolutions", "train_text_encoder": True}),
    "dora": ("lora", {"variant": "dora"}),
    "textual inversion": ("textual_inversion", {}),
    "checkpointing": ("textual_inversion", {"gradient_checkpointing": True}),
}


@pytest.mark.parametrize(("method", "settings"), RUNS.values(), ids=RUNS)
def test_training_equals_that_of_a_widened_copy(method: str, settings: dict[str, Any]) -> None:
    config = tiny.run_config(method, batch_size=2, **settings)
    narrow, wide = tiny.parts(dtype=torch.float16), tiny.parts(dtype=torch.float16)
    for name in narrow.modules:
        widen(narrow.modules[name], torch.float32)
        assert computes_in(narrow.modules[name]) == torch.float32
        wide.modules[name].float()
    ours, expected = tiny.job(config, narrow), tiny.job(config, wide)
    # peft draws in the base's dtype, so where a LoRA starts differs by its rounding.
    for start, own in zip(ours.trainable.parameters, expected.trainable.parameters, strict=True):
        own.data.copy_(start)
    train(ours), train(expected)
    tiny.assert_near(tiny.trainable_state(ours), tiny.trainable_state(expected), atol=1e-6)
    stored = {p.dtype for m in narrow.modules.values() for p in m.parameters()}
    assert stored == {torch.float16, torch.float32}  # the base's, and what was trained


def test_no_widened_weight_is_kept_for_the_backward_pass() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64, dtype=torch.float16) for _ in range(4)))
    model.requires_grad_(False)
    widen(model, torch.float32)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(1, 64, requires_grad=True))
    wide = [tensor for tensor in kept if tensor.numel() == 64 * 64]
    assert {tensor.dtype for tensor in wide} == {torch.float16}
    stored = {parameter.data_ptr() for parameter in model.parameters()}
    assert {tensor.data_ptr() for tensor in wide} <= stored
