"""An optimizer that needs little memory at once: it updates some parameters at a time, not all.

Two things follow from that, together or alone:

    fused backward     parameters are updated in the backward pass, as soon as the gradients of
                       their bucket are complete, and these are dropped: never are all there
    bf16 weights       one piece at a time is widened to fp32, updated there, and written back with
                       stochastic rounding (arXiv 2010.06192), so that updates smaller than bf16's
                       step count on average as much as they should

Buckets and pieces are as pieces.py plans them. Any optimizer that treats parameters apart from each
other can be inside. Nothing here waits for a GPU or sends it anything.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..objective.noise import generator_for
from .pieces import Bucket, Leaf, Piece, buckets_of
from .processes import ALONE, InOrder, Processes
from .rows import Rows
from .states import load_state

# Numbers that are updated at once. Where they are widened, that takes two rows of fp32: 67 MB.
# 8-bit optimizers share a scale between 256 of them.
PIECE = 256 * 32768
LOW_BITS = 16  # of fp32, those that bf16 does not have
NARROW_STATE = "narrow_state"  # of a group: keep in bf16 what the optimizer has of each number

# groups of parameters -> their optimizer, which may keep nothing but a state of each parameter
MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class PerParameter(torch.optim.Optimizer):
    """Updates parameters bucket by bucket, at `step` or in the backward pass.

    Args:
        groups: as for any optimizer; each with its "lr", which schedules may change.
        make_inner: makes the optimizer of all of them, which is shown a piece at a time.
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
        self._norms: list[Tensor] = []
        self._sums = InOrder(processes, [group["params"] for group in self.param_groups])
        self._buckets, self._leaves = buckets_of(self.param_groups, PIECE, elementwise)
        self._bucket_of = {p: bucket for bucket in self._buckets for p in bucket.parameters}
        self._inner = make_inner(self._groups_of_leaves())
        self._inner_groups = self._inner.param_groups
        self._rows = Rows(self._inner) if elementwise else None
        self._generators: dict[torch.device, torch.Generator] = {}
        self._seeded_for, self._step_seed = -1, 0
        if fused:
            for parameter in self._bucket_of:
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    _hook(self)
                )

    @property
    def inner(self) -> torch.optim.Optimizer:
        """The optimizer inside, with the states of all that it was shown."""
        return self._inner

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update what has a gradient; in the fused case all gradients are gone already."""
        assert closure is None, "no optimizer here computes the loss again"
        for bucket in self._buckets:
            self._update(bucket)
        self._num_steps += 1

    def take(self, parameter: nn.Parameter) -> None:
        """In the backward pass: a parameter's gradient is complete in this process."""
        self._take_in(self._sums.take(parameter))

    def finish_backward(self) -> None:
        """After the backward pass: update what waited for a gradient that did not come."""
        self._take_in(self._sums.finish())
        for bucket in self._buckets:
            self._update(bucket)

    def _take_in(self, parameters: Iterable[nn.Parameter]) -> None:
        """Their gradients are complete; update the buckets that are complete with them."""
        for parameter in parameters:
            bucket = self._bucket_of[parameter]
            bucket.ready.add(parameter)
            if len(bucket.ready) == len(bucket.parameters):
                self._update(bucket)

    @torch.no_grad()
    def _update(self, bucket: Bucket) -> None:
        """Use up and drop the gradients of a bucket; what has none stays as it is."""
        bucket.ready.clear()
        gradients = {p: p.grad for p in bucket.parameters if p.grad is not None}
        if not gradients:
            return
        if self.fused:
            self._clip(list(gradients.values()))
        group = {**self._inner_groups[bucket.group], "lr": self.param_groups[bucket.group]["lr"]}
        for piece in bucket.pieces:
            leaves, trained = piece.leaves, piece.trained
            if len(gradients) < len(bucket.parameters):
                leaves = [leaf for leaf in leaves if leaf.parameter in gradients]
                trained = [leaf.trained for leaf in leaves]
            if self._rows is not None and len(piece.leaves) > 1 and piece.rows is not None:
                trained = self._rows.shown(piece, leaves)
            self._inner.param_groups = [{**group, "params": trained}]
            if piece.rows is None:
                self._inner.step()
            else:
                self._step_wide(piece, leaves, gradients, trained, group.get(NARROW_STATE, False))
        for parameter in gradients:
            parameter.grad = None

    def _step_wide(
        self,
        piece: Piece,
        leaves: list[Leaf],
        gradients: Mapping[nn.Parameter, Tensor],
        trained: list[nn.Parameter],
        narrow_state: bool,
    ) -> None:
        assert piece.rows is not None
        values, room = piece.rows
        parts = [leaf.of(leaf.parameter) for leaf in leaves]
        places = [leaf.gradient for leaf in leaves]
        torch._foreach_copy_([leaf.wide for leaf in leaves], parts)
        torch._foreach_copy_(places, [leaf.of(gradients[leaf.parameter]) for leaf in leaves])
        if narrow_state:
            self._change_states(trained, Tensor.float)
        self._inner.step()
        # What is rounded takes the place of the gradients.
        generator = self._generator(piece.number, values.device)
        round_stochastically(values, generator, room)
        torch._foreach_copy_(parts, places)
        if narrow_state:
            self._change_states(trained, lambda v: round_stochastically(v, generator).bfloat16())

    def _change_states(
        self, trained: list[nn.Parameter], change: Callable[[Tensor], Tensor]
    ) -> None:
        """Change what the inner optimizer has a fractional number of for each number."""
        for parameter in trained:
            state = self._inner.state[parameter]
            for key, value in state.items():
                if isinstance(value, Tensor) and value.ndim and value.shape == parameter.shape:
                    if value.is_floating_point():
                        state[key] = change(value)

    def take_norm(self) -> Tensor:
        """Length of all gradients since the last call, before they were shortened. Scalar fp32."""
        norms, self._norms = self._norms, []
        return torch.cat(norms).norm() if norms else torch.zeros(())

    def state_dict(self) -> dict[str, Any]:
        """All that a later `load_state_dict` needs to go on in the same way."""
        return {
            "num_steps": self._num_steps,
            "rates": [group["lr"] for group in self.param_groups],
            "inner": self._states(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, over the same parameters in the same order."""
        self._num_steps = state["num_steps"]
        for group, rate in zip(self.param_groups, state["rates"], strict=True):
            group["lr"] = rate
        self._inner.param_groups = self._inner_groups
        if self._rows is not None:
            self._rows.part()
        whole = self._inner.state_dict()
        stored = dict(enumerate(one["state"] for one in state["inner"]))
        assert len(stored) == len(self._leaves)
        states = {number: one[0] for number, one in stored.items() if one}
        load_state(self._inner, {**whole, "state": states})
        self._inner_groups = self._inner.param_groups

    def _states(self) -> list[dict[str, Any]]:
        """The state of each leaf as that of an optimizer which has no other."""
        self._inner.param_groups = self._inner_groups
        if self._rows is not None:
            self._rows.part()
        states = self._inner.state_dict()["state"]
        numbers = range(len(self._leaves))
        return [{"state": {0: states[n]} if n in states else {}} for n in numbers]

    def _groups_of_leaves(self) -> list[dict[str, Any]]:
        leaves: dict[int, list[nn.Parameter]] = {}
        for leaf in self._leaves:
            leaves.setdefault(self._bucket_of[leaf.parameter].group, []).append(leaf.trained)
        return [{**g, "params": leaves.get(place, [])} for place, g in enumerate(self.param_groups)]

    def _clip(self, gradients: list[Tensor]) -> None:
        norms = torch.stack(torch._foreach_norm(gradients, 2, torch.float32))
        self._norms.append(norms)
        if math.isfinite(self._max_norm):
            shares = (norms + 1e-6).reciprocal_().mul_(self._max_norm).clamp_(max=1.0)
            torch._foreach_mul_(gradients, shares.unbind())

    def _generator(self, number: int, device: torch.device) -> torch.Generator:
        """One a step and device, set to a piece: the order of the pieces makes no difference."""
        if self._seeded_for != self._num_steps:
            seed = generator_for(self._seed, "rounding", self._num_steps).initial_seed()
            self._seeded_for, self._step_seed = self._num_steps, seed
        # On the parameters' device: drawing a number a weight on the CPU would take seconds.
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        return self._generators[device].manual_seed((self._step_seed + number) % 2**63)


def round_stochastically(
    values: Tensor, generator: torch.Generator, room: Tensor | None = None
) -> Tensor:
    """fp32 `values` as bf16 can hold them: one of two neighbours, the nearer one more often.

    The expectation is the value itself. What bf16 can hold stays as it is.

    Args:
        room: fp32 of the same shape, where they go.
    """
    room = torch.empty_like(values) if room is None else room
    bits = room.view(torch.int32).random_(0, 1 << LOW_BITS, generator=generator)
    bits.add_(values.view(torch.int32)).bitwise_and_(-1 << LOW_BITS)
    return room


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
