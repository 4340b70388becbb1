"""An exponential moving average (EMA) of weights.

    a_n = d_n a_(n-1) + (1 - d_n) w_n        d_n = min(decay, (1 + n) / (10 + n)),  n = 1, 2, ...

The rising d_n, as in TensorFlow and diffusers' EMAModel, lets short runs forget where they began.
Taken in once every k steps, the weights count for what k steps with them would:

    a_n = D a_(n-k) + (1 - D) w_n            D = d_(n-k+1) ... d_n

Written out here because EMAModel cannot keep its average on another device than the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from .sharded import for_state, part_of


class Average:
    """The average of some parameters, in fp32.

    Args:
        parameters: what is averaged; the average starts as a copy of them.
        interval: steps from one look at the parameters to the next.
        in_ram: keep it on the CPU. It is then worked out beside the training, from a copy of the
            parameters in their own dtypes, which takes as much RAM once more.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        decay: float,
        interval: int = 1,
        in_ram: bool = False,
    ) -> None:
        self._parameters = list(parameters)
        self._decay, self._interval = decay, interval
        self.num_updates = self._taken = 0
        place = torch.device("cpu") if in_ram else None
        self._values = [
            p.detach().to(place or p.device, torch.float32, copy=True) for p in self._parameters
        ]
        self._copies = _Copies(self._parameters) if in_ram else None

    @torch.no_grad()
    def update(self) -> None:
        """A step is done: take in the parameters as they are now, if it is time for it."""
        self.num_updates += 1
        if self.num_updates % self._interval:
            return
        share, self._taken = self._share(), self.num_updates
        if self._copies is not None:
            self._copies.take_into(self._values, share)
            return
        for value, parameter in zip(self._values, self._parameters, strict=True):
            value.lerp_(parameter.to(value.dtype), share)

    @torch.no_grad()
    def now(self) -> Iterator[Tensor]:
        """The average after the last step, one tensor after the other.

        Those that are up to date are given as they are kept, not copied.
        """
        steps = self._taken, self.num_updates
        yield from _up_to_date(self.values, self._parameters, self._decay, *steps)

    @property
    def values(self) -> list[Tensor]:
        """The average when the parameters were last taken in; what is under way is waited for."""
        if self._copies is not None:
            self._copies.finish()
        return self._values

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs; no copies but of what is shared out."""
        values = [for_state(*one) for one in zip(self.values, self._parameters, strict=True)]
        return {"num_updates": self.num_updates, "taken": self._taken, "values": values}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave over the same parameters."""
        self.num_updates = state["num_updates"]
        self._taken = state.get("taken", self.num_updates)  # once they were taken in at every step
        rows = zip(self.values, state["values"], self._parameters, strict=True)
        for value, kept, parameter in rows:
            value.copy_(part_of(kept, parameter))

    @torch.no_grad()
    def begin_anew(self) -> None:
        """Start as a copy of the parameters as they are now."""
        self.num_updates = self._taken = 0
        for value, parameter in zip(self.values, self._parameters, strict=True):
            value.copy_(parameter)

    def _share(self) -> float:
        """Of the parameters as they are now, in the average that holds those of `_taken`."""
        return _share(self._decay, self._taken, self.num_updates)


def kept_average(
    state: Mapping[str, Any], parameters: Sequence[Tensor], decay: float
) -> list[Tensor]:
    """What `Average.now` gave when `Average.state` was asked.

    Args:
        parameters: as they were then.
    """
    done = state["num_updates"]
    taken = state.get("taken", done)
    return list(_up_to_date(state["values"], parameters, decay, taken, done))


def _up_to_date(
    values: Iterable[Tensor], parameters: Iterable[Tensor], decay: float, taken: int, done: int
) -> Iterator[Tensor]:
    for value, parameter in zip(values, parameters, strict=True):
        if taken == done:
            yield value
        else:
            held = parameter.to(value.device, value.dtype)
            yield value.lerp(held, _share(decay, taken, done))


def _share(decay: float, taken: int, done: int) -> float:
    return 1 - math.prod(min(decay, (1 + n) / (10 + n)) for n in range(taken + 1, done + 1))


class _Copies:
    """Room in RAM for the parameters, and a thread that works them into the average.

    On a GPU the copy is queued like any of its work, so that the update of the next step waits for
    it and Python does not; the thread waits until it has come.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        # Fakes (models/memory.py) have a GPU without one, and go through no other thread.
        self._is_planned = any(hasattr(p, "fake_mode") for p in parameters)
        on_gpus = () if self._is_planned else (p for p in parameters if p.device.type == "cuda")
        self._gpus = {p.device for p in on_gpus}
        # What is pinned comes without a stop on the way.
        self._room = [
            torch.empty(p.shape, dtype=p.dtype, pin_memory=p.device in self._gpus)
            for p in parameters
        ]
        self._thread = ThreadPoolExecutor(1, "personalize-average")
        self._under_way: Future[None] | None = None

    def take_into(self, values: list[Tensor], share: float) -> None:
        """Begin to move `values` by `share` towards the parameters as they are now."""
        self.finish()  # the room is taken until then
        for room, parameter in zip(self._room, self._parameters, strict=True):
            room.copy_(parameter.detach(), non_blocking=parameter.device in self._gpus)
        come = [torch.cuda.current_stream(device).record_event() for device in self._gpus]
        if self._is_planned:
            _lerp_later(values, self._room, share, come)
            return
        self._under_way = self._thread.submit(_lerp_later, values, self._room, share, come)

    def finish(self) -> None:
        """Wait for what `take_into` began."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()


@torch.no_grad()
def _lerp_later(
    values: list[Tensor], room: list[Tensor], share: float, come: list[torch.cuda.Event]
) -> None:
    for event in come:
        event.synchronize()
    for value, copy in zip(values, room, strict=True):
        value.lerp_(copy.to(value.dtype), share)
