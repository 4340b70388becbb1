"""One training loop for the demo's three small networks, on a CPU's cores or on a GPU.

A step is a function of (seed, step) alone and all state lives in one file, so a stopped training
goes on where its last save left it.
"""

import copy
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trainers.models.precision import compute_dtype

from .muon import Muon

Batch = tuple[Tensor, ...]
DrawBatch = Callable[[torch.Generator, int], Batch]
SampleLoss = Callable[[nn.Module, Batch, torch.Generator], Tensor]


@dataclass(frozen=True)
class Plan:
    """How long and how fast one network is trained."""

    steps: int
    batch_size: int
    lr: float
    muon_lr: float = 0.0  # above 0: square convolutions learn by Muon at this rate
    warmup_steps: int = 100  # Adam's second moments settle in about this many
    decay_fraction: float = 0.25  # the last quarter falls to 0; a longer plan resumes a shorter
    ema: float = 0.998  # averages the last 500 steps
    weight_decay: float = 0.01
    save_every: int = 250
    seed: int = 0

    def pace(self, step: int) -> float:
        """The share of the full rate at a step: warm-up, plateau, straight fall to zero."""
        decay_steps = max(1.0, self.steps * self.decay_fraction)
        return min(1.0, (step + 1) / self.warmup_steps, (self.steps - step) / decay_steps)


def fit(
    model: nn.Module,
    draw_batch: DrawBatch,
    sample_loss: SampleLoss,
    plan: Plan,
    state_path: Path,
    report: Callable[[nn.Module, int], None] = lambda averaged, step: None,
) -> nn.Module:
    """Train `model` and return a copy with its averaged (EMA) weights.

    Args:
        draw_batch: makes one batch on the CPU from a generator and a size.
        sample_loss: (model, part of a batch, generator) -> losses (B,).
        state_path: holds model, average, optimizer and step; read if it exists.
        report: called with the averaged model at every save.
    """
    averaged = copy.deepcopy(model).requires_grad_(False)
    optimizers = _optimizers(model, plan)
    step = _resume(state_path, model, averaged, optimizers)
    workers = _Workers(model)
    mean_loss, started, first = 0.0, time.monotonic(), step
    while step < plan.steps:
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        batch = draw_batch(generator, plan.batch_size)
        loss = workers.backward(batch, sample_loss, generator)
        assert math.isfinite(loss), f"loss is {loss} at step {step}"
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * plan.pace(step)
            optimizer.step()
        model.zero_grad(set_to_none=True)
        _average(averaged, model, min(plan.ema, (step + 1) / (step + 10)))
        step += 1
        mean_loss = loss if step == first + 1 else 0.98 * mean_loss + 0.02 * loss
        if step % 25 == 0:
            rate = (step - first) * plan.batch_size / (time.monotonic() - started)
            print(f"step {step}/{plan.steps}  loss {mean_loss:.4f}  {rate:.1f} pictures/s")
        if step % plan.save_every == 0 or step == plan.steps:
            _save(state_path, model, averaged, optimizers, step)
            report(averaged, step)
    return averaged


def _optimizers(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    def square(weight: Tensor) -> bool:
        return plan.muon_lr > 0 and weight.ndim == 4 and weight.shape[0] == weight.shape[1]

    learning = _learning(model)
    plain = [p for p in learning if not square(p)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            plain, plan.lr, betas=(0.9, 0.99), weight_decay=plan.weight_decay, fused=True
        )
    ]
    if plan.muon_lr:
        optimizers.append(Muon([p for p in learning if square(p)], plan.muon_lr))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return optimizers


class _Workers:
    """Backward passes of a batch's parts, each on its own thread and its own core.

    One thread a part, because oneDNN's convolution backward spins at barriers between threads
    and slows down fourfold on cores it has to share. Replicas share the model's weights and have
    their own gradients. On a GPU there is one part.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        count = 1 if self.device.type == "cuda" else torch.get_num_threads()
        self.replicas = [_share_weights(model) for _ in range(count)]
        self.pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))

    def backward(self, batch: Batch, sample_loss: SampleLoss, generator: torch.Generator) -> float:
        """Leave the mean loss's gradients in the model and return that mean."""
        size = len(batch[0])
        parts = list(zip(*(t.chunk(len(self.replicas)) for t in batch), strict=True))
        seeds = torch.randint(2**62, (len(parts),), generator=generator).tolist()

        def work(replica: nn.Module, part: Batch, seed: int) -> float:
            own = torch.Generator().manual_seed(seed)
            part = tuple(t.to(self.device) for t in part)
            with autocast(self.device):
                loss = sample_loss(replica, part, own).sum() / size
            loss.backward()
            return loss.item()

        used = self.replicas[: len(parts)]
        total = sum(self.pool.map(work, used, parts, seeds))
        first, *others = [[p.grad for p in _learning(replica)] for replica in used]
        for other in others:
            torch._foreach_add_(first, other)
        for parameter, gradient in zip(_learning(self.model), first, strict=True):
            parameter.grad = gradient
        for replica in used:
            replica.zero_grad(set_to_none=True)
        return total


def autocast(device: torch.device) -> torch.autocast:
    """Half precision where the device computes in it; without the instructions it is slower."""
    dtype = compute_dtype("auto", device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _learning(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _share_weights(model: nn.Module) -> nn.Module:
    memo = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)


def _save(
    path: Path,
    model: nn.Module,
    averaged: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    step: int,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(
    path: Path, model: nn.Module, averaged: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    averaged.load_state_dict(state["averaged"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        full_lr = optimizer.param_groups[0]["full_lr"]
        optimizer.load_state_dict(saved)
        optimizer.param_groups[0]["full_lr"] = full_lr  # the plan's, should it have changed
    return int(state["step"])
