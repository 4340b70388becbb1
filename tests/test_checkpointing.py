"""Gradient checkpointing of modules as the host has them: which blocks, the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from trainers.methods.adapters.narrow import compute_narrow
from trainers.methods.adapters.variants import ADAPTER, inject
from trainers.models import checkpointing
from trainers.models.checkpointing import (
    blocks,
    checkpoint_blocks,
    guard_adapters,
    guard_norms,
    inside_checkpoint,
)
from trainers.settings.memory import ALL, HALF, NONE
from trainers.settings.methods.lora import LoraConfig

WIDTH = 12


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3)])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        mixed = (q @ k.mT / WIDTH**0.5).softmax(-1) @ v
        for layer in self.out:
            mixed = layer(mixed)
        return mixed  # type: ignore[no-any-return]


class Block(nn.Module):
    """A transformer's block, which adds to its input or to a stream of its own."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attn = Attention()
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )
        self.in_place = in_place

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        if self.in_place:
            x += self.attn(self.norm1(x) + context)
            x += self.mlp(self.norm2(x))
            return x
        x = x + self.attn(self.norm1(x) + context)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList(Block(in_place) for _ in range(3))
        self.last = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, context=context)
        return self.last(x)  # type: ignore[no-any-return]


def transformer(in_place: bool, training: bool = True) -> Transformer:
    made = Transformer(in_place)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return made.train(training)


def gradients(module: nn.Module, trained: str = "") -> list[Tensor]:
    """What came out, the inputs' gradients and those of parameters with `trained` in their name."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trained in name)
    generator = torch.Generator().manual_seed(1)
    dtype = next(module.parameters()).dtype
    x, context = (torch.randn(2, 5, n, generator=generator).to(dtype) for n in (4, WIDTH))
    x.requires_grad_(), context.requires_grad_()
    torch.manual_seed(2)  # for dropout
    y = module(x, context)
    (y * torch.randn(y.shape, generator=generator)).sum().backward()
    found = [y, x.grad, context.grad, *(p.grad for p in module.parameters() if p.requires_grad)]
    assert all(isinstance(each, Tensor) for each in found)
    return [each.detach().float() for each in found if each is not None]


# -- the same gradients -------------------------------------------------------------------


each_training = pytest.mark.parametrize("training", [True, False], ids=["dropout", "no dropout"])
each_trained = pytest.mark.parametrize("trained", ["", "qkv", "norm", "none of them"])


@each_trained
@each_training
def test_guarded_in_place_blocks_have_the_gradients_of_plain_ones(
    training: bool, trained: str
) -> None:
    ours = transformer(in_place=True, training=training)
    guard_norms(ours)
    found = gradients(ours, trained)
    for gradient, expected in zip(
        found, gradients(transformer(in_place=False, training=training), trained), strict=True
    ):
        # Autograd adds up what comes back to a stream in another order.
        assert (gradient - expected).abs().max() <= 1e-6 * expected.abs().max()
        assert expected.abs().max() > 1e-2


@each_trained
@each_training
def test_checkpointed_blocks_have_the_same_bits(training: bool, trained: str) -> None:
    ours, expected = (transformer(in_place=True, training=training) for _ in range(2))
    for module in (ours, expected):
        guard_norms(module)
    assert checkpoint_blocks(ours) == 3
    pairs = zip(gradients(ours, trained), gradients(expected, trained), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


@each_training
def test_checkpointed_blocks_that_are_not_in_place_have_the_same_bits(training: bool) -> None:
    ours, expected = (transformer(in_place=False, training=training) for _ in range(2))
    checkpoint_blocks(ours)
    pairs = zip(gradients(ours), gradients(expected), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


class Reader(Block):
    """A block with a layer that reads the stream itself, after something was added to it."""

    def __init__(self, in_place: bool) -> None:
        super().__init__(in_place)
        self.direct = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = super().forward(x, context)
        return self.added(x, self.direct(x))

    def added(self, x: Tensor, more: Tensor) -> Tensor:
        if self.in_place:
            x += more
            return x
        return x + more


class FirstReader(Reader):
    """The layer reads what the block is given, and the block changes it afterwards."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        more = self.direct(x.view(x.shape))
        return self.added(Block.forward(self, x, context), more)


class FreshReader(Reader):
    """The layer reads what the block has just made, and the block changes it afterwards."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        made = x * 2
        made = self.added(made, self.direct(made))
        return Block.forward(self, x, context) + made


def readers(kind: type[Reader], in_place: bool, dtype: torch.dtype, adapted: bool) -> Transformer:
    made = transformer(in_place)
    made.blocks = nn.ModuleList(kind(in_place) for _ in range(3))
    layers = [f"blocks.{place}.direct" for place in range(3)] if adapted else []
    if adapted:
        made.requires_grad_(False)
        inject(made, layers, LoraConfig(rank=4), 1, torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    for parameter in made.blocks.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    made.eval().to(dtype)
    if adapted and dtype == torch.bfloat16:
        compute_narrow(made, ADAPTER, dtype)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("adapted", [False, True], ids=["weights", "adapters"])
@pytest.mark.parametrize(
    ("kind", "checkpointed"),
    # torch itself refuses the others where they are not checkpointed.
    [(Reader, False), (Reader, True), (FirstReader, True), (FreshReader, True)],
)
def test_layers_that_train_may_read_what_changes(
    kind: type[Reader], checkpointed: bool, adapted: bool, dtype: torch.dtype
) -> None:
    ours, expected = (readers(kind, in_place, dtype, adapted) for in_place in (True, False))
    trained = ADAPTER if adapted else "direct"
    guard_norms(ours)
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_(trained in name)
    guard_adapters(ours)
    if checkpointed:
        checkpoint_blocks(ours)
    pairs = zip(gradients(ours, trained), gradients(expected, trained), strict=True)
    for gradient, correct in pairs:
        bound = 1e-6 if dtype == torch.float32 else 2e-2
        assert (gradient - correct).abs().max() <= bound * correct.abs().max()


def test_in_place_blocks_need_their_norms_guarded() -> None:
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(transformer(in_place=True))


def test_same_seed_same_bits_with_dropout() -> None:
    made = transformer(in_place=True)
    guard_norms(made)
    checkpoint_blocks(made)
    first = [gradient.clone() for gradient in gradients(made)]
    made.zero_grad()
    assert all(torch.equal(*pair) for pair in zip(gradients(made), first, strict=True))


def test_blocks_run_twice_with_gradients_and_once_without() -> None:
    made = transformer(in_place=True)
    guard_norms(made)
    checkpoint_blocks(made)
    visits: list[bool] = []
    made.blocks[1].attn.register_forward_hook(  # type: ignore[operator, union-attr]
        lambda *_: visits.append(inside_checkpoint())
    )
    gradients(made)
    assert visits == [True, True]
    with torch.no_grad():
        made(torch.ones(1, 5, 4), torch.ones(1, 5, WIDTH))
    assert visits == [True, True, False]


def test_activations_of_checkpointed_blocks_are_dropped() -> None:
    def kept(module: nn.Module) -> int:
        numbers: list[int] = []
        guard_norms(module)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: numbers.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            module(torch.ones(2, 50, 4), torch.ones(2, 50, WIDTH))
        return sum(numbers)

    plain, checkpointed = transformer(in_place=True), transformer(in_place=True)
    checkpoint_blocks(checkpointed)
    assert kept(checkpointed) < 0.2 * kept(plain)


def test_block_that_raises_leaves_nothing_marked() -> None:
    made = transformer(in_place=True)
    guard_norms(made)
    checkpoint_blocks(made)

    def fail(*_: object) -> None:
        assert inside_checkpoint()
        raise MemoryError

    hook = made.blocks[1].mlp.register_forward_hook(fail)  # type: ignore[operator, union-attr]
    with pytest.raises(MemoryError):
        gradients(made)
    assert not inside_checkpoint()
    hook.remove()
    assert len(gradients(made)) > 3


# -- some of them, and what they are given in RAM -----------------------------------------


@each_trained
def test_every_second_block_has_the_same_bits(trained: str) -> None:
    ours, expected = (transformer(in_place=True) for _ in range(2))
    for module in (ours, expected):
        guard_norms(module)
    assert checkpoint_blocks(ours, HALF) == 2
    pairs = zip(gradients(ours, trained), gradients(expected, trained), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(("which", "again"), [(NONE, 0), (HALF, 2), (ALL, 3)])
def test_checkpointed_blocks_alone_compute_twice(which: str, again: int) -> None:
    made = transformer(in_place=True)
    guard_norms(made)
    assert checkpoint_blocks(made, which) == again
    visits: list[object] = []
    for block in made.blocks:
        block.attn.register_forward_hook(lambda *_: visits.append(_))  # type: ignore[operator, union-attr]
    gradients(made)
    assert len(visits) == 3 + again


@each_training
def test_what_blocks_are_given_waits_elsewhere_with_the_same_bits(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    away: list[Tensor] = []

    def elsewhere(pin_memory: bool) -> Any:
        def leave(tensor: Tensor) -> Tensor:
            away.append(tensor.clone())  # as on a GPU: what is changed afterwards does not count
            return away[-1]

        return torch.autograd.graph.saved_tensors_hooks(leave, lambda tensor: tensor)

    monkeypatch.setattr(checkpointing, "save_on_cpu", elsewhere)
    ours, expected = (transformer(in_place=True, training=training) for _ in range(2))
    for module in (ours, expected):
        guard_norms(module)
    checkpoint_blocks(ours, in_ram=True)
    pairs = zip(gradients(ours), gradients(expected), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    # The stream and the context, which is given by name; and checkpoint's own empty tensor.
    assert [each.numel() for each in away if each.numel()] == 3 * [2 * 5 * WIDTH] * 2


def test_inputs_in_ram_have_the_same_bits() -> None:
    ours, expected = (transformer(in_place=True) for _ in range(2))
    for module in (ours, expected):
        guard_norms(module)
    checkpoint_blocks(ours, in_ram=True)
    pairs = zip(gradients(ours), gradients(expected), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


# -- which blocks -------------------------------------------------------------------------


def names(module: nn.Module) -> list[str]:
    found = {id(block) for block in blocks(module)}
    return [name for name, each in module.named_modules() if id(each) in found]


def test_blocks_of_a_list_are_its_entries_and_no_lists_of_layers() -> None:
    assert names(transformer(in_place=True)) == ["blocks.0", "blocks.1", "blocks.2"]


class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.proj_in = nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)
        self.transformer_blocks = nn.ModuleList(Block(in_place=True) for _ in range(2))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 3))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4, 4))


class EmbedSequential(nn.Sequential):
    """What the host's UNet has its levels in."""


class UNet(nn.Module):
    """The shape of the host's."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4))
        self.input_blocks = nn.ModuleList(
            [
                EmbedSequential(nn.Conv2d(4, 4, 3)),
                EmbedSequential(Residual(), SpatialTransformer()),
            ]
        )
        self.middle_block = EmbedSequential(Residual(), SpatialTransformer(), Residual())
        self.output_blocks = nn.ModuleList([EmbedSequential(Residual())])
        self.out = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 3))


def test_blocks_of_a_unet_are_residual_and_transformer_blocks() -> None:
    assert names(UNet()) == [
        "input_blocks.1.0",
        "input_blocks.1.1.transformer_blocks.0",
        "input_blocks.1.1.transformer_blocks.1",
        "middle_block.0",
        "middle_block.1.transformer_blocks.0",
        "middle_block.1.transformer_blocks.1",
        "middle_block.2",
        "output_blocks.0.0",
    ]


def test_blocks_of_diffusers_unet_are_not_parts_of_their_feed_forwards() -> None:
    assert names(tiny.parts().denoiser) == [
        "down_blocks.0.attentions.0.transformer_blocks.0",
        "down_blocks.0.resnets.0",
        "up_blocks.0.attentions.0.transformer_blocks.0",
        "up_blocks.0.attentions.1.transformer_blocks.0",
        "up_blocks.0.resnets.0",
        "up_blocks.0.resnets.1",
        "mid_block.attentions.0.transformer_blocks.0",
        "mid_block.resnets.0",
        "mid_block.resnets.1",
    ]


def test_blocks_of_clip_are_its_layers() -> None:
    assert names(tiny.parts().modules["clip_l"]) == ["encoder.layers.0", "encoder.layers.1"]


def test_module_without_lists_has_no_blocks() -> None:
    assert names(Attention()) == []
    assert checkpoint_blocks(nn.Linear(2, 2)) == 0
