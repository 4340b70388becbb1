"""Tokens that skip a transformer's middle blocks: which, where they are put back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests import tiny
from tests.test_checkpointing import WIDTH, Attention, Transformer, transformer
from trainers.errors import UnsupportedModelError
from trainers.models import tread
from trainers.models.checkpointing import checkpoint_blocks, guard_norms
from trainers.models.tread import Blocks, Route, Router, check_route, make_router, middle

# Of tests.test_checkpointing's transformer, whose context has an entry for each token.
PLAIN = Route("plain", ("Transformer",), (Blocks("blocks", "x", None, {"context": (1,)}),))
NUM_TOKENS = 20


def inputs() -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(2, NUM_TOKENS, n, generator=random, requires_grad=True) for n in (4, WIDTH)]


def drawn(seed: int, num_tokens: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Places of the tokens that go through all blocks, and of the others."""
    places = torch.randperm(num_tokens, generator=torch.Generator().manual_seed(seed))
    num_away = round(ratio * num_tokens)
    return places[num_away:].sort().values, places[:num_away].sort().values


def by_hand(module: Transformer, x: Tensor, context: Tensor, seed: int, ratio: float) -> Tensor:
    """The middle one of three blocks sees a part of the tokens."""
    kept, away = drawn(seed, x.shape[1], ratio)
    x = module.blocks[0](module.embed(x), context)
    seen = module.blocks[1](x[:, kept], context[:, kept])
    together = torch.cat([seen, x[:, away]], dim=1)
    x = together[:, torch.cat([kept, away]).argsort()]
    return module.last(module.blocks[2](x, context))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("depth", "skipped"),
    [(1, []), (2, [0]), (3, [1]), (4, [1]), (6, [2, 3]), (12, range(2, 8)), (57, range(2, 53))],
)
def test_middle_is_the_papers_or_a_third(depth: int, skipped: Sequence[int]) -> None:
    assert list(middle(depth)) == list(skipped)


@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.9])
def test_routed_transformer_is_the_one_written_by_hand(ratio: float) -> None:
    made = transformer(in_place=False)
    x, context = inputs()
    expected = by_hand(made.eval(), x, context, seed=3, ratio=ratio)
    with Router(made, PLAIN, ratio).drawing(3):
        torch.testing.assert_close(made(x, context), expected, atol=1e-6, rtol=1e-6)


def test_transformer_is_as_ever_where_nothing_is_drawn() -> None:
    made = transformer(in_place=True, training=False)
    guard_norms(made)
    x, context = inputs()
    expected = made(x, context)
    router = Router(made, PLAIN, 0.5)
    assert torch.equal(made(x, context), expected)
    with router.drawing(0):
        assert not torch.equal(made(x, context), expected)
    assert torch.equal(made(x, context), expected)


def test_tokens_differ_from_seed_to_seed_and_not_from_pass_to_pass() -> None:
    made = transformer(in_place=False, training=False)
    router, results = Router(made, PLAIN, 0.5), []
    for seed in (1, 1, 2):
        with router.drawing(seed):
            results += [made(*inputs()), made(*inputs())]
    assert all(torch.equal(one, results[0]) for one in results[:4])
    assert not torch.equal(results[4], results[0])


def test_blocks_that_do_nothing_give_the_whole_back() -> None:
    made = transformer(in_place=True, training=False)
    nothing: Any = made.blocks[1]
    for layer in (nothing.attn.out[0], nothing.mlp[-1]):
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    x, context = inputs()
    expected = made(x.detach(), context.detach())
    with Router(made, PLAIN, 0.5).drawing(0):
        assert torch.equal(made(x.detach(), context.detach()), expected)


def test_a_failed_pass_leaves_nothing_behind() -> None:
    made = transformer(in_place=False, training=False)
    router = Router(made, PLAIN, 0.5)
    with router.drawing(0):
        expected = made(*inputs())

    def fail(*_: object) -> None:
        raise MemoryError

    hook = made.blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError), router.drawing(0):
        made(*inputs())
    hook.remove()
    with router.drawing(0):
        assert torch.equal(made(*inputs()), expected)


def test_arguments_of_other_shapes_are_refused() -> None:
    made = transformer(in_place=False, training=False)
    other = dataclasses.replace(PLAIN, lists=(Blocks("blocks", "x", None, {"context": (2,)}),))
    with Router(made, other, 0.5).drawing(0):
        with pytest.raises(UnsupportedModelError, match="each of the picture's 20 tokens"):
            made(*inputs())


@pytest.mark.parametrize("training", [True, False], ids=["dropout", "no dropout"])
def test_gradients_with_checkpointing_have_the_same_bits(training: bool) -> None:
    results = []
    for checkpointed in (False, True):
        made = transformer(in_place=True, training=training)
        guard_norms(made)
        router = Router(made, PLAIN, 0.5)
        if checkpointed:
            checkpoint_blocks(made)
        torch.manual_seed(2)  # for dropout
        x, context = inputs()
        with router.drawing(4):
            y = made(x, context)
        y.square().sum().backward()
        results.append([y, x.grad, context.grad, *(p.grad for p in made.parameters())])
    for one, other in zip(*results, strict=True):
        assert isinstance(one, Tensor)
        assert isinstance(other, Tensor)
        assert torch.equal(one, other)


# -- text beside the picture, and what is given by place ----------------------------------


class Grid(nn.Module):
    """A block of a stream with a picture's tokens as a grid, which gives two things."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, text: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return text, x + self.layer(x).cumsum(-2)


class OfGrids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Grid() for _ in range(3))

    def forward(self, text: Tensor, x: Tensor) -> Tensor:
        for block in self.blocks:
            text, x = block(text, x)
        return x


def test_a_grid_of_tokens_keeps_its_shape() -> None:
    made, x = OfGrids(), torch.randn(2, 1, 4, 5, WIDTH)
    kept, away = drawn(7, 20, 0.4)
    route = Route("grids", ("OfGrids",), (Blocks("blocks", "x", 1),))
    text = torch.zeros(2, 3, WIDTH)
    with Router(made, route, 0.4).drawing(7):
        found = made(text, x)
    tokens = made.blocks[0](text, x)[1].reshape(2, 20, WIDTH).clone()
    tokens[:, kept] = made.blocks[1](text, tokens[:, kept][:, None, None])[1][:, 0, 0]
    expected = made.blocks[2](text, tokens.reshape(x.shape))[1]
    torch.testing.assert_close(found, expected)


class Mixed(nn.Module):
    """A stream with a text's tokens before or behind the picture's, and places of both."""

    def __init__(self, text_first: bool, depth: int = 3) -> None:
        super().__init__()
        self.img_in, self.text_in = nn.Linear(16, WIDTH), nn.Linear(32, WIDTH)
        self.blocks = nn.ModuleList(Step() for _ in range(depth))
        self.last = nn.Linear(WIDTH, 16)
        self.text_first = text_first

    def forward(self, latents: Tensor, context: Tensor, timesteps: Tensor) -> Tensor:
        patches = nn.functional.pixel_unshuffle(latents, 2).flatten(2).mT  # (B, 16, 4 * C)
        picture = self.img_in(patches) + timesteps.view(-1, 1, 1) / 1000
        both = [self.text_in(context), picture]
        x = torch.cat(both if self.text_first else both[::-1], dim=1)
        pe = torch.linspace(0, 1, x.shape[1])[None, :, None]
        for block in self.blocks:
            x = block(x, pe=pe)
        start = context.shape[1] if self.text_first else 0
        made = self.last(x[:, start : start + picture.shape[1]])
        side = [size // 2 for size in latents.shape[-2:]]
        return nn.functional.pixel_shuffle(made.mT.unflatten(2, side), 2)


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, pe: Tensor) -> Tensor:
        x = x + self.attn(x + pe)
        return x + self.mlp(x).tanh()


def of_mixed(text_first: bool) -> Route:
    lists = (Blocks("blocks", "x", None, {"pe": (1,)}),)
    return Route("mixed", ("Mixed",), lists, "img_in", text_first)


@pytest.mark.parametrize("text_first", [True, False])
def test_text_never_skips_a_block(text_first: bool) -> None:
    made = Mixed(text_first).eval()
    latents, context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 32)
    seen: list[Tensor] = []
    router = Router(made, of_mixed(text_first), 0.25)
    made.blocks[1].register_forward_pre_hook(
        lambda _, args, kwargs: seen.extend([args[0], kwargs["pe"]]), with_kwargs=True
    )
    made(latents, context, torch.zeros(2))
    whole, places = seen
    seen.clear()
    with router.drawing(5):
        made(latents, context, torch.zeros(2))
    kept, _ = drawn(5, 16, 0.25)
    text = torch.arange(5)
    among = torch.cat([text, 5 + kept] if text_first else [kept, 16 + text])
    assert torch.equal(seen[0], whole[:, among])
    assert torch.equal(seen[1], places[:, among])


class Counting(nn.Module):
    """Puts a text behind the stream for each block, and keeps as many as it counted at first."""

    def __init__(self) -> None:
        super().__init__()
        self.img_in = nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList(InPairs() for _ in range(4))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        x = self.img_in(x)
        length, skips = x.shape[1], []
        pe = torch.linspace(0, 1, length + text.shape[1])[None, :, None]
        for place, block in enumerate(self.blocks):
            skip = skips.pop() if place > 1 else None
            x = block(torch.cat([x, text], dim=1), (pe, "first"), skip)[:, :length]
            skips.append(x)
        return x


class InPairs(Step):
    """A block whose places come with what they are, and perhaps with what another block made."""

    def forward(self, x: Tensor, pe: tuple[Tensor, str], skip: Tensor | None) -> Tensor:  # type: ignore[override]
        if skip is not None:
            num_others = x.shape[1] - skip.shape[1]
            x = x + nn.functional.pad(skip, (0, 0, 0, num_others))
        assert pe[1] == "first"
        return super().forward(x, pe[0])


COUNTING = Route(
    "counting",
    ("Counting",),
    (Blocks("blocks", "x", None, {"pe": (1,), "skip": (1,)}),),
    picture="img_in",
    text_first=False,
    one_by_one=True,
)


def counted_by_hand(made: Counting, x: Tensor, text: Tensor, routed: range) -> Tensor:
    x = made.img_in(x)
    length, skips = x.shape[1], []
    pe = torch.linspace(0, 1, length + text.shape[1])[None, :, None]
    kept, away = drawn(5, length, 0.4)
    whole = torch.arange(length)
    for place, block in enumerate(made.blocks):
        among = kept if place in routed else whole
        skip = skips.pop()[:, among] if place > 1 else None
        places = torch.cat([pe[:, among], pe[:, length:]], dim=1)
        out = block(torch.cat([x[:, among], text], dim=1), (places, "first"), skip)
        together = torch.cat([out[:, : len(among)], x[:, away]], dim=1)
        x = together[:, torch.cat([kept, away]).argsort()] if place in routed else out[:, :length]
        skips.append(x)
    return x


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
def test_stream_is_whole_between_blocks_that_are_routed_one_by_one(
    monkeypatch: pytest.MonkeyPatch, checkpointed: bool
) -> None:
    routed = range(1, 4)  # the last but one of them is given what the first made
    monkeypatch.setattr(tread, "middle", lambda depth: routed)
    made, results = Counting().eval(), []
    x, text = torch.randn(2, 12, 4), torch.randn(2, 5, WIDTH)
    results.append(counted_by_hand(made, x, text, routed))
    router = Router(made, COUNTING, 0.4)
    if checkpointed:
        checkpoint_blocks(made)
    with router.drawing(5):
        results.append(made(x, text))
    expected, found = (
        [y, *torch.autograd.grad(y.square().sum(), list(made.parameters()))] for y in results
    )
    torch.testing.assert_close(found, expected)


def test_all_tokens_kept_are_the_untouched_model_to_the_bit() -> None:
    made, x, text = Counting().eval(), torch.randn(2, 12, 4), torch.randn(2, 5, WIDTH)
    expected = made(x, text)
    with Router(made, COUNTING, 0.0).drawing(5):
        assert torch.equal(made(x, text), expected)


def test_shapes_are_known_without_numbers() -> None:
    with FakeTensorMode():
        made = Mixed(text_first=True)
        shapes: list[tuple[int, ...]] = []
        router = Router(made, of_mixed(True), 0.5)
        made.blocks[1].register_forward_pre_hook(lambda _, args: shapes.append((*args[0].shape,)))
        with router.drawing(0):
            y = made(torch.randn(2, 4, 8, 8), torch.randn(2, 5, 32), torch.zeros(2))
    assert (shapes, y.shape) == ([(2, 13, WIDTH)], (2, 4, 8, 8))


# -- what cannot be routed ----------------------------------------------------------------


def test_a_unet_is_refused() -> None:
    with pytest.raises(UnsupportedModelError) as told:
        check_route(0.5, tiny.parts().denoiser, False)
    assert "tread_selection_ratio is 0.5" in str(told.value)
    assert "UNet2DConditionModel" in str(told.value)
    assert "Set it to 0" in str(told.value)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The transformers of this file have routes."""
    monkeypatch.setattr(tread, "ROUTES", (of_mixed(True), PLAIN))


@pytest.mark.usefixtures("known")
def test_control_images_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="remove the control images"):
        check_route(0.5, Mixed(True), True)


@pytest.mark.usefixtures("known")
def test_a_transformer_whose_arguments_have_other_names_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Mixed(True)
    assert check_route(0.5, made, False).title == "mixed"
    monkeypatch.setattr(Step, "forward", lambda self, x, freqs: x)
    with pytest.raises(UnsupportedModelError, match="has a Mixed"):
        check_route(0.5, made, False)


def test_a_transformer_of_one_block_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tread, "ROUTES", (of_mixed(True),))
    with pytest.raises(UnsupportedModelError, match="not known how tokens go"):
        check_route(0.5, Mixed(True, depth=1), False)


def test_no_router_where_no_token_skips() -> None:
    assert make_router(0.0, tiny.parts().denoiser, True) is None
