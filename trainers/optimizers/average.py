"""An exponential moving average (EMA) of weights.

    a_n = d_n a_(n-1) + (1 - d_n) w_n        d_n = min(decay, (1 + n) / (10 + n)),  n = 1, 2, ...

The rising d_n, as in TensorFlow and diffusers' EMAModel, lets short runs forget where they began.
Written out here because EMAModel cannot keep its average on another device than the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .sharded import part_of, whole


class Average:
    """The average of some parameters, in fp32.

    Args:
        parameters: what is averaged; the average starts as a copy of them.
        device: where it is kept; None is where each parameter is.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], decay: float, device: torch.device | None = None
    ) -> None:
        self._parameters = list(parameters)
        self._decay = decay
        self.num_updates = 0
        self.values = [
            p.detach().to(device or p.device, torch.float32, copy=True) for p in self._parameters
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        self.num_updates += 1
        n = self.num_updates
        share = 1 - min(self._decay, (1 + n) / (10 + n))
        for value, parameter in zip(self.values, self._parameters, strict=True):
            value.lerp_(parameter.to(value.device, value.dtype), share)

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs; no copies but of what is shared out."""
        both = zip(self.values, self._parameters, strict=True)
        return {"num_updates": self.num_updates, "values": [whole(*one) for one in both]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave over the same parameters."""
        self.num_updates = state["num_updates"]
        rows = zip(self.values, state["values"], self._parameters, strict=True)
        for value, kept, parameter in rows:
            value.copy_(part_of(kept, parameter))
