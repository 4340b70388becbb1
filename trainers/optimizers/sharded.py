"""A denoiser whose weights no process holds alone: torch's fully_shard (FSDP2), block by block.

Each process keeps one part of every weight of a block. All of them put a block together when it
runs, forward and backward, and let it go again, so a device holds its part of the whole and one
or two blocks. What lies outside of blocks, adapters and text encoders are whole everywhere.

The optimizer sees parts of weights as plain tensors. They and what belongs to them become whole in
states and results, so that any number of processes can read those.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnavailableError
from ..models.checkpointing import blocks, run_on_copies
from ..settings.memory import RAM
from ..settings.run import RunConfig
from .processes import Processes

log = logging.getLogger(__name__)

OPTIMIZERS = ("adamw",)  # whose state is plain tensors of the weight's shape


def check_sharding(config: RunConfig) -> None:
    """See that a run can share its weights out.

    Raises:
        UnavailableError: it cannot, or torch has no FSDP2.
    """
    if not _has_fsdp2():
        raise UnavailableError(
            f"--shard needs a torch whose fully_shard (FSDP2) can leave parameters out and add "
            f"gradients, such as 2.11; this is {torch.__version__}.\nUpdate torch, or leave "
            "--shard out."
        )
    if config.method == "textual_inversion":
        raise UnavailableError(
            "--shard shares the denoiser's weights out for LoRA and DreamBooth; Textual Inversion "
            "trains without.\nLeave --shard out."
        )
    if config.memory.weights_in == RAM:
        raise UnavailableError(
            "--shard keeps a part of every weight on each device, so they cannot wait in RAM.\nSet "
            "weights_in to auto or device, or leave --shard out: then each process has all weights "
            "in RAM."
        )
    if config.training.compile:
        raise UnavailableError(
            "--shard cannot be used with compile, since a block's weights come and go.\nTurn "
            "compile off, or leave --shard out."
        )
    if not config.changes_weights:
        return
    own, optimizer = config.own, config.training.optimizer
    problems = [
        *(["weights bf16"] if own.weights == "bf16" else []),
        *(["fused_backward"] if own.fused_backward else []),
        *([f"optimizer {optimizer}"] if optimizer not in OPTIMIZERS else []),
    ]
    if problems:
        raise UnavailableError(
            f"--shard cannot share out a DreamBooth with {', '.join(problems)}.\nIt trains with "
            f"weights fp32, which the processes have in parts, and optimizer "
            f"{' or '.join(OPTIMIZERS)}, without fused_backward: set those."
        )


def _has_fsdp2() -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed import fsdp

    return hasattr(getattr(fsdp, "FSDPModule", None), "set_force_sum_reduction_for_comms")


def shard(module: nn.Module, processes: Processes, whole: Collection[nn.Parameter] = ()) -> None:
    """Let this process keep its part of the weights of each block, on its device; in place.

    Args:
        whole: parameters that stay as they are, such as adapters.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.count,))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    # torch shares out neither of the last two.
    kept = {*whole, *(p for p in module.parameters() if p.ndim == 0 or not p.is_contiguous())}
    for block in blocks(module):
        run_on_copies(block)  # torch allows no change of what a sharded block is given
        sharded = fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=kept)
        # Each process divides its loss by the samples of all, so gradients are added.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    rest = {parameter for parameter in module.parameters() if not is_shared_out(parameter)}
    # The module too, though it shares nothing out itself: it lets blocks come one ahead.
    fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=rest)
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if not is_shared_out(tensor):
            tensor.data = tensor.data.to(processes.device)
    if processes.is_first:
        _say_size(module, processes)


def _say_size(module: nn.Module, processes: Processes) -> None:
    every = [(p, p.numel() * p.element_size() / 1e9) for p in module.parameters()]
    own = sum(size / processes.count if is_shared_out(p) else size for p, size in every)
    log.info(
        "Personalize: each of %d processes keeps %.3g GB of the denoiser's %.3g GB; blocks come "
        "together when they run.", processes.count, own, sum(size for _, size in every),
    )  # fmt: skip


def is_shared_out(tensor: Any) -> bool:
    """Whether a module's weight is one of which each process has a part."""
    return hasattr(tensor, "device_mesh")  # not every build of torch has the class


def put_together(weight: Tensor) -> Tensor:
    """A module's weight as a plain tensor, outside of its block's run; all ask together."""
    shared_out: Any = weight.detach()
    return shared_out.full_tensor() if is_shared_out(weight) else weight


class Part(nn.Parameter):
    """What this process has of a weight, for the optimizer; a plain tensor.

    Attributes:
        of: the weight as the module has it, a DTensor.
    """

    of: Any

    def __new__(cls, of: Any) -> Part:
        made: Part = super().__new__(cls, of.detach().to_local())
        made.of = of.requires_grad_()
        return made

    def take_gradient(self) -> None:
        """What this process has of the sum of the gradients, from the module's weight."""
        gradient, self.of.grad = self.of.grad, None
        self.grad = gradient.to_local() if is_shared_out(gradient) else None

    def whole(self, held: Tensor, wanted: bool = True) -> Tensor:
        """A tensor on the CPU, of which `held` is what this process has; all ask together.

        Args:
            wanted: whether this process wants it: if not, it is not copied from the device.
        """
        from torch.distributed.tensor import DTensor

        of = self.of
        held = held.detach().to(of.device)
        made = DTensor.from_local(
            held, of.device_mesh, of.placements, run_check=False, shape=of.shape,
            stride=of.stride(),
        )  # fmt: skip
        full: Tensor = made.full_tensor()
        return full.cpu() if wanted else full

    def part(self, whole: Tensor) -> Tensor:
        """What this process has of a whole tensor."""
        mesh = self.of.device_mesh
        parts, rank = whole.chunk(mesh.size()), mesh.get_local_rank()  # as torch shares out
        return parts[rank].clone() if rank < len(parts) else whole[:0].clone()


def weights_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's parameters by name: those that are shared out as what this process has."""
    return {
        name: Part(parameter) if is_shared_out(parameter) else parameter
        for name, parameter in module.named_parameters()
    }


def whole(held: Tensor, parameter: Tensor) -> Tensor:
    """What belongs to a parameter, such as its average, made whole where it is shared out."""
    return parameter.whole(held) if isinstance(parameter, Part) else held.detach()


def for_state(held: Tensor, parameter: Tensor) -> Tensor:
    """As `whole`, where the first process alone is to have it; the others get what they gave."""
    if isinstance(parameter, Part) and parameter.of.device_mesh.get_local_rank():
        parameter.whole(held, wanted=False)
        return held.detach()
    return whole(held, parameter)


def part_of(kept: Tensor, parameter: Tensor) -> Tensor:
    """The reverse of `whole`."""
    return parameter.part(kept) if isinstance(parameter, Part) else kept


def optimizer_state(
    state: Mapping[str, Any], parameters: Iterable[Tensor], change: Callable[[Tensor, Part], Tensor]
) -> dict[str, Any]:
    """An optimizer's state_dict with what it has a number of for each of a weight's changed.

    Args:
        change: `for_state` or `part_of`.
    """
    parts = {n: p for n, p in enumerate(parameters) if isinstance(p, Part)}
    if not parts:
        return dict(state)
    own = dict(state["state"])
    for number, parameter in parts.items():
        if number in own:
            shapes = (parameter.shape, parameter.of.shape)
            own[number] = {
                key: change(value, parameter) if getattr(value, "shape", None) in shapes else value
                for key, value in own[number].items()
            }
    return {**state, "state": own}


def clip_parts(parameters: Iterable[Tensor], max_norm: float, processes: Processes) -> Tensor:
    """As torch's clip_grad_norm_, where some of the gradients are parts. Scalar."""
    parts: list[Tensor] = []
    others: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None:
            (parts if isinstance(parameter, Part) else others).append(parameter.grad)
    norm = torch.nn.utils.get_total_norm
    squared = processes.total(norm(parts).square().item())
    length = norm(others).square().cpu().add(squared).sqrt()
    if math.isfinite(max_norm):
        factor = min(1.0, max_norm / (length.item() + 1e-6))
        torch._foreach_mul_([*parts, *others], factor)
    return length
