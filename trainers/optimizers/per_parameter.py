"""An optimizer for each parameter by itself, so that little memory is needed at once.

Two things follow from that, together or alone:

    fused backward     a parameter is updated in the backward pass, as soon as its gradient is
                       complete, and the gradient is dropped: gradients never exist all at once
    bf16 weights       one parameter at a time is widened to fp32, updated there, and written back
                       with stochastic rounding (arXiv 2010.06192), so that updates smaller than
                       bf16's step count on average as much as they should

Any optimizer that treats parameters apart from each other can be inside.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..objective.noise import generator_for
from .processes import ALONE, InOrder, Processes

# Numbers that are widened at once; 8-bit optimizers share a scale between 256 of them.
PIECE = 256 * 8192
LOW_BITS = 16  # of fp32, those that bf16 does not have

# (one group with one parameter) -> its optimizer
MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class _Piece(NamedTuple):
    """A parameter, or a span of one as a row of numbers, and what updates it.

    Its number is a part of the seed of its rounding.
    """

    number: int
    span: slice | None
    optimizer: torch.optim.Optimizer


class PerParameter(torch.optim.Optimizer):
    """Updates each parameter by an optimizer of its own, at `step` or in the backward pass.

    Args:
        groups: as for any optimizer; each with its "lr", which schedules may change.
        make_inner: makes the optimizer of one parameter.
        seed: of the rounding.
        fused: update in the backward pass; `step` then only counts.
        max_norm: if fused, the longest gradient of each tensor.
        elementwise: the inner optimizer treats numbers apart from each other too, so that a large
            bf16 parameter can be widened and updated piece by piece.
        processes: if fused, those whose gradients are summed before each update.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        make_inner: MakeOptimizer,
        seed: int,
        *,
        fused: bool = False,
        max_norm: float = math.inf,
        elementwise: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        super().__init__(groups, {})
        self.fused = fused
        self._seed, self._max_norm = seed, max_norm
        self._num_steps = 0
        self._squared_norms: list[Tensor] = []
        self._pieces: dict[nn.Parameter, list[_Piece]] = {}
        numbers = itertools.count()
        self._groups = {parameter: group for group, parameter in self._parameters()}
        self._sums = InOrder(processes, [group["params"] for group in self.param_groups])
        for parameter, group in self._groups.items():
            self._pieces[parameter] = [
                _Piece(next(numbers), span, make_inner([{**group, "params": [_leaf(parameter)]}]))
                for span in _spans(parameter, elementwise)
            ]
            if fused:
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    _hook(self)
                )

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update what has a gradient; in the fused case all gradients are gone already."""
        assert closure is None, "no optimizer here computes the loss again"
        for parameter in self._groups:
            if parameter.grad is not None:
                self.update(parameter)
        self._num_steps += 1

    def take(self, parameter: nn.Parameter) -> None:
        """In the backward pass: a parameter's gradient is complete in this process."""
        self._update_all(self._sums.take(parameter))

    def finish_backward(self) -> None:
        """After the backward pass: update what has a gradient in other processes alone."""
        self._update_all(self._sums.finish())

    def _update_all(self, parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            self.update(parameter)

    @torch.no_grad()
    def update(self, parameter: nn.Parameter) -> None:
        """Update one parameter by its gradient and drop the gradient."""
        if self.fused:
            self._clip(parameter)
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        for number, span, inner in self._pieces[parameter]:
            inner.param_groups[0]["lr"] = self._groups[parameter]["lr"]
            (leaf,) = inner.param_groups[0]["params"]
            if leaf is parameter:
                leaf.grad = gradient
                inner.step()
                leaf.grad = None
                continue
            part: Tensor = parameter
            its_gradient = gradient
            if span is not None:
                part, its_gradient = parameter.view(-1)[span], gradient.reshape(-1)[span]
            leaf.data, leaf.grad = _widened(part), _widened(its_gradient)
            inner.step()
            leaf.grad = None
            rounded = round_stochastically(leaf.data, self._generator(number, part.device))
            part.copy_(rounded.view_as(part))
            leaf.data = _nothing(leaf)

    def take_norm(self) -> Tensor:
        """Length of all gradients since the last call, before they were shortened. Scalar fp32."""
        squared, self._squared_norms = self._squared_norms, []
        return torch.stack(squared).sum().sqrt() if squared else torch.zeros(())

    def state_dict(self) -> dict[str, Any]:
        """All that a later `load_state_dict` needs to go on in the same way."""
        return {
            "num_steps": self._num_steps,
            "rates": [group["lr"] for group in self.param_groups],
            "inner": [piece.optimizer.state_dict() for piece in self._all_pieces()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, over the same parameters in the same order."""
        self._num_steps = state["num_steps"]
        for group, rate in zip(self.param_groups, state["rates"], strict=True):
            group["lr"] = rate
        for piece, stored in zip(self._all_pieces(), state["inner"], strict=True):
            piece.optimizer.load_state_dict(stored)

    def _all_pieces(self) -> Iterator[_Piece]:
        return itertools.chain.from_iterable(self._pieces.values())

    def _parameters(self) -> Iterator[tuple[dict[str, Any], nn.Parameter]]:
        return ((group, parameter) for group in self.param_groups for parameter in group["params"])

    def _clip(self, parameter: nn.Parameter) -> None:
        gradient = parameter.grad
        assert gradient is not None
        norm = gradient.norm(dtype=torch.float32)
        self._squared_norms.append(norm.square())
        if math.isfinite(self._max_norm):
            gradient.mul_((self._max_norm / (norm + 1e-6)).clamp(max=1.0))

    def _generator(self, number: int, device: torch.device) -> torch.Generator:
        # On the parameter's device: drawing a number a weight on the CPU would take seconds.
        seed = generator_for(self._seed, "rounding", self._num_steps, number).initial_seed()
        return torch.Generator(device).manual_seed(seed)


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """bf16 of fp32 `values`: one of the two neighbours, the nearer one more often.

    The expectation is the value itself. What bf16 can hold stays as it is.
    """
    noise = torch.randint(
        1 << LOW_BITS, values.shape, dtype=torch.int32, device=values.device, generator=generator
    )
    bits = noise.add_(values.view(torch.int32)).bitwise_and_(-1 << LOW_BITS)
    return bits.view(torch.float32).bfloat16()


def _spans(parameter: nn.Parameter, elementwise: bool) -> list[slice | None]:
    """The pieces in which a parameter is updated; None is all of it."""
    numel = parameter.numel()
    whole = parameter.dtype == torch.float32 or numel <= PIECE or not parameter.is_contiguous()
    if whole or not elementwise:
        return [None]
    return [slice(start, start + PIECE) for start in range(0, numel, PIECE)]


def _leaf(parameter: nn.Parameter) -> nn.Parameter:
    """What the inner optimizer sees: the parameter, or a place for its fp32 copy."""
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(_nothing(parameter))


def _widened(tensor: Tensor) -> Tensor:
    """fp32, as a matrix where it has more dimensions.

    Adafactor factors its last two: for a 3x3 kernel its state would be two thirds of the weights.
    """
    wide = tensor.detach().float()
    return wide.flatten(1) if wide.ndim > 2 else wide


def _nothing(parameter: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.float32, device=parameter.device)


def _hook(optimizer: PerParameter) -> Callable[[Tensor], None]:
    # Weak, so that the optimizer's state goes when the run ends and not with the parameters. They
    # would not go at all if a hook of one of them held them: Python's collector does not see it.
    owner = weakref.ref(optimizer)

    def update(parameter: Tensor) -> None:
        alive = owner()
        assert alive is not None
        assert isinstance(parameter, nn.Parameter)
        alive.take(parameter)

    return update
