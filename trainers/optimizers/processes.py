"""Several processes that train one model, each on its share of every batch (data parallel).

    g = sum over processes of g_r        L = sum over processes of L_r

Each process divides its loss by the samples of all, so sums are all that is exchanged, and after
each update all of them hold the same numbers. Torch's own all_reduce does the sums: gloo on CPUs,
NCCL on GPUs. One process needs none of it, and ALONE does nothing.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from ..errors import ProcessesError

BUCKET = 2**23  # numbers of gradients that are summed at once: few messages, little memory
TIMEOUT = datetime.timedelta(minutes=30)  # the others wait while the first writes or samples


@dataclass(frozen=True)
class Processes:
    """Those that train together, and which of them this is.

    All of them must ask the same in the same order: each question waits for all answers.

    Attributes:
        rank: this one's number, from 0.
        count: how many there are.
        device: where the numbers that are exchanged must lie.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and shows what happens."""
        return self.rank == 0

    def total(self, number: float) -> float:
        """The sum of a number over all processes.

        Raises:
            ProcessesError: another one ended.
        """
        if self.count == 1:
            return number
        added = torch.tensor(number, dtype=torch.float64, device=self.device)
        self._add(added)
        return added.item()

    def any(self, flag: bool) -> bool:
        """Whether any process says so.

        Raises:
            ProcessesError: another one ended.
        """
        return self.total(flag) > 0

    def wait(self) -> None:
        """Until all processes are here.

        Raises:
            ProcessesError: another one ended.
        """
        self.total(0)

    def agree(self, *numbers: float) -> bool:
        """Whether all processes have the same numbers.

        Raises:
            ProcessesError: another one ended.
        """
        if self.count == 1:
            return True
        both = [*numbers, *(-number for number in numbers)]
        most = torch.tensor(both, dtype=torch.float64, device=self.device)
        with _told():
            distributed.all_reduce(most, distributed.ReduceOp.MAX)
        largest, smallest = most.view(2, -1)
        return bool((largest == -smallest).all())

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Let all processes have the sums of their gradients; none stays where no one has any.

        Raises:
            ProcessesError: another one ended.
        """
        if self.count == 1:
            return
        having = [parameter.grad is not None for parameter in parameters]
        anywhere = torch.tensor(having, dtype=torch.int32, device=self.device)
        self._add(anywhere)
        used = [p for p, has in zip(parameters, anywhere.tolist(), strict=True) if has]
        for gradients in _buckets([_gradient(parameter) for parameter in used]):
            if len(gradients) == 1 and gradients[0].is_contiguous():
                self._add(gradients[0])
                continue
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            self._add(flat)
            torch._foreach_copy_(gradients, _cut(flat, gradients))

    def _add(self, tensor: Tensor) -> None:
        with _told():
            distributed.all_reduce(tensor)


ALONE = Processes()


class InOrder:
    """Sums each gradient in the backward pass, in one order for all processes.

    Which is complete first may differ between processes: one of them has no sample, or no
    caption with a learned token. So each waits for its turn, from the last layers to the first.

    Args:
        groups: the parameters, by module.
    """

    def __init__(self, processes: Processes, groups: Iterable[Sequence[nn.Parameter]]) -> None:
        self._processes = processes
        self._parameters = [parameter for group in groups for parameter in reversed(group)]
        self._complete: set[nn.Parameter] = set()
        self._next = 0

    def take(self, parameter: nn.Parameter) -> Iterator[nn.Parameter]:
        """Those whose sums are there, now that a gradient is complete in this process."""
        if self._processes.count == 1:
            yield parameter
            return
        self._complete.add(parameter)
        while self._next < len(self._parameters):
            if self._parameters[self._next] not in self._complete:
                break
            yield from self._turn()

    def finish(self) -> Iterator[nn.Parameter]:
        """The rest, after the backward pass: what is not complete has no gradient here."""
        while self._processes.count > 1 and self._next < len(self._parameters):
            yield from self._turn()
        self._complete.clear()
        self._next = 0

    def _turn(self) -> Iterator[nn.Parameter]:
        parameter = self._parameters[self._next]
        self._next += 1
        if not parameter.requires_grad:  # a text encoder whose training has ended
            return
        self._processes.add_gradients([parameter])
        if parameter.grad is not None:
            yield parameter


def joined(device: torch.device) -> Processes:
    """Those that this process joined before; ALONE where it did not.

    Args:
        device: where this one trains.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    return Processes(distributed.get_rank(), distributed.get_world_size(), device)


def join(cpu: bool = False) -> Processes:
    """Those that `accelerate launch` or `torchrun` started with this one; ALONE without them.

    Args:
        cpu: train on the CPU though there are GPUs.

    Raises:
        ProcessesError: they do not find each other.
    """
    from accelerate import PartialState

    with _told():
        state = PartialState(cpu=cpu, timeout=TIMEOUT)
    return joined(state.device)


def _gradient(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient, zero where this process has none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _cut(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A row of numbers, cut into tensors of the same shapes."""
    pieces = torch.split(flat, [one.numel() for one in like])
    return [piece.view_as(one) for piece, one in zip(pieces, like, strict=True)]


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one kind, in order, as many as are summed at once."""
    bucket: list[Tensor] = []
    numbers = 0
    for gradient in gradients:
        other = bucket and bucket[0].dtype != gradient.dtype
        if bucket and (other or numbers + gradient.numel() > BUCKET):
            yield bucket
            bucket, numbers = [], 0
        bucket.append(gradient)
        numbers += gradient.numel()
    if bucket:
        yield bucket


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What torch says of a lost connection, as a person would."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessesError(
            "Several processes: another process ended or cannot be reached, so this one ends too.\n"
            "What the other said stands above, or in its own log. Start all of them again, as many "
            "as you like: the run goes on from its last state."
        ) from error
