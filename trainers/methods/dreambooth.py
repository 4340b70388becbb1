"""DreamBooth: all weights of the denoiser learn the subject, optionally the text encoder's too.

    L = mean over instance samples of l  +  lambda * mean over class samples of l

(arXiv 2208.12242, eq. 2; the loss itself is in trainers.objective.losses.) The modules in Parts
must be private copies, since they are changed in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts import Parts, Trainable
from ..errors import UnavailableError
from ..models.architectures import DENOISER
from ..models.precision import compute_dtype
from ..optimizers.average import Average
from ..optimizers.sharded import weights_of, whole
from ..settings.methods.dreambooth import DreamBoothConfig
from ..settings.run import RunConfig
from .learned_tokens import copies, train_tokens


def prepare(parts: Parts, config: RunConfig) -> Trainable:
    """Make every weight of the denoiser and, if asked for, of the text encoders trainable."""
    own: DreamBoothConfig = config.own
    rates = {DENOISER: config.training.learning_rate}
    if own.train_text_encoder:
        trained = parts.architecture.trained_encoders(parts.text.encoders)
        rates |= dict.fromkeys(trained, config.text_rate)
    named: dict[str, nn.Parameter] = {}
    groups: list[dict[str, Any]] = []
    for name, rate in rates.items():
        weights = weights_of(parts.modules[name])
        for parameter in weights.values():
            parameter.requires_grad_()
        named |= {f"{name}.{key}": parameter for key, parameter in weights.items()}
        groups.append({"name": name, "params": list(weights.values()), "lr": rate})
    learned, more = train_tokens(parts.text, own)
    groups += more

    text = [
        parameter
        for group in groups
        if group["name"] in parts.text.encoders
        for parameter in group["params"]
    ]
    steps = _Steps(named, text, own)

    def export(copy: bool = False) -> dict[str, Tensor]:
        # No copies unless asked for where the weights are on the CPU: they may be gigabytes.
        chosen = named.values() if steps.average is None else steps.average.now()
        return {
            key: whole(tensor, parameter).to("cpu", copy=copy)
            for (key, parameter), tensor in zip(named.items(), chosen, strict=True)
        }

    return Trainable(
        groups,
        export,
        trains_text=own.trains_text,
        after_step=steps.count,
        autocast=_autocast(parts, config),
        fused_backward=own.fused_backward,
        tokens=lambda: copies(learned),
        names=tuple(named),
        state=steps.state,
        load_state=steps.load_state,
    )


class _Steps:
    """What happens after each step: the average goes on, the text encoder's training may end.

    Args:
        named: all trained weights.
        text: those of the text encoders.
    """

    def __init__(
        self, named: Mapping[str, nn.Parameter], text: list[nn.Parameter], own: DreamBoothConfig
    ) -> None:
        self.average = None
        if own.ema_decay:
            interval = own.ema_interval_steps
            self.average = Average(named.values(), own.ema_decay, interval, own.ema_on_cpu)
        self._text, self._stop = text, own.text_encoder_stop_step or math.inf
        self._done = 0

    def count(self) -> None:
        self._done += 1
        if self.average is not None:
            self.average.update()
        self._stop_text()

    def state(self) -> dict[str, Any]:
        return {"done": self._done, "average": self.average.state() if self.average else None}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._done = state["done"]
        if self.average is not None and state["average"] is None:  # another run's, without one
            self.average.begin_anew()
        elif self.average is not None:
            self.average.load_state(state["average"])
        self._stop_text()

    def _stop_text(self) -> None:
        if self._done >= self._stop:
            for parameter in self._text:
                parameter.requires_grad_(False)


def _autocast(parts: Parts, config: RunConfig) -> torch.dtype | None:
    """What fp32 weights compute in, if not fp32; bf16 weights need no autocast.

    Raises:
        UnavailableError: fp16 needs its gradients scaled, and looked over, all together.
    """
    if config.own.weights == "bf16":
        return None
    dtype = compute_dtype(config.training.precision, parts.device)
    if dtype == torch.float16 and config.own.fused_backward:
        raise UnavailableError(
            "fused_backward is not possible in fp16, which this device needs for speed.\n"
            "Turn it off, or choose precision fp32 or bf16."
        )
    return None if dtype == torch.float32 else dtype
