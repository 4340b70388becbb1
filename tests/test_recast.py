"""Layers on narrow weights against the same layers on fp32 copies: outputs, gradients, memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from trainers.loop import train
from trainers.models.checkpointing import checkpoint_blocks
from trainers.models.convolution import SmallMapConv2d
from trainers.models.recast import SMALL, Scratch, compute_wide

NARROW = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
# Layers whose weights take the scratch's place, and those that are too small for it.
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(80, 70), (2, 3, 80)),
    "small linear": (nn.Linear(6, 5), (2, 3, 6)),
    "linear without bias": (nn.Linear(80, 70, bias=False), (7, 80)),
    "linear with a long bias": (nn.Linear(3, SMALL + 1), (2, 3)),
    "convolution": (nn.Conv2d(24, 20, 3, padding=1, stride=2), (2, 24, 7, 8)),
    "grouped convolution": (nn.Conv2d(6, 4, 1, groups=2), (1, 6, 3, 3)),
    "large map": (SmallMapConv2d(24, 20, 3, padding=1), (2, 24, 8, 8)),
    "small map": (SmallMapConv2d(24, 20, 3, padding=1), (2, 24, 3, 4)),
    "layer norm": (nn.LayerNorm(6), (2, 4, 6)),
    "long layer norm": (nn.LayerNorm(SMALL + 1), (2, SMALL + 1)),
    "group norm": (nn.GroupNorm(2, 6), (2, 6, 3, 3)),
}
each_layer = pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def widened(module: nn.Module) -> nn.Module:
    scratch = Scratch(torch.float32)
    for layer in module.modules():
        compute_wide(layer, scratch)
    return module


def outputs_and_gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_(True)
    y = layer(x)
    (y * drawn(*y.shape)).sum().backward()
    trained = [parameter.grad for parameter in layer.parameters() if parameter.requires_grad]
    return [y, x.grad, *trained]


def assert_same(narrow: nn.Module, wide: nn.Module, x: Tensor) -> None:
    """The same numbers to a millionth of the largest."""
    pairs = zip(outputs_and_gradients(narrow, x), outputs_and_gradients(wide, x), strict=True)
    for ours, expected in pairs:
        assert ours is not None
        # Gradients of weights come in the weights' own dtype.
        rounding = 1e-6 if ours.dtype == torch.float32 else torch.finfo(ours.dtype).eps
        assert (ours.float() - expected).abs().max() <= rounding * expected.abs().max()


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@NARROW
@each_layer
def test_layer_equals_a_widened_copy(
    layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, frozen: bool
) -> None:
    narrow = copy.deepcopy(layer).to(dtype).requires_grad_(not frozen)
    wide = copy.deepcopy(narrow).float()
    assert_same(widened(narrow), wide, drawn(*shape))
    assert {parameter.dtype for parameter in narrow.parameters()} == {dtype}


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@NARROW
def test_layers_that_share_the_scratch_equal_widened_copies(
    dtype: torch.dtype, frozen: bool
) -> None:
    layers = (nn.Linear(80, 90), nn.LayerNorm(90), nn.Linear(90, 70), nn.Linear(70, 80))
    narrow = nn.Sequential(*layers).to(dtype).requires_grad_(not frozen)
    wide = copy.deepcopy(narrow).float()
    assert_same(widened(narrow), wide, drawn(5, 80))


def test_weight_of_another_layout_equals_a_widened_copy() -> None:
    layer = nn.Conv2d(24, 20, 3, padding=1).half().to(memory_format=torch.channels_last)
    for trained in (True, False):
        narrow = copy.deepcopy(layer).requires_grad_(trained)
        # In the plain layout, as ours computes: another layout's kernel adds in another order.
        wide = copy.deepcopy(narrow).float().to(memory_format=torch.contiguous_format)
        assert_same(widened(narrow), wide, drawn(2, 24, 8, 8))


class Two(nn.Module):
    """A layer with two weights that are both large."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Parameter(drawn(80, 80) * scale) for scale in (0.1, 0.2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.one @ self.two


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_layer_with_two_large_weights_equals_a_widened_copy(frozen: bool) -> None:
    narrow = Two().half().requires_grad_(not frozen)
    wide = copy.deepcopy(narrow).float()
    assert_same(widened(narrow), wide, drawn(5, 80))


class Stack(nn.Module):
    """Three residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(80), nn.Linear(80, 96), nn.Linear(96, 80)) for _ in range(3)
        )
        self.blocks = nn.ModuleList(Residual(layers) for layers in self.layers)
        del self.layers

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_checkpointed_blocks_equal_widened_copies(frozen: bool) -> None:
    narrow = Stack().half().requires_grad_(not frozen)
    wide = copy.deepcopy(narrow).float()
    assert checkpoint_blocks(widened(narrow)) == 3
    assert_same(narrow, wide, drawn(5, 80))


# -- what is kept -------------------------------------------------------------------------

Hooks = Callable[[Callable[[Tensor], Any], Callable[[Any], Tensor]], AbstractContextManager[None]]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All that layers which compute wide leave for the backward pass."""
    found: list[Any] = []
    hooks: Hooks = torch.autograd.graph.saved_tensors_hooks

    def watched(
        pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]
    ) -> AbstractContextManager[None]:
        def keep(tensor: Tensor) -> Any:
            found.append(pack(tensor))
            return found[-1]

        return hooks(keep, unpack)

    monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", watched)
    return found


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@each_layer
def test_no_widened_weight_is_kept_for_the_backward_pass(
    kept: list[Any], layer: nn.Module, shape: tuple[int, ...], frozen: bool
) -> None:
    layer = widened(copy.deepcopy(layer).half().requires_grad_(not frozen))
    x = drawn(*shape).requires_grad_(True)
    layer(x)
    later = [entry.weight for entry in kept if not isinstance(entry, Tensor)]
    assert {id(weight) for weight in later} <= {id(parameter) for parameter in layer.parameters()}
    assert any(weight is layer.weight for weight in later)
    # No activation here has as many numbers as a parameter.
    sizes = {entry.numel() for entry in kept if isinstance(entry, Tensor)}
    assert not sizes & {parameter.numel() for parameter in layer.parameters()}


def test_checkpointed_blocks_keep_nothing_themselves(kept: list[Any]) -> None:
    stack = widened(Stack().half().requires_grad_(False))
    x = drawn(5, 80).requires_grad_(True)
    stack(x)
    assert kept
    kept.clear()
    checkpoint_blocks(stack)
    stack(x)
    assert not kept


def test_layer_without_narrow_weights_is_left_alone() -> None:
    layer = nn.Linear(4, 4)
    compute_wide(layer, Scratch(torch.float32))
    assert "forward" not in vars(layer)


# -- whole trainings ----------------------------------------------------------------------

RATES = {"learning_rate": 0.1, "text_encoder_learning_rate": 0.1}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"targets": "all with convolutions", "train_text_encoder": True} | RATES),
    "dora": ("lora", {"variant": "dora"} | RATES),
    **{
        variant: ("lora", {"variant": variant, "targets": "all with convolutions"} | RATES)
        for variant in ("lokr", "loha", "oft")
    },
    "pissa": ("lora", {"initialization": "pissa"} | RATES),
    "textual inversion": ("textual_inversion", {"learning_rate": 0.1}),
    "checkpointing": ("textual_inversion", {"learning_rate": 0.1, "gradient_checkpointing": True}),
}


@pytest.mark.parametrize(("method", "settings"), RUNS.values(), ids=RUNS)
@pytest.mark.usefixtures("damped_adamw")
def test_training_equals_that_of_a_widened_copy(method: str, settings: dict[str, Any]) -> None:
    config = tiny.run_config(method, batch_size=2, **settings)
    narrow, wide = tiny.parts(dtype=torch.float16), tiny.parts(dtype=torch.float16)
    tiny.widen(narrow)
    for module in wide.modules.values():
        module.float()
    wide.dtype = torch.float32
    ours, expected = tiny.job(config, narrow), tiny.job(config, wide)
    # peft draws in the base's dtype, so where a LoRA starts differs by its rounding.
    for start, own in zip(ours.trainable.parameters, expected.trainable.parameters, strict=True):
        own.data.copy_(start)
    before = tiny.trainable_state(ours)
    assert train(ours) == pytest.approx(train(expected), rel=1e-6)
    after = tiny.trainable_state(ours)
    tiny.assert_near(after, tiny.trainable_state(expected), atol=1e-6)
    assert max((after[name] - was).abs().max() for name, was in before.items()) > 1e-2
    stored = {p.dtype for m in narrow.modules.values() for p in m.parameters()}
    assert stored <= {torch.float16, torch.float32}  # the base's, and what was trained
    assert torch.float16 in stored
