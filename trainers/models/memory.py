"""What a training step holds in memory, told without computing it.

On fake tensors every operation gives shapes and dtypes but no numbers, at once and on any machine.
So the steps of a training are gone through as they are, and what they leave alive is added up, by
storage. It works on real tensors too, and gives the same.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from .streaming import in_ram

log = logging.getLogger("torch._subclasses.fake_tensor")

STEPS = 2  # the first makes the optimizer's states, the second finds them there


class Kind(Enum):
    """What a storage is there for."""

    FROZEN = 0
    TRAINED = 1
    GRADIENT = 2
    STATE = 3  # of the optimizer, and averages of weights
    OTHER = 4  # activations, and all that is there for a moment
    BEFORE = 5  # what was there already and is not the training's, in no sum


@dataclass(frozen=True)
class StepMemory:
    """What is alive where a step needs the most, in bytes on its device.

    A driver, the workspaces of libraries and what an allocator loses between blocks come on top.

    Attributes:
        shared: of the frozen weights those that were there before, and only have to stay.
        flops: floating-point operations of matrix products, convolutions and attention in a step.
    """

    frozen: int
    trained: int
    gradients: int
    states: int
    activations: int
    shared: int
    flops: int

    @property
    def peak(self) -> int:
        return self.frozen + self.trained + self.gradients + self.states + self.activations

    @property
    def needed(self) -> int:
        """What of it has to be free."""
        return self.peak - self.shared


class Trains(Protocol):
    """A training under way."""

    def step(self) -> Any:
        """One optimizer step."""


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that are alive on a device, by what they are there for.

    A fake tensor that is asked for a number says 0, and one of several whole numbers its place, so
    that a shuffled row is one in order; asked for any or all of its numbers, it says yes, since
    weights are there and are finite.

    Attributes:
        peak: in bytes by Kind, at the last moment when all of them together were most.
        shared: bytes that were there before and are counted all the same.
        flops: since it began to count.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device_type = device.type
        self._now, self.peak = [0] * Kind.BEFORE.value, [0] * Kind.BEFORE.value
        self._total = self._most = self.shared = self.flops = 0
        self._yes: Any = None
        self._known: dict[int, tuple[int, Kind, Any]] = {}  # by address: bytes, and who tells

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and _is_fake(args[0]):
            return self._answer(args[0])
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in (torch.ops.aten.any, torch.ops.aten.all):
            self._yes = result
        self.flops += _flops(func, args, kwargs or {}, result)
        for value in (result,) if isinstance(result, Tensor) else tree_iter(result):
            if isinstance(value, Tensor):
                self.count(value)
        return result

    def _answer(self, asked: Tensor) -> float:
        if asked is self._yes:
            return True
        whole = not (asked.is_floating_point() or asked.dtype is torch.bool)
        return int(asked.storage_offset()) if whole else 0.0

    def count(self, tensor: Tensor, kind: Kind | None = None) -> None:
        """Take in a tensor's storage; one that is known stays what it is unless `kind` is given."""
        if tensor.device.type != self._device_type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        size, before, teller = self._known.get(key, (storage.nbytes(), None, None))
        if before is not None and kind in (None, before):
            return
        if before is not None:
            self._add(before, -size)
        else:
            teller = weakref.ref(storage, lambda gone: self._forget(key))
        if before is Kind.BEFORE:
            self.shared += size
        kind = kind or Kind.OTHER
        self._known[key] = size, kind, teller
        self._add(kind, size)

    def begin(self) -> None:
        """Whatever there was at once until now, what is there now is the most."""
        self._most, self.peak = self._total, list(self._now)

    def call_the_rest(self, kind: Kind) -> None:
        """Everything that is there for no known reason is there for this one."""
        for key, (size, before, teller) in list(self._known.items()):
            if before is Kind.OTHER and key in self._known:  # some may go meanwhile
                self._known[key] = size, kind, teller
                self._add(before, -size)
                self._add(kind, size)

    def _add(self, kind: Kind, size: int) -> None:
        if kind is Kind.BEFORE:
            return
        self._now[kind.value] += size
        self._total += size
        if size > 0 and self._total >= self._most:
            self._most, self.peak = self._total, list(self._now)

    def _forget(self, key: int) -> None:
        size, kind, _ = self._known.pop(key)
        self._add(kind, -size)


def step_memory(
    alive: Alive,
    modules: Iterable[nn.Module],
    trained: Iterable[nn.Parameter],
    begin: Callable[[], Trains],
    apart: bool = True,
) -> StepMemory:
    """What a training holds in a step, once the states of its optimizer are there.

    Args:
        alive: at work since before the weights that the training made for itself.
        modules: all that takes part, with their weights.
        trained: all that is trained, in them or beside them.
        begin: makes the training.
        apart: whether RAM is another memory than the device's, so that weights that wait there
            take none of it; on a CPU only where it stands for another device.
    """
    for module in modules:
        waiting, buffers = in_ram(module)
        for tensor in waiting:
            alive.count(tensor, Kind.BEFORE if apart else Kind.FROZEN)
        away = set(map(id, waiting))
        for tensor in (*module.parameters(), *module.buffers(), *buffers):
            if id(tensor) not in away:
                alive.count(tensor, Kind.FROZEN)
    for parameter in trained:
        alive.count(parameter, Kind.TRAINED)
        # Before the optimizer's own, which may take the gradient away.
        parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
            _gradients_for(alive)
        )
    alive.call_the_rest(Kind.STATE)
    alive.begin()
    training = begin()
    for _ in range(STEPS):
        alive.flops = 0
        training.step()
        alive.call_the_rest(Kind.STATE)
    frozen, kept, gradients, states, activations = alive.peak
    return StepMemory(frozen, kept, gradients, states, activations, alive.shared, alive.flops)


def _gradients_for(alive: Alive) -> Callable[[Tensor], None]:
    def note(parameter: Tensor) -> None:
        if parameter.grad is not None:
            alive.count(parameter.grad, Kind.GRADIENT)

    return note


def _is_fake(tensor: Tensor) -> bool:
    return hasattr(tensor, "fake_mode")


def _flops(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    packet = func._overloadpacket
    name = packet.__name__
    if name.startswith("_scaled_dot_product"):  # torch's own count knows no shared keys, and no CPU
        backward = name.endswith("_backward")
        flops = _attention_flops(*args[1:4]) * 5 // 2 if backward else _attention_flops(*args[:3])
        return flops
    count = flop_registry.get(packet)
    return 0 if count is None else int(count(*args, **kwargs, out_val=result))


def _attention_flops(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Of (B, heads, length, D) each: q k^T, and the result times v."""
    return 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


class Pretence:
    """A place where tensors are fake: they have shapes, dtypes and a device, but no numbers.

    Real tensors that come in are read as fakes of their shape, and are never changed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        # nn.Module.to puts one fake in another's place, which it refuses to do with those that
        # torch remembers.
        converter: Any = self._mode.fake_tensor_converter
        converter.set_tensor_memo = lambda tensor, fake: None

    def like(self, tensor: Tensor) -> Tensor:
        """A fake of a tensor, with a storage of its own."""
        with self._mode:
            device = self.device if tensor.is_meta else tensor.device
            fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if isinstance(tensor, nn.Parameter):
                return nn.Parameter(fake, requires_grad=False)
            return fake

    @contextmanager
    def watched(self) -> Iterator[Alive]:
        """Inside, all that is computed is pretended, and what is alive on the device counted."""
        devices = [self.device] if self.device.type == "cuda" else []
        alive = Alive(self.device)
        log.disabled = True  # torch tells at length of what cannot be pretended, and raises it too
        try:
            with torch.random.fork_rng(devices=devices), self._mode, alive:
                yield alive
        finally:
            log.disabled = False
