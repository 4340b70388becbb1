"""The training loop. It knows neither model nor method: batch, noise, predict, loss, step.

All it needs is in a Job; all it changes is the trainable parameters. Randomness of step s and
micro-batch m comes from (seed, s, m) alone, so any step can be made again.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .contracts import Parts, Prompt, Text
from .data.batches import batch_plan, check_all_have_data, num_steps, say_batch
from .data.examples import Examples
from .data.prior import teach
from .data.validation import check_watched
from .errors import NonFiniteLossError, ProcessesError
from .methods import METHODS
from .methods.adapters.pissa import starts
from .models.deterministic import deterministic
from .models.precision import gradient_scaler, lower_scale
from .models.tread import make_router
from .objective.losses import batch_loss
from .objective.timesteps import check_objective
from .optimizers.factory import clip_gradients, make_optimizer, make_schedule, sum_gradients
from .optimizers.processes import ALONE, Processes
from .optimizers.rates import rate_in_use
from .optimizers.schedule_free import hand_out_average
from .optimizers.sharded import Part, check_sharding, for_state, optimizer_state, part_of, shard
from .optimizers.states import load_state
from .settings.run import RunConfig
from .settings.validation import BEST
from .step import (
    Job,
    evaluating,
    losses_and_weights,
    make_ready,
    predict,
    private_random_state,
    trained_prompts,
    validation_loss,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What one optimizer step came to.

    Attributes:
        learning_rate: as the schedule has it; what the optimizer found, where it finds its own.
        validation: the loss of the held-out pictures after it, if they were looked at.
    """

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    validation: float | None = None

    def as_row(self) -> dict[str, Any]:
        """As metrics.jsonl has it."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


@dataclass(frozen=True)
class Best:
    """Where the held-out pictures had their lowest loss, and what was learned by then.

    Attributes:
        since: validations since then.
        tensors: copies, as `Trainable.export` gives them; and learned tokens: all None unless the
            run hands out its best step.
    """

    step: int
    loss: float
    since: int
    tensors: dict[str, Tensor] | None
    tokens: dict[str, dict[str, Tensor]] | None


def make_job(
    parts: Parts,
    examples: Examples,
    encoded: Mapping[Prompt, Text] | None,
    config: RunConfig,
    held_out: Examples | None = None,
    processes: Processes = ALONE,
) -> Job:
    """Let the run's method prepare `parts` for training; see Job.

    Raises:
        SettingsError: the run asks for the best step, but no picture is watched; or for what means
            nothing to this model.
        UnsupportedModelError: tokens are to skip blocks, but cannot in this model.
    """
    check_objective(config.objective, parts.objective)
    check_watched(config.validation, held_out is not None and not config.validation.held_out)
    ratio, has_controls = config.training.tread_selection_ratio, bool(examples.controls)
    router = make_router(ratio, parts.denoiser, has_controls)
    if processes.shard:
        check_sharding(config)
    if processes.shard and config.changes_weights:
        shard(parts.denoiser, processes)
    trainable = METHODS[config.method](parts, config)
    make_ready(parts, config)
    if processes.shard and not config.changes_weights:
        shard(parts.denoiser, processes, [*trainable.parameters, *starts(parts.denoiser)])
    prompts = trained_prompts(trainable, examples, held_out, config)
    return Job(parts, trainable, examples, encoded, config, prompts, held_out, processes, router)


def with_teacher(job: Job, report: Callable[[int, int], None] = lambda done, total: None) -> Job:
    """The job with class samples from its own, still untrained model; see trainers.data.prior.

    Args:
        report: called after each sample with how many are done, of how many.
    """
    with evaluating(job):  # without dropout, an adapter has changed nothing yet
        examples = teach(
            functools.partial(predict, job), job.parts.objective, job.examples,
            job.config.objective, job.config.training.seed, report, job.processes,
        )  # fmt: skip
    return dataclasses.replace(job, examples=examples)


class Training:
    """A job under way: step by step, with a state between two steps that can be kept.

    Whoever goes on from `state` gets the same numbers as one who was never stopped: bit for bit on
    one CPU, and on one GPU where the run is deterministic.

    Attributes:
        done: optimizer steps so far.
        total: optimizer steps of the whole run.
        best: the best step so far, if pictures are held out.
    """

    def __init__(self, job: Job) -> None:
        training, trainable, processes = job.config.training, job.trainable, job.processes
        self._job = job
        self._plan = batch_plan(job.examples, training, processes.count)
        check_all_have_data(self._plan, processes.count)
        say_batch(self._plan, training, processes)
        self.done, self.total = 0, num_steps(self._plan, training)
        self._optimizer = make_optimizer(
            trainable.param_groups, training, trainable.fused_backward, processes
        )
        hand_out_average(trainable, self._optimizer)
        self._schedule = make_schedule(self._optimizer, training, self.total)
        dtype = trainable.autocast or job.parts.dtype
        self._scaler = gradient_scaler(dtype, job.parts.device)
        self.best: Best | None = None
        self._together = False

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return self._job.trainable.parameters

    def step(self) -> Progress:
        """One optimizer step.

        Raises:
            NonFiniteLossError: the loss or a gradient is NaN or infinite.
            UnavailableError: it is to be deterministic, which is not possible here.
        """
        if not self._together:
            self._check_together()
        processes, device = self._job.processes, self._job.parts.device
        with deterministic(self._job.config.training.deterministic, device):
            with private_random_state(device), processes.sharing_out():
                updated = self._update(self._backward())
                while updated is None:  # the same step again, with a lower scale
                    updated = self._update(self._backward())
            loss, grad_norm, learning_rate = updated
            self.done += 1
            validation = self._validate()
        return Progress(self.done, self.total, loss, learning_rate, grad_norm, validation)

    @property
    def is_shared_out(self) -> bool:
        """Whether each process trains parts of weights alone."""
        return any(isinstance(parameter, Part) for parameter in self.parameters)

    @property
    def has_ended(self) -> bool:
        """Whether all steps are done, or patience is at its end."""
        patience = self._job.config.validation.patience
        tired = patience and self.best is not None and self.best.since >= patience
        return self.done >= self.total or bool(tired)

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs; its tensors are those of the training, not copies.

        Processes that have parts of weights must ask together; the first has it whole.
        """
        return {
            **self.circumstances(),
            "parameters": [for_state(parameter, parameter) for parameter in self.parameters],
            "method": self._job.trainable.state(),
            "best": vars(self.best) if self.best else None,
        }

    def circumstances(self) -> dict[str, Any]:
        """The part of `state` that settings decide from the start."""
        return {
            "step": self.done,
            "batch_size": self._plan.batch_size,
            "optimizer": optimizer_state(self._optimizer.state_dict(), self.parameters, for_state),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def learned(self) -> dict[str, Any]:
        """What a result of this step needs beside `state`: see runs/kept/steps.py."""
        trainable = self._job.trainable
        if trainable.names:
            return {"names": list(trainable.names), "tokens": trainable.tokens()}
        if self._job.processes.shard:  # some kinds look at weights that no process has alone
            return {}
        return {"tensors": trainable.export(), "tokens": trainable.tokens()}

    def rates(self, step: int) -> list[float]:
        """What the schedule gives each group of the optimizer after so many steps."""
        schedule: Any = self._schedule
        pairs = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        return [base * factor(step) for base, factor in pairs]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave in a training of the same job.

        Another number of processes goes on with the batches that the run has, if each of them gets
        a part of those.
        """
        trainable = self._job.trainable
        self._keep_batches(state.get("batch_size", self._job.config.training.batch_size))
        with torch.no_grad():
            for parameter, kept in zip(trainable.parameters, state["parameters"], strict=True):
                parameter.copy_(part_of(kept, parameter))
        of_optimizer = optimizer_state(state["optimizer"], self.parameters, part_of)
        load_state(self._optimizer, of_optimizer)
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        trainable.load_state(state["method"])
        self.best = Best(**state["best"]) if state["best"] else None
        self.done = state["step"]

    def _keep_batches(self, batch_size: int) -> None:
        job, training = self._job, self._job.config.training
        kept = dataclasses.replace(self._plan, batch_size=batch_size)
        if batch_size == self._plan.batch_size:
            return
        if kept.largest_batch < job.processes.count:
            log.warning(
                "Personalize: until now %d pictures made a batch, which is too few for %d "
                "processes. From here on it is %d.",
                batch_size, job.processes.count, self._plan.batch_size,
            )  # fmt: skip
            return
        self._plan, self.total = kept, num_steps(kept, training)
        self._schedule = make_schedule(self._optimizer, training, self.total)
        say_batch(kept, training, job.processes)

    def _validate(self) -> float | None:
        """The loss of the held-out pictures, if it is time for it; the best step is remembered."""
        job, settings = self._job, self._job.config.validation
        due = self.done % settings.validate_every == 0 or self.done == self.total
        if job.held_out is None or not due:
            return None
        loss = validation_loss(job)
        if self.best is not None and loss >= self.best.loss:
            self.best = dataclasses.replace(self.best, since=self.best.since + 1)
        else:
            tensors = tokens = None
            if settings.hand_out == BEST:
                self.best = None  # its numbers leave before others come
                tensors = job.trainable.export(copy=True)
                tokens = job.trainable.tokens()
            self.best = Best(self.done, loss, 0, tensors, tokens)
        return loss

    def _check_together(self) -> None:
        """See that all processes begin at one step with the same weights.

        Raises:
            ProcessesError: one has read another state, or has other numbers to begin with.
        """
        processes = self._job.processes
        if processes.count > 1:
            alike = (p for p in self.parameters if not isinstance(p, Part))
            weights = sum(p.detach().double().sum().item() for p in alike)
            if not processes.agree(self.done, self.total, weights):
                raise ProcessesError(
                    f"Several processes: they do not begin alike. This one is at step {self.done} "
                    f"of {self.total}, with weights that add up to {weights}.\nLet all of them see "
                    "the same files, the run's folder too, with the same versions of all packages."
                )
        self._together = True

    def _backward(self) -> Tensor:
        """Gradients of one step in the parameters; its loss, of this process. Scalar fp32."""
        job, trainable = self._job, self._job.trainable
        total_loss = torch.zeros((), device=job.parts.device)
        parts = self._losses()
        if trainable.fused_backward:  # the update is in the backward pass, of which there is one
            parts = iter([sum(parts, total_loss)])
        for part in parts:
            total_loss = total_loss + part.detach()
            if trainable.fused_backward:
                self._told(total_loss, total_loss)
            if part.requires_grad:  # else no prompt of these has a learned token
                self._scaler.scale(part).backward()  # type: ignore[no-untyped-call]
        sum_gradients(self._optimizer, trainable.parameters, job.processes)
        return total_loss

    def _losses(self) -> Iterator[Tensor]:
        """What this process adds to the loss of a step, in parts that fit a forward pass."""
        job, plan, training = self._job, self._plan, self._job.config.training
        rank, count = job.processes.rank, job.processes.count
        micro_batches = plan.step(self.done, training.gradient_accumulation)
        num_instances = sum(plan.num_instances(pictures) for pictures in micro_batches)
        for micro, pictures in enumerate(micro_batches):
            for share in plan.shares(pictures, training.batch_size, rank, count):
                part = losses_and_weights(job, pictures, self.done, micro, share)
                yield batch_loss(*part, num_instances)

    def _told(self, loss: Tensor, grad_norm: Tensor) -> tuple[float, float]:
        """The loss of all processes together, and the length of the gradients.

        A loss that is not finite ends all of them. A GPU is waited for: once for both numbers.
        """
        own, length = torch.stack([loss, grad_norm.to(loss)]).tolist()
        number = self._job.processes.total(own)
        if not math.isfinite(number):
            raise NonFiniteLossError(
                f"Training: the loss is {number} at step {self.done + 1}; it must be a finite "
                "number.\nLower learning_rate (or use precision fp32), then queue again."
            )
        return number, length

    def _update(self, loss: Tensor) -> tuple[float, float, float] | None:
        """Use the gradients up; the loss, their length before clipping, and the learning rate.

        None if they overflowed in fp16: then nothing has changed but the scale.
        """
        training, trainable = self._job.config.training, self._job.trainable
        self._scaler.unscale_(self._optimizer)
        grad_norm = clip_gradients(
            self._optimizer, self.parameters, training.max_grad_norm, self._job.processes
        )
        number, length = self._told(loss, grad_norm)
        # It is of the gradients of all processes, so all of them skip a step together.
        if not math.isfinite(length) and self._scaler.is_enabled():
            self._optimizer.zero_grad(set_to_none=True)
            lower_scale(self._scaler, self.done + 1)
            return None
        if not math.isfinite(length):
            raise NonFiniteLossError(
                f"Training: the gradients are not finite at step {self.done + 1}; their length is "
                f"{length}.\nLower learning_rate (or use precision fp32), then queue again."
            )
        self._scaler.step(self._optimizer)
        learning_rate = rate_in_use(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        trainable.after_step()
        return number, length, learning_rate


def train(job: Job, report: Callable[[Progress], None] = lambda progress: None) -> list[float]:
    """Train from the first to the last step and return the loss of every step.

    Args:
        report: called after every step; what it raises ends the run.

    Raises:
        NonFiniteLossError: at the first loss that is NaN or infinite.
    """
    training = Training(job)
    losses = []
    while not training.has_ended:
        progress = training.step()
        losses.append(progress.loss)
        report(progress)
    return losses
