"""An optimizer's state read again, to the bit and where it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """As the optimizer's own load_state_dict, which gives what it loads the parameters' dtype.

    Some keep narrower numbers, and go on otherwise from wide ones; paged ones would be in the GPU's
    memory for good.
    """
    if getattr(optimizer, "is_paged", False):
        _load_paged(optimizer, state)
        return
    optimizer.load_state_dict(state)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, kept in state.get("state", {}).items():
        loaded = optimizer.state[parameters[number]]
        for key, value in kept.items():
            if isinstance(value, Tensor) and loaded[key].dtype != value.dtype:
                loaded[key] = value.to(loaded[key].device)


def _load_paged(optimizer: Any, state: dict[str, Any]) -> None:
    """bitsandbytes' paged states, into pages of their own."""
    optimizer.load_state_dict(state, move_to_device=False)
    for parameter, loaded in optimizer.state.items():
        for key in ("state1", "state2"):
            if key not in loaded:
                continue
            page = optimizer.get_state_buffer(parameter, dtype=loaded[key].dtype)
            if parameter.is_cuda:
                torch.cuda.synchronize(parameter.device)  # it is filled with zeros by then
            loaded[key] = page.copy_(loaded[key])
    optimizer.to_gpu()  # the rest
