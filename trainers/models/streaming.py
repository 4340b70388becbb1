"""Frozen weights that stay in RAM, and come to the device for one block at a time.

A block's weights are copied into one of two buffers, each as large as the largest block, while the
block before it works in the other. So a device holds two blocks, and what lies outside of blocks.
It goes together with checkpointing of every block: what autograd would keep of a block's weights
for the backward pass is dropped, and made again when they come a second time.

When may a buffer be used again? Autograd works off what was done last first, without exception on
one device. So when a block's activations are computed again in the backward pass, all that came
after it in the forward pass is done, and nothing that is kept stands on the other buffer. Layers
have the weights in a buffer until another block gets it, so that a backward pass may read them off
its layer as well.

Copies to a GPU have a stream of their own. They pass through pinned memory as large as the buffers:
weights in RAM are often a file's pages, which cannot be pinned, and pinning a copy of them all
would take their size once more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .checkpointing import blocks

ALIGNMENT = 512  # bytes; as torch allocates, since kernels are chosen by it
STREAMED = "_streamed"  # a block's own and its stream, on the block
_copying = ThreadPoolExecutor(1, "personalize-weights")
_Place = tuple[dict[str, Any], str]  # of a layer: its parameters or buffers, and a name in them


def stream_blocks(
    modules: Collection[nn.Module], device: torch.device, whole: Iterable[Tensor]
) -> None:
    """Let the frozen weights of all blocks of `modules` come to the device one block at a time.

    All else that they hold goes to the device, in place. Every block must be checkpointed then,
    around what is done here.

    Args:
        whole: frozen weights of blocks that stay on the device, such as an adapter's.
    """
    kept = {id(tensor) for tensor in whole}
    found = [(block, _Block(_frozen_weights(block, kept))) for m in modules for block in blocks(m)]
    for module in modules:
        module.to(device)
    for _, own in found:
        own.leave()
    found = [(block, own) for block, own in found if own.weights]
    if found:
        stream = Stream([own for _, own in found], device)
        for block, own in found:
            _stream(block, own, stream)


def in_ram(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """What of `module` waits in RAM for its blocks, and the buffers on the device that take it."""
    found = [found for part in module.modules() if (found := vars(part).get(STREAMED))]
    waiting = [weight.in_ram for own, _ in found for weight in own.weights]
    return waiting, [buffer.room for _, stream in found[:1] for buffer in stream.buffers]


def settle() -> None:
    """Wait for copies that are under way, so that nothing holds their memory any more."""
    if torch.cuda.is_available():
        _copying.submit(_nothing).result()


def _stream(block: nn.Module, own: _Block, stream: Stream) -> None:
    forward = block.forward

    def streamed(*args: Any, **kwargs: Any) -> Any:
        stream.arrive(own)
        return forward(*args, **kwargs)

    block.forward = streamed
    vars(block)[STREAMED] = own, stream


def _frozen_weights(block: nn.Module, kept: Collection[int]) -> Iterator[tuple[_Place, Tensor]]:
    for layer in block.modules():
        for held in (layer._parameters, layer._buffers):
            for name, tensor in held.items():
                if tensor is None or tensor.requires_grad or id(tensor) in kept:
                    continue
                if type(tensor) in (Tensor, nn.Parameter) or _is_fake(tensor):
                    yield (held, name), tensor


class _Weight(NamedTuple):
    """A weight of a block.

    Attributes:
        places: more than one if it is tied.
        offset: in bytes, of a buffer.
        stride: in a buffer, where it has no gaps.
    """

    in_ram: Tensor
    places: list[_Place]
    offset: int
    stride: tuple[int, ...]

    def on(self, room: Tensor) -> Tensor:
        """Its place on a buffer of bytes."""
        numbers = room[self.offset : self.offset + _bytes(self.in_ram)].view(self.in_ram.dtype)
        return numbers.as_strided(self.in_ram.size(), self.stride)

    def put(self, tensor: Tensor | None) -> None:
        for held, name in self.places:
            held[name] = tensor


class _Block:
    """What a block has in RAM; its layers are without, until it leaves or arrives.

    Attributes:
        size_bytes: what it takes of a buffer.
    """

    def __init__(self, tensors: Iterable[tuple[_Place, Tensor]]) -> None:
        self.weights: list[_Weight] = []
        self.size_bytes = 0
        known: dict[int, list[_Place]] = {}
        for place, tensor in tensors:
            places = known.setdefault(id(tensor), [])
            places.append(place)
            if len(places) == 1 and tensor.numel():
                # An object of its own: what lies outside of the block may be tied to it.
                in_ram = _like(tensor, tensor.detach().cpu())
                stride = torch.empty_like(in_ram, device="meta").stride()
                self.weights.append(_Weight(in_ram, places, self.size_bytes, stride))
                self.size_bytes += -(-_bytes(in_ram) // ALIGNMENT) * ALIGNMENT
        for weight in self.weights:
            weight.put(None)

    def leave(self) -> None:
        """Let its layers have what is in RAM."""
        for weight in self.weights:
            weight.put(weight.in_ram)


class _Buffer:
    """Room for one block's weights on a device.

    Attributes:
        block: whose weights are there, or come.
        room: bytes on the device.
    """

    def __init__(self, room: Tensor) -> None:
        self.block: _Block | None = None
        self.room = room

    def fetch(self, block: _Block) -> None:
        """Begin to copy a block's weights; those that are there are no longer."""
        if self.block is not None:
            self.block.leave()
        self.block = block
        for weight in block.weights:
            weight.on(self.room).copy_(weight.in_ram)

    def arrive(self) -> None:
        """Let the layers have the weights that are here."""
        assert self.block is not None
        for weight in self.block.weights:
            weight.put(_like(weight.in_ram, weight.on(self.room)))


class _GpuBuffer(_Buffer):
    """The same on a GPU: copies go on beside its work, through pinned memory."""

    def __init__(self, room: Tensor, pinned: Tensor, stream: torch.cuda.Stream) -> None:
        super().__init__(room)
        self._pinned, self._stream = pinned, stream
        self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copy: Future[None] | None = None

    def fetch(self, block: _Block) -> None:
        if self._copy is not None:
            self._copy.result()
        if self.block is not None:
            self.block.leave()
        self.block = block
        # All that was asked of the GPU until now, of which some reads what is still here.
        free = torch.cuda.current_stream(self.room.device).record_event()
        self._copy = _copying.submit(self._send, block, free)

    def arrive(self) -> None:
        assert self._copy is not None
        self._copy.result()
        torch.cuda.current_stream(self.room.device).wait_event(self._there)
        super().arrive()

    def _send(self, block: _Block, free: torch.cuda.Event) -> None:
        """In a thread of its own, since the first copy keeps a CPU busy."""
        self._there.synchronize()  # until then the GPU reads what is pinned
        for weight in block.weights:
            weight.on(self._pinned).copy_(weight.in_ram)
        size = block.size_bytes
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(free)
            self.room[:size].copy_(self._pinned[:size], non_blocking=True)
            self._there.record(self._stream)


def _gpu_buffers(rooms: list[Tensor]) -> list[_Buffer]:
    made: list[_Buffer] = []
    stream = torch.cuda.Stream(rooms[0].device)  # type: ignore[no-untyped-call]
    for room in rooms:
        room.record_stream(stream)  # nobody else gets it while a copy is under way
        pinned = torch.empty(room.shape, dtype=room.dtype, pin_memory=True)
        made.append(_GpuBuffer(room, pinned, stream))
    return made


class Stream:
    """The blocks of some modules, and the two buffers that they share.

    What comes next is what came after the same two blocks the last time: forward, backward, and
    where one turns into the other.

    Attributes:
        buffers: the one that is at work comes first.
    """

    def __init__(self, made: Collection[_Block], device: torch.device) -> None:
        size = max(block.size_bytes for block in made)
        rooms = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        on_gpu = device.type == "cuda" and not any(map(_is_fake, rooms))
        self.buffers = _gpu_buffers(rooms) if on_gpu else [_Buffer(room) for room in rooms]
        self._after: dict[tuple[int, int], _Block] = {}
        self._last = (0, 0)  # the two blocks that came last

    def arrive(self, block: _Block) -> None:
        """Let a block's layers have its weights on the device, and send for the next block's."""
        with torch.inference_mode(False), torch.no_grad():  # also where the host samples
            self._after[self._last] = block
            self._last = (self._last[1], id(block))
            if self.buffers[0].block is not block:
                self.buffers.reverse()  # it is on its way, or takes the place of an older one
            own, other = self.buffers
            if own.block is not block:
                own.fetch(block)
            own.arrive()
            ahead = self._after.get(self._last)
            if ahead is not None and ahead not in (own.block, other.block):
                other.fetch(ahead)


def _like(weight: Tensor, tensor: Tensor) -> Tensor:
    is_parameter = isinstance(weight, nn.Parameter)
    return nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _is_fake(tensor: Tensor) -> bool:
    return hasattr(tensor, "fake_mode")


def _nothing() -> None:
    pass
