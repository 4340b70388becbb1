"""Frozen layers that make their weight when they run, against torch's own with that weight."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.methods.adapters.variants import held_layers, inject
from trainers.models.checkpointing import checkpoint_blocks
from trainers.models.quantized import (
    Stored,
    StoredConv2d,
    StoredEmbedding,
    StoredLinear,
    as_it_is,
)
from trainers.models.streaming import in_ram, stream_blocks
from trainers.settings.methods.lora import LoraConfig

WIDTH, DEPTH = 48, 6


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_int8(weight: Tensor, watch: Callable[[Tensor], None] = lambda made: None) -> Stored:
    """Codes with a scale for each output."""
    scale = weight.flatten(1).abs().amax(1) / 127
    shape = (-1, *[1] * (weight.ndim - 1))

    def make(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        codes, scales = tensors
        made = codes.to(dtype) * scales.to(dtype).view(shape)
        watch(made)
        return made

    codes = (weight / scale.view(shape)).round().to(torch.int8)
    return Stored({"codes": codes, "scale": scale}, make, tuple(weight.shape))


def linear(
    seed: int, bias: bool = True, watch: Callable[[Tensor], None] = lambda made: None
) -> tuple[StoredLinear, nn.Linear]:
    """A quantized layer, and a plain one with the same weight."""
    plain = nn.Linear(WIDTH, WIDTH, bias=bias)
    with torch.no_grad():
        stored = in_int8(0.2 * drawn(WIDTH, WIDTH, seed=seed), watch)
        plain.weight.copy_(stored.weight(torch.float32))
    plain.requires_grad_(False)
    return StoredLinear(plain, stored, plain.bias, torch.float32), plain


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradient of the input and of all that trains."""
    x = x.clone().requires_grad_(True)
    y = module(x)
    (y * drawn(*y.shape, seed=9)).sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_linear_layers_compute_as_torchs(bias: bool) -> None:
    ours, plain = linear(1, bias)
    assert_close(gradients(ours, drawn(2, 5, WIDTH)), gradients(plain, drawn(2, 5, WIDTH)))
    assert {name for name, _ in ours.named_parameters()} == ({"bias"} if bias else set())
    assert [tensor.dtype for tensor in ours.buffers()] == [torch.int8, torch.float32]


@pytest.mark.parametrize(
    "options",
    [{}, {"padding": 1, "stride": 2}, {"groups": 2, "bias": False}],
    ids=str,
)
def test_convolutions_compute_as_torchs(options: dict[str, Any]) -> None:
    plain = nn.Conv2d(6, 4, 3, **options).requires_grad_(False)
    stored = as_it_is(plain.weight.detach().to(torch.float8_e4m3fn))
    with torch.no_grad():
        plain.weight.copy_(stored.weight(torch.float32))
    ours = StoredConv2d(plain, stored, plain.bias, torch.float32)
    found = []
    for layer in (ours, plain):
        found.append(gradients(layer, drawn(2, 6, 7, 8)))
        if layer.groups == 1:  # else peft warns
            found[-1] += gradients(adapted(layer, {"variant": "lora"}), drawn(2, 6, 7, 8))
    assert_close(*found)


def test_tables_make_the_rows_that_are_looked_up() -> None:
    plain = nn.Embedding(20, 6).requires_grad_(False)
    stored = as_it_is(plain.weight.detach().to(torch.float8_e5m2))
    ids = torch.tensor([[3, 0, 19], [3, 3, 1]])
    ours = StoredEmbedding(plain, stored, torch.float32)
    expected = stored.weight(torch.float32)[ids]
    assert torch.equal(ours(ids), expected)
    assert ours(ids, out_dtype=torch.bfloat16).dtype is torch.bfloat16
    assert torch.equal(ours.weight[5:7], stored.weight(torch.float32)[5:7])


def test_a_layer_computes_in_the_dtype_of_its_input() -> None:
    ours, plain = linear(2)
    x = drawn(3, WIDTH).bfloat16()
    expected = plain.bfloat16()(x)
    assert ours(x).dtype is torch.bfloat16
    torch.testing.assert_close(ours(x), expected, rtol=2e-2, atol=2e-2)


def test_who_asks_for_a_weight_is_told_of_it_and_makes_it_only_to_compute() -> None:
    made = []
    ours, plain = linear(3, watch=made.append)
    made.clear()
    weight: Any = ours.weight
    told = weight.shape, weight.dtype, weight.device, weight.ndim, len(weight), weight.numel()
    assert told == (
        (WIDTH, WIDTH), torch.float32, torch.device("cpu"), 2, WIDTH, WIDTH * WIDTH
    )  # fmt: skip
    assert weight.is_floating_point()
    assert made == []
    x = drawn(WIDTH).requires_grad_(True)
    product = weight @ x
    assert len(made) == 1
    (found,) = torch.autograd.grad(product.sum(), x)
    assert len(made) == 2  # for the backward pass, which keeps none
    assert torch.equal(product, plain.weight @ x)
    torch.testing.assert_close(found, plain.weight.sum(0))


VARIANTS = [
    {"variant": "lora"}, {"variant": "lora", "initialization": "pissa"}, {"variant": "dora"},
    {"variant": "lora", "dropout": 0.5}, {"variant": "dora", "dropout": 0.5},
    {"variant": "lokr"}, {"variant": "loha"}, {"variant": "oft"},
]  # fmt: skip


def adapted(layer: nn.Module, told: dict[str, Any]) -> nn.Module:
    """A model of one layer with an adapter that is filled."""
    module = nn.Sequential(nn.Sequential(layer))
    module.register_parameter("other", nn.Parameter(torch.zeros(1), requires_grad=False))
    inject(module, ["0.0"], LoraConfig(rank=4, alpha=4.0, **told), 3, torch.device("cpu"))
    with torch.no_grad():
        for number, parameter in enumerate(p for p in module.parameters() if p.requires_grad):
            parameter.add_(0.1 * drawn(*parameter.shape, seed=number))
    return module


@pytest.mark.parametrize("told", VARIANTS, ids=lambda told: " ".join(map(str, told.values())))
def test_adapters_train_beside_it_as_beside_the_plain_layer(told: dict[str, Any]) -> None:
    found = []
    for layer in linear(4):
        torch.manual_seed(5)  # of the dropout
        module = adapted(layer, told)
        held = [tensor for _, tensors in held_layers(module, True) for tensor in tensors.values()]
        found.append([*gradients(module, drawn(2, 5, WIDTH)), *held])
    assert_close(*found)
    assert len(found[0]) > 3


@pytest.mark.parametrize("told", VARIANTS[:3] + VARIANTS[5:], ids=lambda told: told["variant"])
def test_adapters_see_the_input_as_the_weight_behind_a_scale_does(told: dict[str, Any]) -> None:
    ours, plain = linear(6)
    scale = 1 + drawn(WIDTH).abs()
    scaled = StoredLinear(plain, in_int8(plain.weight), plain.bias, torch.float32, scale)
    assert_close([scaled(drawn(2, WIDTH))], [plain(drawn(2, WIDTH) * scale)])
    expected = adapted(plain, told)(drawn(2, WIDTH) * scale)
    torch.testing.assert_close(adapted(scaled, told)(drawn(2, WIDTH)), expected)


class Alive:
    """How many weights that were made are alive, and were at most."""

    def __init__(self) -> None:
        self.now = self.most = self.made = 0

    def watch(self, weight: Tensor) -> None:
        self.now, self.made = self.now + 1, self.made + 1
        self.most = max(self.most, self.now)
        weakref.finalize(weight, self.gone)

    def gone(self) -> None:
        self.now -= 1


class Block(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.gelu(self.first(x)))


class Model(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(Block, layers[::2], layers[1::2]))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
def test_one_weight_at_a_time_is_there(checkpointed: bool) -> None:
    alive = Alive()
    module = Model([linear(seed, watch=alive.watch)[0] for seed in range(DEPTH)])
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    inject(module, names, LoraConfig(rank=4), 3, torch.device("cpu"))
    if checkpointed:
        assert checkpoint_blocks(module) == DEPTH // 2
    alive.made = alive.most = 0
    gradients(module, drawn(2, 5, WIDTH))
    assert (alive.most, alive.now) == (1, 0)
    assert alive.made == DEPTH * (3 if checkpointed else 2)


def test_codes_that_wait_in_ram_come_with_their_block() -> None:
    found = []
    for streamed in (False, True):
        torch.manual_seed(0)  # of biases
        module = Model([linear(seed)[0] for seed in range(DEPTH)])
        names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
        cpu = torch.device("cpu")
        inject(module, names, LoraConfig(rank=4), 3, cpu)
        if streamed:
            stream_blocks([module], cpu, [p for p in module.parameters() if p.requires_grad])
            waiting, _ = in_ram(module)
            assert {torch.int8, torch.float32} == {tensor.dtype for tensor in waiting}
            assert len(waiting) == 3 * DEPTH  # codes, scales and biases
        checkpoint_blocks(module)
        found.append(gradients(module, drawn(2, 5, WIDTH)))
    assert all(map(torch.equal, *found))
