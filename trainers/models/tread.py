"""TREAD: in training, some of a picture's tokens skip a transformer's middle blocks.

    x[kept] -> blocks first ... last -> y[kept];  y[others] = x[others]     (arXiv 2501.04765)

A random share of the picture's tokens is cut out before the first of those blocks, and put back at
their places behind the last one as they were; or so for each block (one_by_one). Text is never
cut. What goes with each token beside the stream (rotary embeddings, masks) is cut to the same
tokens. All samples of a micro-batch keep the same places, where the paper draws for each sample:
so it does not matter how a micro-batch is shared out among forward passes and processes.

Which lists are a transformer's blocks and how those are called is data, by its class: a Route.
Letters in shapes: B samples, n tokens of a picture, t of a text, D width.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError

FIRST, LAST = 2, 4  # blocks that see all tokens, before and after (the paper's 2 -> depth - 4)


@dataclass(frozen=True)
class Blocks:
    """A list of a transformer's equal blocks, and how they are called.

    Attributes:
        name: of the list, in the transformer.
        stream: the argument with the picture's tokens, by name or place: (B, n, D), (B, t + n, D)
            where the text's are with them, or (B, ..., D) for n tokens as a grid.
        returned: which of several results is the stream, as it comes out.
        per_token: other arguments with an entry for each of those n or t + n tokens, and in which
            axes; of a tuple, its tensors. What is None, or has one entry for all, stays.
    """

    name: str
    stream: str | int
    returned: int | None = None
    per_token: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """The way of tokens through a kind of transformer.

    Attributes:
        title: what people call it.
        classes: the host's names of the transformer.
        lists: in the order of their work.
        picture: the module whose result has one entry for each of the picture's tokens, (B, n, D);
            needed where a stream has text too.
        text_first: whether a text's tokens stand before the picture's.
        one_by_one: whether the stream is whole between blocks, where the transformer itself counts
            its tokens or uses what comes out elsewhere.
    """

    title: str
    classes: tuple[str, ...]
    lists: tuple[Blocks, ...]
    picture: str = ""
    text_first: bool = True
    one_by_one: bool = False


PE = {"pe": (2,), "attn_mask": (-2, -1)}
ROUTES = (
    Route(
        "FLUX, Chroma, LongCat-Image, HunyuanImage 2.1, HunyuanVideo",
        ("Flux", "Chroma", "HunyuanVideo"),
        (Blocks("double_blocks", "img", 0, PE), Blocks("single_blocks", "x", None, PE)),
        picture="img_in",
    ),
    Route(
        "Z-Image and Lumina 2",
        ("NextDiT",),
        (Blocks("layers", "x", None, {"freqs_cis": (1,), "x_mask": (-1,)}),),
        picture="noise_refiner.0",  # which has a picture's padding already
    ),
    Route(
        "OmniGen2",
        ("OmniGen2Transformer2DModel",),
        (Blocks("layers", "hidden_states", None, {"image_rotary_emb": (1,)}),),
        picture="noise_refiner.0",
    ),
    Route(
        "Qwen-Image",
        ("QwenImageTransformer2DModel",),
        (Blocks("transformer_blocks", "hidden_states", 1, {"image_rotary_emb": (2,)}),),
    ),
    Route("Stable Diffusion 3", ("OpenAISignatureMMDITWrapper",), (Blocks("joint_blocks", 1, 1),)),
    Route(
        "AuraFlow",
        ("MMDiT",),
        (Blocks("double_layers", "x", 1), Blocks("single_layers", "cx")),
        picture="init_x_linear",
    ),
    Route(
        "Krea 2",
        ("SingleStreamDiT",),
        (Blocks("blocks", "x", None, {"freqs": (2,), "mask": (-1,)}),),
        picture="first",
    ),
    Route(
        "Anima and Cosmos Predict2",
        ("Anima", "MiniTrainDIT"),
        (Blocks("blocks", "x_B_T_H_W_D", None, {"rope_emb_L_1_1_D": (1,)}),),
    ),
    Route(
        "ERNIE-Image",
        ("ErnieImageModel",),
        (Blocks("layers", "x", None, {"rotary_pos_emb": (1,), "attention_mask": (-1,)}),),
        picture="x_embedder",
        text_first=False,
    ),
    Route(
        "Kandinsky 5",
        ("Kandinsky5",),
        (Blocks("visual_transformer_blocks", "visual_embed", None, {"freqs": (1,)}),),
    ),
    Route(
        "JoyImage",
        ("JoyImageTransformer3DModel",),
        (Blocks("double_blocks", "hidden_states", 0, {"image_rotary_emb": (1,)}),),
        text_first=False,
    ),
    Route("PixArt", ("PixArtMS",), (Blocks("blocks", "x"),)),
    Route(
        "HunyuanDiT",
        ("HunYuanDiT",),
        (Blocks("blocks", "x", None, {"freq_cis_img": (0,), "skip": (1,)}),),
        one_by_one=True,  # late blocks are given what early ones made
    ),
    Route(
        "HiDream I1",
        ("HiDreamImageTransformer2DModel",),
        (
            Blocks("double_stream_blocks", "image_tokens", 0, {"rope": (1,)}),
            Blocks("single_stream_blocks", "image_tokens", None, {"rope": (1,)}),
        ),
        picture="x_embedder",
        text_first=False,
        one_by_one=True,  # a text of its own is put behind the stream for each, and cut off again
    ),
    Route(
        "HiDream O1",
        ("HiDreamO1Transformer",),
        (Blocks("language_model.layers", "x", 0, {"freqs_cis": (-2,)}),),
        picture="x_embedder",
    ),
    Route(
        "Wan",
        ("WanModel", "CausalWanModel"),
        (Blocks("blocks", "x", None, {"freqs": (1,), "e": (1,)}),),
    ),
    Route(
        "Wan VACE",
        ("VaceWanModel",),
        (Blocks("blocks", "x", None, {"freqs": (1,)}),),
        one_by_one=True,  # what its other blocks make is added to all tokens
    ),
    Route(
        "LTX-Video",
        ("LTXVModel",),
        (Blocks("transformer_blocks", "x", None, {"pe": (1,), "timestep": (1,)}),),
    ),
)


def check_route(ratio: float, module: nn.Module, has_controls: bool) -> Route:
    """How a share of the picture's tokens can skip the middle blocks of a denoiser.

    Args:
        has_controls: whether it is shown control images.

    Raises:
        UnsupportedModelError: they cannot; the message says why.
    """
    route = next((route for route in ROUTES if _fits(route, module)), None)
    if route is None:
        titles = ", ".join(route.title for route in ROUTES)
        raise UnsupportedModelError(
            f"tread_selection_ratio is {ratio:g}, but input 'model' has a {type(module).__name__}, "
            "and it is not known how tokens go through its blocks.\nSet it to 0. It is for these "
            f"transformers: {titles}."
        )
    if has_controls:
        raise UnsupportedModelError(
            f"tread_selection_ratio is {ratio:g}, but the dataset has control images, whose tokens "
            "stand among the picture's.\nSet it to 0, or remove the control images."
        )
    return route


def middle(depth: int) -> range:
    """Which of so many blocks tokens skip; in a shallow transformer the middle third."""
    return range(min(FIRST, depth // 3), depth - min(LAST, -(-depth // 3)))


def _fits(route: Route, module: nn.Module) -> bool:
    """Whether a denoiser is what the route says, down to the names of arguments."""
    if type(module).__name__ not in route.classes:
        return False
    blocks = _blocks(module, route)
    named = (
        name in _places(block)
        for known, block in blocks
        for name in (known.stream, *known.per_token)
        if isinstance(name, str)
    )
    return all(named) and len(middle(len(blocks))) > 0


def _blocks(module: nn.Module, route: Route) -> list[tuple[Blocks, nn.Module]]:
    """All blocks in the order of their work, and what list each is of."""
    found: dict[str, Any] = dict(module.named_modules())
    return [(known, block) for known in route.lists for block in found.get(known.name, ())]


def _places(block: nn.Module) -> dict[str | int, int]:
    """The places of a block's arguments, whatever its forward has become."""
    names = list(inspect.signature(type(block).forward).parameters)[1:]
    return {name: place for place, name in enumerate(names)}


def make_router(ratio: float, module: nn.Module, has_controls: bool) -> Router | None:
    """What lets that share of tokens skip blocks of a denoiser that nothing has changed yet.

    None where the ratio is 0. For arguments and errors see check_route.
    """
    if not ratio:
        return None
    return Router(module, check_route(ratio, module, has_controls), ratio)


class Router:
    """Lets tokens of a transformer skip its middle blocks while `drawing`; else it does nothing.

    It stands in hooks of the blocks, so it works on whatever their forward becomes.

    Args:
        module: the transformer, as the host has it.
        ratio: the share of tokens that skip them.
    """

    def __init__(self, module: nn.Module, route: Route, ratio: float) -> None:
        self._route, self._ratio = route, ratio
        self._seed: int | None = None
        self._forget()
        if route.picture:
            module.get_submodule(route.picture).register_forward_hook(self._count)
        blocks = _blocks(module, route)
        routed = [blocks[place] for place in middle(len(blocks))]
        for known, block in routed:
            cut = functools.partial(self._cut_arguments, known, _places(block))
            block.register_forward_pre_hook(cut, with_kwargs=True)
        for known, block in routed if route.one_by_one else routed[-1:]:
            is_last = block is routed[-1][1]
            block.register_forward_hook(functools.partial(self._put_back, known, is_last))

    @contextmanager
    def drawing(self, seed: int) -> Iterator[None]:
        """Inside, tokens skip the middle blocks, the same ones for the same seed."""
        self._seed = seed
        try:
            yield
        finally:
            self._seed = None
            self._forget()

    def _forget(self) -> None:
        """A forward pass is over."""
        self._num_tokens = 0
        self._kept = self._away = self._skipped = torch.empty(0)  # places, places, tokens
        self._shape: torch.Size | None = None  # of the whole stream; None while it is whole
        self._cuts: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def _count(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._num_tokens = output.shape[1]

    def _cut_arguments(
        self,
        known: Blocks,
        places: Mapping[str | int, int],
        block: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Any, Any] | None:
        """The same call with the tokens that are kept alone."""
        if self._seed is None:
            return None
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        stream = known.stream if known.stream in given else places[known.stream]
        if self._shape is None:
            given[stream] = self._cut_stream(given[stream])
        for name, axes in known.per_token.items():
            key = name if name in given else places[name]
            if key in given:
                given[key] = self._cut_axes(given[key], axes)
        return tuple(given.pop(place) for place in range(len(args))), given

    def _cut_stream(self, stream: Tensor) -> Tensor:
        """The whole stream without the tokens that skip blocks."""
        tokens = stream.flatten(1, -2)
        self._shape = stream.shape
        self._num_tokens = self._num_tokens or tokens.shape[1]
        if not len(self._kept):
            self._draw(stream.device)
        num_others = tokens.shape[1] - self._num_tokens
        self._skipped = tokens.index_select(1, self._start(num_others) + self._away)
        kept = tokens.index_select(1, self._kept_among(num_others))
        grid = [1] * (stream.ndim - 3)
        return kept.reshape(len(kept), *grid, kept.shape[1], kept.shape[2])

    def _draw(self, device: torch.device) -> None:
        """Choose the tokens that skip blocks in this forward pass."""
        assert self._seed is not None
        generator = torch.Generator().manual_seed(self._seed)
        drawn = torch.randperm(self._num_tokens, generator=generator).to(device)
        num_away = min(self._num_tokens - 1, round(self._ratio * self._num_tokens))
        self._away, self._kept = (part.sort().values for part in drawn.tensor_split([num_away]))

    def _cut_axes(self, value: Any, axes: tuple[int, ...]) -> Any:
        if isinstance(value, tuple):
            return tuple(self._cut_axes(entry, axes) for entry in value)
        for axis in axes if isinstance(value, Tensor) else ():
            value = self._cut(value, axis)
        return value

    def _cut(self, tensor: Tensor, axis: int) -> Tensor:
        """What stands beside the stream, with only the entries of tokens that are kept.

        Raises:
            UnsupportedModelError: it has fewer than there are tokens.
        """
        if tensor.shape[axis] == 1:
            return tensor
        key = id(tensor), axis
        if key in self._cuts:  # most are the same for all blocks
            return self._cuts[key][1]
        num_others = tensor.shape[axis] - self._num_tokens
        if num_others < 0:
            raise UnsupportedModelError(
                f"tread_selection_ratio: a block of {self._route.title} is given a tensor of "
                f"shape {tuple(tensor.shape)}, whose axis {axis} should have an entry for each "
                f"of the picture's {self._num_tokens} tokens.\nSet tread_selection_ratio to 0."
            )
        cut = tensor.index_select(axis, self._kept_among(num_others))
        if not tensor.requires_grad:  # what other blocks made is used once
            self._cuts[key] = tensor, cut
        return cut

    def _start(self, num_others: int) -> int:
        """Where a picture's tokens begin in a sequence with so many of a text."""
        return num_others if self._route.text_first else 0

    def _kept_among(self, num_others: int) -> Tensor:
        """Places of the tokens that are kept, and of a text's, in such a sequence."""
        others = torch.arange(num_others, device=self._kept.device)
        if self._route.text_first:
            return torch.cat([others, num_others + self._kept])
        return torch.cat([self._kept, self._num_tokens + others])

    def _put_back(
        self, known: Blocks, is_last: bool, block: nn.Module, args: Any, output: Any
    ) -> Any:
        """What a block gives, with the tokens that skipped it at their places."""
        if self._seed is None or self._shape is None:
            return None
        stream: Tensor = output if known.returned is None else output[known.returned]
        tokens = stream.flatten(1, -2)
        num_others = tokens.shape[1] - len(self._kept)
        whole = tokens.new_empty(len(tokens), num_others + self._num_tokens, tokens.shape[-1])
        whole = whole.index_copy(1, self._kept_among(num_others), tokens)
        # As wide as what comes out: arithmetic in mixed widths may have changed that.
        skipped = self._skipped.to(tokens.dtype)
        whole = whole.index_copy(1, self._start(num_others) + self._away, skipped)
        if stream.ndim > 3:
            whole = whole.reshape(self._shape)
        self._shape, self._skipped = None, torch.empty(0)
        if is_last:
            self._forget()
        if known.returned is None:
            return whole
        return tuple(whole if i == known.returned else one for i, one in enumerate(output))
