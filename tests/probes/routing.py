"""Tokens that skip blocks, against the same blocks with nobody looking at those tokens."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from comfy_api.latest import io

from . import noisy_latents, pack, parts_of, probe, relative, shown, size_of_picture, told
from .gradients import furthest, gradients

RATIO = 0.4
# Where the host's attention is told no options, and so not what to use.
TOLD_NOTHING = ("ernie.model", "pixart.blocks", "hydit.attn_layers")


class Routed(io.ComfyNode):
    """How a transformer predicts while tokens skip all of its blocks, or the error that says why.

    Those that are kept must come out as from blocks with every token in them, where attention must
    not look at the others; those must come out as they went in.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return probe(
            "ProbeRouted",
            io.Model.Input("model"),
            io.Clip.Input("clip"),
            io.String.Input("text"),
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, text: str) -> io.NodeOutput:
        tread = pack("trainers.models.tread")
        replaced = pack("nodes.host.models.training_mode").replaced
        try:
            route = tread.check_route(RATIO, model.model.diffusion_model, False)
        except ValueError as error:
            return shown({"not routed": str(error)})
        with replaced(tread, middle=range):  # all of them, so that each kind of block is seen
            found = predictions(model, clip, text, route)
            again, _ = gradients(model, clip, (text, None), checkpointed=True, ratio=RATIO)
            plain, numeric = gradients(model, clip, (text, None), checkpointed=False, ratio=RATIO)
        return shown({
            **found,
            "routed gradients": furthest(again, plain),
            "routed numeric": numeric,
        })  # fmt: skip


def predictions(model: Any, clip: Any, text: str, route: Any) -> dict[str, Any]:
    noisy = noisy_latents(model)
    noisy = torch.cat([noisy, noisy.flip(-1)])
    with parts_of(model, clip) as parts:
        said, levels = told(parts, text, None), torch.tensor([0.3, 0.7], device=noisy.device)
        timesteps = parts.objective.timesteps(levels)

        def predict() -> torch.Tensor:
            return parts.predict(noisy, timesteps, [said] * 2, [size_of_picture()] * 2)

        plain = predict()
        router = pack("trainers.models.tread").Router(parts.denoiser, route, RATIO)
        unchanged = torch.equal(predict(), plain)
        reference = Reference(parts.denoiser, route, router)
        with router.drawing(1):
            routed = predict()
        every = pack("trainers.models.tread").Router(parts.denoiser, route, 0.0)
        with every.drawing(1):
            all_kept = torch.equal(predict(), plain)
        with reference.at_work():
            expected = predict()
    return {
        "as before": unchanged,
        "all kept": all_kept,
        "away": len(reference.away),
        "tokens": reference.num_tokens,
        "routed": relative(routed, expected),
        "differs": relative(routed, plain),
    }


class Reference:
    """All tokens go through all blocks, but nobody sees some, and those end as they began.

    Where a stream is whole between blocks, that is so for each of them.
    """

    def __init__(self, module: Any, route: Any, router: Any) -> None:
        self._module, self._route, self._router = module, route, router
        self._blocks = [(k, block) for k in route.lists for block in module.get_submodule(k.name)]
        self._note = self._blocks[-1][1].register_forward_pre_hook(self._places)  # after the cut
        self._inside = False
        self._before, self._length = torch.empty(0), 0

    def _places(self, *_: Any) -> None:
        self.away, self.num_tokens = self._router._away, self._router._num_tokens
        self._note.remove()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        hooks = []
        for place, (known, block) in enumerate(self._blocks):
            if self._route.one_by_one:
                is_first = is_last = True
            else:
                is_first, is_last = place == 0, place == len(self._blocks) - 1
            begin = self._begin(known, block, is_first)
            hooks += [
                block.register_forward_pre_hook(begin, with_kwargs=True),
                block.register_forward_hook(self._end(known, is_last)),
            ]
        denoiser = pack("nodes.host.models.denoiser")
        replaced = pack("nodes.host.models.training_mode").replaced
        unseen = self._unseen(denoiser.plain_attention)
        plain = functools.partial(unseen, None)
        with contextlib.ExitStack() as stack:
            stack.enter_context(replaced(denoiser, plain_attention=unseen))
            for name in TOLD_NOTHING:
                module = importlib.import_module(f"comfy.ldm.{name}")
                stack.enter_context(replaced(module, optimized_attention=plain))
            yield
        for hook in hooks:
            hook.remove()

    def _among(self, length: int) -> torch.Tensor:
        """Places of the tokens that nobody sees, in a sequence with or without text."""
        return self.away + (length - self.num_tokens if self._route.text_first else 0)

    def _begin(self, known: Any, block: Any, is_first: bool) -> Callable[..., None]:
        place = pack("trainers.models.tread")._places(block).get(known.stream)

        def begin(block: Any, args: Any, kwargs: Any) -> None:
            self._inside = True
            given = {**dict(enumerate(args)), **kwargs}
            tokens = given[known.stream if known.stream in given else place].flatten(1, -2)
            self._length = tokens.shape[1]
            if is_first:
                self._before = tokens[:, self._among(tokens.shape[1])].clone()

        return begin

    def _end(self, known: Any, is_last: bool) -> Callable[..., None]:
        def end(block: Any, args: Any, output: Any) -> None:
            self._inside = False
            if is_last:
                stream = output if known.returned is None else output[known.returned]
                tokens = stream.flatten(1, -2)  # the same numbers
                tokens[:, self._among(tokens.shape[1])] = self._before

        return end

    def _unseen(self, attend: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def attention(
            own: Any, q: Any, k: Any, v: Any, heads: int, mask: Any = None, **kwargs: Any
        ) -> torch.Tensor:
            axis = -2 if kwargs.get("skip_reshape") else 1
            length = k.shape[axis]
            # Not from a picture to its text; some have one of their own that sees the text alone.
            if self._inside and length in (q.shape[axis], self._length):
                seen = torch.zeros(1, 1, length, dtype=q.dtype, device=q.device)
                seen[..., self._among(length)] = -torch.inf
                mask = seen if mask is None else mask + seen
            return attend(own, q, k, v, heads, mask=mask, **kwargs)

        return attention
