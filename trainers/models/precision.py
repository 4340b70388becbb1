"""In which dtype a model computes.

Frozen weights and activations are in the compute dtype, so no autocast is needed: each layer
computes in the dtype of its weights. Adapters and embeddings are kept in fp32; most adapters
compute in their base's dtype all the same (methods/adapters/narrow.py). There are two exceptions:
where all the weights of a model are trained in fp32, autocast narrows them for each layer; where
fp32 is computed on weights in fp16 or bf16, models.recast widens them.
"""

from __future__ import annotations

import logging

import torch
from torch.amp.grad_scaler import GradScaler

from ..errors import NonFiniteLossError, UnavailableError
from ..settings.run import RunConfig

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype that `precision` (config.PRECISIONS) means on `device`.

    Raises:
        UnavailableError: fp16 on a CPU, where it has no loss scaling and no speed.
    """
    if precision == "fp16" and device.type == "cpu":
        raise UnavailableError(
            "Precision fp16 is not possible on a CPU.\nChoose bf16, fp32 or auto."
        )
    return _automatic(device) if precision == "auto" else DTYPES[precision]


def trained_compute_dtype(
    precision: str, held_in: torch.dtype, device: torch.device
) -> torch.dtype:
    """What modules compute in whose own weights train, held in `held_in`.

    Weights in fp32 compute in fp32, which autocast may narrow. Weights in bf16 compute in bf16 if
    `precision` means that on `device`, and else in fp32, layer by layer: bf16 would be emulated on
    a card that lacks it, and fp16 has not bf16's range.

    Raises:
        UnavailableError: as `compute_dtype`.
    """
    return held_in if held_in == compute_dtype(precision, device) else torch.float32


def computes_in(config: RunConfig, device: torch.device) -> str:
    """What a run's arithmetic is in, and on what, as its facts have it.

    The card's name counts where the bits depend on it alone.
    """
    training = config.training
    dtype = compute_dtype(training.precision, device)
    if getattr(config.own, "weights", "") == "bf16":  # others may be narrowed
        dtype = trained_compute_dtype(training.precision, torch.bfloat16, device)
    named = training.deterministic and device.type == "cuda"
    return f"{dtype} on {torch.cuda.get_device_name(device) if named else device.type}"


def _automatic(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_has_bf16() else torch.float32
    return torch.float32


def _cpu_has_bf16() -> bool:
    # Without these instructions oneDNN emulates bf16, which is slower than fp32. torch has no
    # public question for them before 2.12.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def gradient_scaler(dtype: torch.dtype, device: torch.device) -> GradScaler:
    """Loss scaling, at work for fp16 alone: its gradients would round to zero without."""
    return GradScaler(device.type, enabled=dtype == torch.float16)


def lower_scale(scaler: GradScaler, step: int) -> None:
    """After the scaled gradients of a step overflowed: have smaller ones from now on.

    As GradScaler does it by itself, but without asking which process saw the overflow.

    Raises:
        NonFiniteLossError: they overflow without any scale too.
    """
    scale = scaler.get_scale() * scaler.get_backoff_factor()
    if scale < 1:
        raise NonFiniteLossError(
            f"Training: the gradients are too large for fp16 at step {step}, even with a loss "
            "scale of 1.\nUse precision bf16 or fp32, or lower learning_rate, then queue again."
        )
    scaler.update(scale)
    scaler.load_state_dict({**scaler.state_dict(), "_growth_tracker": 0})
    log.info(
        "Personalize: gradients overflow in fp16, so that step %d was skipped. It is done again "
        "with a loss scale of %g.", step, scale,
    )  # fmt: skip
