"""Blocks that torch compiles: the same numbers, each kind once, and nothing where it cannot be."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from torch._functorch.compilers import nop

from tests import tiny
from trainers.errors import SettingsError
from trainers.loop import train
from trainers.models import compiled
from trainers.models.checkpointing import blocks, checkpoint_blocks, guard_norms
from trainers.models.compiled import compile_blocks, compiling
from trainers.step import Job

CPU = torch.device("cpu")
TRACED = "aot_eager"  # all of it but the machine's own compiler, which takes long
# Of a gradient: rounding in another order. In bf16 much is rounded once that was rounded twice.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 0.02}


@pytest.fixture(autouse=True)
def _forgetting() -> Iterator[None]:
    with compiling():
        counters.clear()
        yield


class Block(nn.Module):
    """Adds to what it is given, in place, and is told which one it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        self.norm, self.inner = nn.LayerNorm(width), nn.Sequential(*layers)

    def forward(self, x: Tensor, options: dict[str, Any]) -> Tensor:
        place = options.get("block_index", 0)
        x += self.inner(self.norm(x)) * options["scale"]
        return x if place < 9 else -x


class Stack(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (16, 16, 16)) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(Block, widths))

    def forward(self, x: Tensor) -> Tensor:
        for place, block in enumerate(self.blocks):
            x = block(x.clone(), options={"scale": 0.5, "block_index": place})
        return x


def stack(dtype: torch.dtype = torch.float32) -> Stack:
    torch.manual_seed(0)
    made = Stack().to(dtype)
    guard_norms(made)
    return made


def results(module: nn.Module, dtype: torch.dtype = torch.float32, rows: int = 5) -> list[Tensor]:
    """The output, and the gradients of input and weights."""
    module.zero_grad()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 16, generator=generator).to(dtype).requires_grad_(True)
    y = module(x)
    (y * torch.randn(rows, 16, generator=generator).to(dtype)).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]  # type: ignore[union-attr, list-item]


def off_by(ours: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference over the largest number, of the worst tensor."""
    return max(
        float((a.float() - b.float()).abs().max() / b.float().abs().max())
        for a, b in zip(ours, expected, strict=True)
    )


@pytest.mark.parametrize(
    ("backend", "dtype", "checkpointed"),
    [
        (TRACED, torch.float32, True), (TRACED, torch.bfloat16, False),
        ("inductor", torch.float32, False), ("inductor", torch.bfloat16, True),
    ],
)  # fmt: skip
def test_compiled_blocks_give_the_same_but_for_rounding(
    backend: str, dtype: torch.dtype, checkpointed: bool
) -> None:
    expected, ours = results(stack(dtype), dtype), stack(dtype)
    assert compile_blocks(ours, CPU, backend) == 3
    if checkpointed:
        checkpoint_blocks(ours)
    assert off_by(results(ours, dtype), expected) < BOUNDS[dtype]


def test_blocks_of_a_kind_are_compiled_once_wherever_they_stand() -> None:
    ours = stack()
    compile_blocks(ours, CPU, TRACED)
    before = counters["stats"]["unique_graphs"]
    results(ours)
    # The first one's input is the stack's own, all of which have gradients here.
    assert counters["stats"]["unique_graphs"] == before + 1
    results(ours, rows=7)
    results(ours, rows=9)
    assert counters["stats"]["unique_graphs"] == before + 2  # one for any number of rows
    assert not counters["graph_break"]


def trained(method: str, settings: dict[str, Any], compile: bool) -> tuple[Job, list[float]]:
    base = tiny.parts()
    if compile:
        assert compile_blocks(base.denoiser, CPU, TRACED)
    made = tiny.job(tiny.run_config(method, learning_rate=0.1, **settings), base)
    return made, train(made)


@pytest.mark.parametrize(
    ("method", "settings"),
    [("lora", {}), ("lora", {"gradient_checkpointing": True}), ("textual_inversion", {})],
    ids=str,
)
@pytest.mark.usefixtures("damped_adamw")
def test_trainings_are_the_same_but_for_rounding(method: str, settings: dict[str, Any]) -> None:
    expected, losses = trained(method, settings, compile=False)
    ours, found = trained(method, settings, compile=True)
    assert counters["stats"]["unique_graphs"] > 1
    assert not counters["graph_break"]
    assert found == pytest.approx(losses, rel=1e-5)
    tiny.assert_near(tiny.trainable_state(ours), tiny.trainable_state(expected), atol=1e-5)


def test_without_gradients_blocks_run_as_they_are() -> None:
    ours, x = stack(), torch.ones(2, 16)
    compile_blocks(ours, CPU, TRACED)
    before = counters["stats"]["unique_graphs"]
    with torch.no_grad():
        assert torch.equal(ours(x), stack()(x))
    assert counters["stats"]["unique_graphs"] == before


def test_layers_that_widen_their_weights_are_left_out() -> None:
    base = tiny.parts(dtype=torch.float16)
    tiny.widen(base)
    whole = len(list(blocks(base.denoiser)))
    assert compile_blocks(base.denoiser, CPU, TRACED) < whole


def fails(*args: Any, **kwargs: Any) -> Any:
    raise TorchDynamoException("No compiler\nand more")


def test_where_there_is_no_compiler_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, ours = results(stack()), stack()
    monkeypatch.setattr(torch, "compile", lambda plain, **kwargs: fails)
    with caplog.at_level(logging.WARNING):
        assert compile_blocks(ours, CPU) == 0
    assert all("forward" not in vars(block) for block in ours.blocks)
    assert caplog.messages == [
        "Personalize: blocks are not compiled, since torch cannot do so here: "
        "TorchDynamoException: No compiler"
    ]
    assert off_by(results(ours), expected) == 0


def test_from_a_block_on_that_cannot_be_compiled_all_run_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, ours = results(stack()), stack()
    monkeypatch.setattr(compiled, "_failure", lambda *args: "")
    monkeypatch.setattr(torch, "compile", lambda plain, **kwargs: fails)
    with caplog.at_level(logging.WARNING):
        assert compile_blocks(ours, CPU) == 3
        assert off_by(results(ours), expected) == 0
    assert len(caplog.messages) == 1
    assert "one cannot be compiled: TorchDynamoException: No compiler" in caplog.text


def fails_backward(*args: Any) -> Any:
    raise RuntimeError("No backward\nand more")


NO_BACKWARD = aot_autograd(fw_compiler=nop, bw_compiler=fails_backward)


def test_a_backward_pass_that_cannot_be_compiled_is_found_before_a_block_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected, ours = results(stack()), stack()
    with caplog.at_level(logging.WARNING):
        assert compile_blocks(ours, CPU, NO_BACKWARD) == 0
    assert off_by(results(ours), expected) == 0
    assert "torch cannot do so here: RuntimeError: No backward" in caplog.text


@pytest.mark.parametrize("checkpointed", [False, True])
def test_from_a_block_on_whose_backward_pass_cannot_be_compiled_all_run_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, checkpointed: bool
) -> None:
    expected, ours = results(stack()), stack()
    monkeypatch.setattr(compiled, "_failure", lambda *args: "")
    with caplog.at_level(logging.WARNING):
        assert compile_blocks(ours, CPU, NO_BACKWARD) == 3
        if checkpointed:
            checkpoint_blocks(ours)
        assert off_by(results(ours), expected) == 0
    assert [text for text in caplog.messages if "Personalize" in text] == [
        "Personalize: blocks run as they are, since one cannot be compiled: "
        "RuntimeError: No backward"
    ]


def test_nothing_of_a_module_stays_afterwards() -> None:
    with compiling():
        ours = stack()
        compile_blocks(ours, CPU, TRACED)
        results(ours)
        gone = weakref.ref(ours.blocks[0].inner[0].weight)  # type: ignore[union-attr, index]
        del ours
    gc.collect()
    assert gone() is None


def test_compile_and_weights_in_ram_contradict() -> None:
    with pytest.raises(SettingsError, match="compile is on, but weights_in is 'RAM'"):
        tiny.run_config(compile=True, weights_in="RAM")
