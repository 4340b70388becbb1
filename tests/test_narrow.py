"""Adapters that compute in their base's narrow dtype, beside peft's own, which compute in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from tests.kinds import KINDS, adapted
from trainers.contracts import Parts
from trainers.loop import Training
from trainers.methods.adapters import narrow
from trainers.methods.adapters.variants import ADAPTER, inject
from trainers.models.architectures import DENOISER
from trainers.models.checkpointing import checkpoint_blocks, guard_adapters, guard_norms
from trainers.settings.methods.lora import LoraConfig
from trainers.step import Job

EVERYTHING = "all with convolutions"
NARROWED = {
    "lora": {},
    "not scaled": {"alpha": 8.0},
    "with dropout": {"dropout": 0.3},
    "lokr": KINDS["lokr"][0],
    "lokr of rank": KINDS["lokr of rank"][0],
    "loha": KINDS["loha"][0],
}
each_kind = pytest.mark.parametrize("settings", NARROWED.values(), ids=NARROWED)
# Of the distance from the same model in fp32 throughout, most is the base's rounding.
SLACK = 1.25


def job_of(settings: dict[str, Any], dtype: torch.dtype = torch.bfloat16, **more: Any) -> Job:
    """One whose adapters have the values of a long training."""
    made = tiny.job(
        tiny.run_config(targets=EVERYTHING, **{"rank": 8, **settings, **more}),
        tiny.parts(dtype=dtype),
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in made.trainable.parameters:
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


def as_peft_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow, "compute_narrow", lambda *args: None)


def prediction_and_gradients(base: Parts) -> list[Tensor]:
    torch.manual_seed(0)
    noisy, hidden = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32)
    size = tiny.Size(64, 64, 0, 0, 64, 64)
    texts = [{"hidden": one[None]} for one in hidden]
    torch.manual_seed(0)
    y = base.predict(noisy, torch.tensor([3, 700]), texts, [size] * 2)
    (y.float() * torch.randn(y.shape)).sum().backward()
    return [y.detach().float(), *(p.grad for p in base.denoiser.parameters() if p.requires_grad)]  # type: ignore[misc]


def off_by(ours: list[Tensor], expected: list[Tensor]) -> float:
    """The distance over the length, of all of them together."""
    pairs = list(zip(ours, expected, strict=True))
    length = sum(float(theirs.norm() ** 2) for _, theirs in pairs)
    return float((sum(float((a - b).norm() ** 2) for a, b in pairs) / length) ** 0.5)


@each_kind
def test_narrow_adapters_are_as_near_to_fp32_as_wide_ones(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    found = prediction_and_gradients(job_of(settings).parts)
    exact = prediction_and_gradients(job_of(settings, torch.float32).parts)
    as_peft_has_it(monkeypatch)
    wide = prediction_and_gradients(job_of(settings).parts)
    assert off_by(found[:1], exact[:1]) < SLACK * off_by(wide[:1], exact[:1])
    assert off_by(found[1:], exact[1:]) < SLACK * off_by(wide[1:], exact[1:]) < 0.05
    assert off_by(found[1:], wide[1:]) > 0
    assert {one.dtype for one in found} == {torch.float32}


@each_kind
def test_where_computing_is_fp32_adapters_are_pefts_own(settings: dict[str, Any]) -> None:
    base = job_of(settings, torch.float32).parts
    kinds = {type(layer) for layer in adapted(base.denoiser).values()}
    assert not kinds & {*narrow.PAIRS.values(), *narrow.MADE_WHOLE.values()}


@pytest.mark.parametrize("settings", [{"variant": "dora"}, {"initialization": "pissa"}], ids=str)
def test_what_bf16_would_round_stays_as_it_was(settings: dict[str, Any]) -> None:
    base = job_of(settings).parts
    kinds = {type(layer) for layer in adapted(base.denoiser).values()}
    assert not kinds & {*narrow.PAIRS.values(), *narrow.MADE_WHOLE.values()}


def test_text_encoders_compute_in_fp32_and_so_do_their_adapters() -> None:
    base = job_of({"train_text_encoder": True}).parts
    kinds = {type(layer) for layer in adapted(base.modules["clip_l"]).values()}
    assert not kinds & {*narrow.PAIRS.values(), *narrow.MADE_WHOLE.values()}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(24, 24), nn.Conv2d(5, 5, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)  # type: ignore[no-any-return]


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@each_kind
def test_checkpointed_blocks_have_the_same_bits(settings: dict[str, Any]) -> None:
    def gradients(checkpointed: bool) -> list[Tensor]:
        torch.manual_seed(0)
        stack = Stack().bfloat16().requires_grad_(False)
        layers = [name for name, layer in stack.named_modules() if hasattr(layer, "weight")]
        inject(stack, layers, LoraConfig(**{"rank": 4, **settings}), 1, torch.device("cpu"))
        narrow.compute_narrow(stack, ADAPTER, torch.bfloat16)
        if checkpointed:
            assert checkpoint_blocks(stack) == 3
        trained = [p for p in stack.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.data += 0.1 * torch.randn(parameter.shape)
        stack(torch.randn(2, 5, 24, 24).bfloat16()).float().square().sum().backward()
        return [parameter.grad for parameter in trained if parameter.grad is not None]

    expected = gradients(checkpointed=False)
    assert len(expected) >= 12
    assert all(torch.equal(*pair) for pair in zip(gradients(True), expected, strict=True))


class InPlace(nn.Module):
    """Reads its stream without a norm, between two changes of it, as LTX-Video's blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x += self.first(self.norm(x))
        x += self.second(x)
        x += self.first(self.norm(x))
        return x


def gradients_in_place(dtype: torch.dtype, checkpointed: bool, **settings: Any) -> Tensor:
    """Of adapters in two such blocks."""
    torch.manual_seed(0)
    stack = nn.Sequential(nn.Linear(16, 16), nn.Sequential(InPlace(), InPlace()))
    stack.requires_grad_(False).to(dtype)
    layers = [name for name, layer in stack[1].named_modules() if isinstance(layer, nn.Linear)]
    lora = LoraConfig(**{"rank": 4, **settings})
    inject(stack, [f"1.{name}" for name in layers], lora, 1, torch.device("cpu"))
    if dtype == torch.bfloat16:
        narrow.compute_narrow(stack, ADAPTER, dtype)
    trained = [p for p in stack.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data += 0.1 * torch.randn(parameter.shape)
    guard_norms(stack)
    guard_adapters(stack)
    if checkpointed:
        assert checkpoint_blocks(stack) == 2
    stack(torch.randn(8, 16).to(dtype)).float().square().sum().backward()
    return torch.cat([p.grad.flatten().float() for p in trained if p.grad is not None])


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        (torch.bfloat16, {}),
        (torch.bfloat16, {"variant": "lokr"}),
        (torch.float32, {"initialization": "pissa", "adapter_weights": "bf16"}),
    ],
    ids=["lora", "lokr", "pissa in bf16"],
)
def test_adapters_keep_what_changes_behind_them(
    dtype: torch.dtype, settings: dict[str, Any], checkpointed: bool
) -> None:
    wide = {**settings, "adapter_weights": "fp32"}
    expected = gradients_in_place(torch.float32, False, **wide)
    found = gradients_in_place(dtype, checkpointed, **settings)
    assert (found - expected).norm() < 0.1 * expected.norm()


@each_kind
def test_base_alone_is_the_bare_base(settings: dict[str, Any]) -> None:
    made, bare = job_of(settings), tiny.parts(dtype=torch.bfloat16)
    bare.denoiser.requires_grad_(True)
    assert made.trainable.base_model is not None
    with_adapters = prediction_and_gradients(made.parts)[0]
    with made.trainable.base_model():
        without = made.parts.predict(
            torch.zeros(1, 4, 8, 8), torch.tensor([3]), [{"hidden": torch.zeros(1, 77, 32)}], []
        )
    expected = bare.predict(
        torch.zeros(1, 4, 8, 8), torch.tensor([3]), [{"hidden": torch.zeros(1, 77, 32)}], []
    )
    assert torch.equal(without, expected)
    assert off_by([with_adapters], prediction_and_gradients(bare)[:1]) > 0.02


class Casts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the casts between bf16 and fp32 of what is no scalar."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and made.numel() > 2:
            self.count += made.dtype != args[0].dtype
        return made


def test_a_step_casts_no_activation_for_its_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    def casts(made: Job) -> int:
        training = Training(made)
        training.step()
        with Casts() as seen:
            training.step()
        return seen.count

    ours = casts(job_of({}))
    assert ours <= 5  # noisy latents, texts, the prediction and its gradient
    as_peft_has_it(monkeypatch)
    assert casts(job_of({})) >= 4 * len(adapted(tiny.job(tiny.run_config()).parts.denoiser))


def test_updates_smaller_than_bf16_can_hold_add_up() -> None:
    made = job_of({}, learning_rate=1e-6, steps=4, weight_decay=0.0)
    before = tiny.trainable_state(made)
    training = Training(made)
    for _ in range(4):
        training.step()
    after = tiny.trainable_state(made)
    moved = torch.cat([(after[name] - was).flatten() for name, was in before.items()])
    assert {one.dtype for one in after.values()} == {torch.float32}
    assert 1e-6 < float(moved.abs().mean()) < 4.1e-6


def test_copies_are_those_of_the_step_and_leave_with_the_module() -> None:
    made = job_of({})
    layer: nn.Module = next(iter(adapted(made.parts.modules[DENOISER]).values()))
    assert layer.narrow is None
    Training(made).step()
    down, up = layer.narrow
    assert (down.dtype, up.dtype) == (torch.bfloat16, torch.bfloat16)
