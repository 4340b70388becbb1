"""Frozen weights in RAM: the same bits as on the device, where two blocks' are at a time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.test_memory import CPU, watched
from tests.test_resume import stored
from trainers.contracts import Parts
from trainers.data.validation import split
from trainers.errors import UnavailableError
from trainers.loop import Training, make_job, with_teacher
from trainers.models import streaming
from trainers.models.checkpointing import blocks, checkpoint_blocks, guard_norms
from trainers.models.memory import Alive, Pretence
from trainers.models.streaming import in_ram, stream_blocks
from trainers.optimizers.sharded import check_sharding
from trainers.step import Job

STEPS = 4
CLASS = {"class_prompt": "a dog", "prior_weight": 0.5}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"batch_size": 3}),  # two shapes, so two passes before the backward pass
    "text": ("lora", {"train_text_encoder": True, "dropout": 0.3, "activations_in": "RAM"}),
    "preserved": ("lora", {"prior": "output preservation", **CLASS}),
    "teacher": ("lora", {"prior": "teacher", "prior_samples": 3, **CLASS}),
    "validation": ("lora", {"held_out": 0.4, "validate_every": 2}),
    "dora": ("lora", {"variant": "dora", "train_text_encoder": True}),
    "lokr": ("lora", {"variant": "lokr"}),
    "oft": ("lora", {"variant": "oft"}),
    "pissa": ("lora", {"initialization": "pissa", "targets": "all with convolutions"}),
    "textual inversion": ("textual_inversion", {"templates": "object"}),
}
each_case = pytest.mark.parametrize("case", CASES)
Outcome = tuple[list[dict[str, Any]], dict[str, Tensor]]


def narrow() -> Parts:
    """A base in bf16 that computes in fp32."""
    base = tiny.parts(dtype=torch.bfloat16)
    tiny.widen(base)
    return base


def ready(case: str, weights_in: str, base: Callable[[], Parts] = tiny.parts) -> Job:
    method, settings = CASES[case]
    more = {"steps": STEPS, "checkpointing": "all", "weights_in": weights_in}
    config = tiny.run_config(method, **{**settings, **more})
    made = tiny.job(dataclasses.replace(config, validation=type(config.validation)()), base())
    if config.validation.held_out:
        pictures, away = split(made.examples, frozenset({1}))
        made = make_job(base(), pictures, made.encoded, config, away)
    return with_teacher(made) if config.objective.uses_teacher else made


def outcome(training: Training, job: Job) -> Outcome:
    """What each step came to, and what is exported."""
    rows = [training.step().as_row() for _ in range(training.done, training.total)]
    return rows, job.trainable.export(copy=True)


def trained(job: Job) -> Outcome:
    return outcome(Training(job), job)


@functools.cache
def on_the_device(case: str) -> Outcome:
    return trained(ready(case, "device"))


def assert_same(ours: Outcome, expected: Outcome) -> None:
    assert ours[0] == expected[0]
    tiny.assert_equal(ours[1], expected[1])


def present(modules: list[nn.Module]) -> int:
    """How many blocks have weights on the device."""
    number = 0
    for module in modules:
        for block in blocks(module):
            waiting = set(map(id, in_ram(block)[0]))
            assert waiting
            number += not waiting <= {id(w) for w in (*block.parameters(), *block.buffers())}
    return number


# -- the same bits ------------------------------------------------------------------------


@each_case
def test_training_has_the_bits_of_one_on_the_device(case: str) -> None:
    assert_same(trained(ready(case, "RAM")), on_the_device(case))


@pytest.mark.parametrize("case", ["text", "textual inversion"])
def test_narrow_weights_that_are_widened_have_the_same_bits(case: str) -> None:
    assert_same(trained(ready(case, "RAM", narrow)), trained(ready(case, "device", narrow)))


@pytest.mark.parametrize("case", ["text", "pissa", "teacher"])
@pytest.mark.parametrize("places", [("RAM", "RAM"), ("device", "RAM"), ("RAM", "device")])
def test_a_run_goes_on_wherever_its_weights_are(case: str, places: tuple[str, str]) -> None:
    first, then = (ready(case, place) for place in places)
    training = Training(first)
    rows = [training.step().as_row() for _ in range(2)]
    going_on = Training(then)
    going_on.load_state(stored(training.state()))
    more, exported = outcome(going_on, then)
    assert_same(([*rows, *more], exported), on_the_device(case))


def test_frozen_weights_stay_as_they_are() -> None:
    base = tiny.parts()
    before = tiny.frozen_state(base)
    config = tiny.run_config("lora", weights_in="RAM", train_text_encoder=True)
    tiny.trained(config, base)
    tiny.assert_equal(tiny.frozen_state(base), before)


# -- two blocks at a time -----------------------------------------------------------------


@pytest.mark.parametrize("case", ["lora", "text", "preserved", "validation", "textual inversion"])
def test_two_blocks_at_most_are_on_the_device(case: str) -> None:
    job, most = ready(case, "RAM"), 0
    modules = list(job.parts.modules.values())

    def count(*_: object) -> None:
        nonlocal most
        most = max(most, present(modules))

    for module in modules:
        for block in blocks(module):
            next(block.children()).register_forward_hook(count)
    assert present(modules) == 0
    training = Training(job)
    for _ in range(2):
        training.step()
    assert most == 2


def test_each_block_is_sent_for_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    job = ready("oft", "RAM")
    training, sent = Training(job), []
    fetch = streaming._Buffer.fetch

    def counted(buffer: Any, block: Any) -> None:
        sent.append(block)
        fetch(buffer, block)

    monkeypatch.setattr(streaming._Buffer, "fetch", counted)
    training.step()
    training.step()
    sent.clear()
    training.step()
    number = len(list(blocks(job.parts.denoiser)))
    assert number == 9
    # Those that are there where forward turns into backward, and back again, are not.
    assert len(sent) == 2 * (number - 2)


def test_weights_in_ram_are_not_computed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    job = ready("text", "RAM")

    def nothing_instead(own: Any) -> None:
        for weight in own.weights:
            weight.put(weight.in_ram.to("meta"))

    monkeypatch.setattr(streaming._Block, "leave", nothing_instead)
    for module in job.parts.modules.values():
        for block in blocks(module):
            vars(block)[streaming.STREAMED][0].leave()
    assert_same(trained(job), on_the_device("text"))


def test_a_block_that_fails_leaves_a_training_that_can_go_on() -> None:
    job = ready("lora", "RAM")
    training, found = Training(job), list(blocks(job.parts.denoiser))

    def fail(*_: object) -> None:
        raise MemoryError

    training.step()
    hook = found[3].register_forward_hook(fail)
    with pytest.raises(MemoryError):
        training.step()
    hook.remove()
    for parameter in training.parameters:
        parameter.grad = None
    expected = Training(whole := ready("lora", "device"))
    expected.step()
    assert_same(outcome(training, job), outcome(expected, whole))


# -- whatever a block has -----------------------------------------------------------------


class Odd(nn.Module):
    """A block with weights of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight  # tied
        self.turned = nn.Parameter(torch.randn(5, 6).T)  # (6, 5), columns first
        self.part = nn.Parameter(torch.randn(6, 9)[:, 2:7])  # with gaps
        self.register_buffer("table", torch.arange(6))
        self.register_buffer("flags", torch.rand(6) > 0.5, persistent=False)
        self.register_buffer("nothing", torch.zeros(0))
        self.register_parameter("absent", None)
        self.norm = nn.LayerNorm(6)
        self.trained = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(self.norm(x))) * self.trained + self.table
        return x + (y @ self.turned) @ self.part.T * self.flags  # type: ignore[no-any-return]


def odd() -> nn.Module:
    torch.manual_seed(0)
    made = nn.ModuleList(Odd() for _ in range(4))
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(name.endswith("trained"))
    whole = nn.Module()
    whole.blocks = made
    whole.forward = lambda x: [x := block(x) for block in made][-1]
    guard_norms(whole)
    return whole


def test_weights_of_all_kinds_come_and_go() -> None:
    ours, expected = odd(), odd()
    held = [(p, p.stride()) for p in ours.parameters()]
    stream_blocks([ours], CPU, ())
    results = []
    for made in (ours, expected):
        checkpoint_blocks(made)
        for _ in range(2):
            made(torch.linspace(0, 1, 12).view(2, 6).requires_grad_()).square().sum().backward()
        results.append([block.trained.grad for block in made.blocks])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert [(len(in_ram(block)[0]), len(in_ram(block)[1])) for block in ours.blocks] == 4 * [(9, 2)]
    at_work = {id(tensor): tensor for block in ours.blocks for tensor in block.parameters()}
    assert all(p.isfinite().all() for p in at_work.values())
    assert [p.stride() for p, _ in held] == [stride for _, stride in held]


def test_what_trains_and_what_lies_outside_of_blocks_goes_to_the_device() -> None:
    pretence, gpu = Pretence(CPU), torch.device("cuda:0")
    with pretence.watched():
        made = odd()
        made.outside = nn.Linear(2, 2)
        kept = made.blocks[1].norm.weight
        trained = [block.trained for block in made.blocks]
        stream_blocks([made], gpu, [kept])
        on_device = [*trained, kept, *made.outside.parameters(), *in_ram(made)[1]]
        assert {tensor.device for tensor in on_device} == {gpu}
        inside = {id(w) for block in made.blocks for w in block.parameters()}
        assert {id(w) for w in on_device} & inside == {id(w) for w in (*trained, kept)}
        assert {tensor.device for tensor in in_ram(made)[0]} == {CPU}
        assert {w.device for w in made.blocks[0].a.parameters()} == {CPU}
        made(torch.zeros(2, 6, device=gpu))
        assert {w.device for w in made.blocks[3].a.parameters()} == {gpu}
        assert {w.device for w in made.blocks[0].a.parameters()} == {CPU}


def test_a_module_without_blocks_goes_to_the_device_whole() -> None:
    with Pretence(CPU).watched():
        layer, gpu = nn.Linear(2, 2), torch.device("cuda:0")
        stream_blocks([layer], gpu, ())
        assert layer.weight.device == gpu
        assert in_ram(layer) == ([], [])


# -- as on a GPU --------------------------------------------------------------------------


class Lane:
    """A stand-in for a GPU's stream: what is asked of it is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def wait_event(self, event: Done) -> None:
        assert event.recorded
        self.notes.append("waits")

    def record_event(self) -> Done:
        done = Done()
        done.record(self)
        return done


class Done:
    """A stand-in for its events."""

    recorded = False

    def record(self, lane: Lane) -> None:
        self.recorded = True
        lane.notes.append("records")

    def synchronize(self) -> None:
        pass


class At:
    """A stand-in for torch.cuda.stream."""

    def __init__(self, lane: Lane) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def test_copies_in_another_thread_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    work, copies = Lane(), Lane()
    monkeypatch.setattr(torch.cuda, "Event", Done)
    monkeypatch.setattr(torch.cuda, "stream", At)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: work)

    def buffer(room: Tensor) -> Any:
        return streaming._GpuBuffer(room, torch.empty_like(room), copies)  # type: ignore[arg-type]

    monkeypatch.setattr(streaming, "_Buffer", buffer)
    ours = trained(ready("text", "RAM"))
    monkeypatch.undo()
    assert_same(ours, on_the_device("text"))
    assert copies.notes == ["waits", "records"] * (len(copies.notes) // 2)
    assert len(copies.notes) > 40


# -- what is planned, and what is refused -------------------------------------------------


def test_two_blocks_and_what_is_outside_are_counted() -> None:
    bases = [tiny.parts(), tiny.parts()]
    counted = []
    for base, weights_in in zip(bases, ("RAM", "device"), strict=True):
        config = tiny.run_config("lora", checkpointing="all", weights_in=weights_in)
        with Alive(CPU) as alive:
            counted.append(watched(config, base, alive))
    ours, on_device = counted
    waiting = [tensor for module in bases[0].modules.values() for tensor in in_ram(module)[0]]
    rooms = in_ram(bases[0].denoiser)[1]
    largest = max(sum(map(nbytes, in_ram(block)[0])) for block in blocks(bases[0].denoiser))
    assert largest <= len(rooms[0]) < 1.2 * largest  # each weight begins at a round number
    in_blocks = sum(map(nbytes, waiting))
    assert ours.frozen == on_device.frozen - in_blocks + 2 * len(rooms[0])
    assert in_blocks > 0.8 * on_device.frozen
    assert ours.activations == pytest.approx(on_device.activations, rel=0.05)


def nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def test_shard_has_no_weights_in_ram() -> None:
    with pytest.raises(UnavailableError, match="cannot wait in RAM"):
        check_sharding(tiny.run_config("lora", weights_in="RAM"))
