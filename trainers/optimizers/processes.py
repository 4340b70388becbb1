"""Several processes that train one model, each on its share of every batch (data parallel).

    g = sum over processes of g_r        L = sum over processes of L_r

Each process divides its loss by the samples of all, so sums are all that is exchanged, and after
each update all of them hold the same numbers. Torch's own all_reduce does the sums: gloo on CPUs,
NCCL on GPUs. One process needs none of it, and ALONE does nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from ..errors import ProcessesError

BUCKET = 2**23  # numbers of gradients that are summed at once: few messages, little memory
FUSED_BUCKET = 2**20  # the same where gradients are to go soon
Each = TypeVar("Each", bound=Tensor)
TIMEOUT = datetime.timedelta(minutes=30)  # the others wait while the first writes or samples


@dataclass(frozen=True)
class Processes:
    """Those that train together, and which of them this is.

    All of them must ask the same in the same order: each question waits for all answers.

    Attributes:
        rank: this one's number, from 0.
        count: how many there are.
        device: where the numbers that are exchanged must lie.
        shard: whether each has but a part of the denoiser's weights; see sharded.py.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")
    shard: bool = False

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

    def most(self, number: int) -> int:
        """The largest number that any process has.

        Raises:
            ProcessesError: another one ended.
        """
        return int(self._largest(number).item())

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
        both = self._largest(*numbers, *(-number for number in numbers))
        largest, smallest = both.view(2, -1)
        return bool((largest == -smallest).all())

    def given(self, tensor: Tensor, by: int = 0) -> Tensor:
        """A tensor as process `by` has it; the others pass one of the same shape and dtype.

        Raises:
            ProcessesError: another one ended.
        """
        if self.count == 1:
            return tensor
        there = tensor.to(self.device).clone(memory_format=torch.contiguous_format)
        with _told():
            distributed.broadcast(there, src=by)
        return there.to(tensor.device)

    @contextlib.contextmanager
    def sharing_out(self) -> Iterator[None]:
        """For steps in which torch itself exchanges what is shared out.

        Raises:
            ProcessesError: another one ended.
        """
        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, distributed.DistError) or "gloo" in str(error).lower()
            if not (self.shard and lost):
                raise
            raise _lost() from error

    def own(self, number: int) -> frozenset[int]:
        """Which of `number` forward passes this process does; see `is_for`.

        Where weights are shared out all do as many, so some do the first one in vain.
        """
        own = frozenset(filter(self.is_for, range(number)))
        waits = self.shard and len(own) < math.ceil(number / self.count)
        return own | {0} if waits else own

    def is_for(self, place: int) -> bool:
        """Whether this process answers for a place in a row."""
        return place % self.count == self.rank

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Let all processes have the sums of their gradients; none stays where no one has any.

        Raises:
            ProcessesError: another one ended.
        """
        if self.count == 1 or not parameters:
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

    def _largest(self, *numbers: float) -> Tensor:
        most = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        if self.count > 1:
            with _told():
                distributed.all_reduce(most, distributed.ReduceOp.MAX)
        return most

    def _add(self, tensor: Tensor) -> None:
        with _told():
            distributed.all_reduce(tensor)


ALONE = Processes()
_joined = [ALONE]  # what a process belongs to is a fact of the process


class InOrder:
    """Sums gradients in the backward pass, in one order for all processes.

    Which is complete first may differ between processes: one of them has no sample, or no
    caption with a learned token. So they go in buckets, from the last layers to the first, and each
    waits for its turn.

    Args:
        groups: the parameters, by module.
    """

    def __init__(self, processes: Processes, groups: Iterable[Sequence[nn.Parameter]]) -> None:
        self._processes = processes
        parameters = [parameter for group in groups for parameter in reversed(group)]
        self._buckets = list(_buckets(parameters, FUSED_BUCKET))
        self._complete: set[nn.Parameter] = set()
        self._next = 0

    def take(self, parameter: nn.Parameter) -> Iterator[nn.Parameter]:
        """Those whose sums are there, now that a gradient is complete in this process."""
        if self._processes.count == 1:
            yield parameter
            return
        self._complete.add(parameter)
        while self._next < len(self._buckets) and self._complete.issuperset(self._bucket()):
            yield from self._turn()

    def finish(self) -> Iterator[nn.Parameter]:
        """The rest, after the backward pass: what is not complete has no gradient here."""
        while self._processes.count > 1 and self._next < len(self._buckets):
            yield from self._turn()
        self._complete.clear()
        self._next = 0

    def _bucket(self) -> list[nn.Parameter]:
        """Those whose turn it is; a text encoder's training may have ended."""
        return [parameter for parameter in self._buckets[self._next] if parameter.requires_grad]

    def _turn(self) -> Iterator[nn.Parameter]:
        bucket = self._bucket()
        self._next += 1
        self._processes.add_gradients(bucket)
        yield from (parameter for parameter in bucket if parameter.grad is not None)


def joined() -> Processes:
    """Those that this process joined; ALONE where it did not, whatever else the host may do."""
    return _joined[-1]


def join(cpu: bool = False, shard: bool = False) -> Processes:
    """Those that `torchrun` or `accelerate launch` started with this one; ALONE without them.

    Args:
        cpu: train on the CPU though there are GPUs.
        shard: share the denoiser's weights out among them.

    Raises:
        ProcessesError: they do not find each other, or are to share with none.
    """
    from accelerate import PartialState

    with _told():
        state = PartialState(cpu=cpu, timeout=TIMEOUT)
    if state.num_processes > 1:
        rank, count = state.process_index, state.num_processes
        _joined.append(Processes(rank, count, state.device, shard))
    elif shard:
        raise ProcessesError(
            "--shard shares the denoiser's weights out among several processes, and this is one.\n"
            "Start several with torchrun --nproc-per-node, or leave --shard out."
        )
    return joined()


def leave() -> None:
    """Part from the others at the end, whoever else is still at work.

    A process that ends while torch's threads still listen to the others is aborted now and then,
    and a launcher takes that for a failure of all.
    """
    if joined().count > 1:
        _joined.pop()
        distributed.destroy_process_group()


def _gradient(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient, zero where this process has none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _cut(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A row of numbers, cut into tensors of the same shapes."""
    pieces = torch.split(flat, [one.numel() for one in like])
    return [piece.view_as(one) for piece, one in zip(pieces, like, strict=True)]


def _buckets(tensors: Iterable[Each], most: int = BUCKET) -> Iterator[list[Each]]:
    """Tensors in order, as many of one dtype as have `most` numbers, but one at least."""
    bucket: list[Each] = []
    numbers = 0
    for tensor in tensors:
        other = bucket and bucket[0].dtype != tensor.dtype
        if bucket and (other or numbers + tensor.numel() > most):
            yield bucket
            bucket, numbers = [], 0
        bucket.append(tensor)
        numbers += tensor.numel()
    if bucket:
        yield bucket


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What torch says of a lost connection, as a person would."""
    try:
        yield
    except RuntimeError as error:
        raise _lost() from error


def _lost() -> ProcessesError:
    return ProcessesError(
        "Several processes: another process ended or cannot be reached, so this one ends too.\n"
        "What the other said stands above, or in its own log. Start all of them again, as many "
        "as you like: the run goes on from its last state."
    )
