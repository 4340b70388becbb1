"""Muon for matrices, AdamW for all else: two of torch's optimizers as one.

    M_t = 0.95 M_(t-1) + 0.05 G_t       W_t = W_(t-1) - 0.2 sqrt(max(A, B)) lr orthogonal(M_t)

with an update of the length of AdamW's (arXiv 2502.16982), so that AdamW's rates serve.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UnavailableError

TOKENS = (
    "tokens"  # the group whose matrices are rows of a table, which is nothing to make orthogonal
)


class MuonAndAdamW(torch.optim.Optimizer):
    """Updates parameters of two dimensions by Muon, others and learned tokens by AdamW.

    Args:
        groups: as for any optimizer; each with its "lr", which schedules may change.

    Raises:
        UnavailableError: torch has no Muon.
    """

    def __init__(self, groups: list[dict[str, Any]], weight_decay: float) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise UnavailableError(
                f"Optimizer 'muon' needs torch 2.9 or newer; this is {torch.__version__}.\n"
                "Update torch, or choose 'adamw'."
            )
        # Each group has its own rate; a missing one for all breaks the polynomial schedule.
        super().__init__(groups, {"lr": 1e-3, "weight_decay": weight_decay})
        self._muon = torch.optim.Muon(self._split(True), adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW(self._split(False), fused=True)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update what has a gradient."""
        assert closure is None, "no optimizer here computes the loss again"
        inside: tuple[Any, ...] = (self._muon, self._adamw)
        for optimizer in inside:
            for group, own in zip(optimizer.param_groups, self.param_groups, strict=True):
                group["lr"] = own["lr"]
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """All that a later `load_state_dict` needs to go on in the same way."""
        rates = [group["lr"] for group in self.param_groups]
        states = {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}
        return {"rates": rates, **states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, over the same parameters in the same order."""
        for group, rate in zip(self.param_groups, state["rates"], strict=True):
            group["lr"] = rate
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])

    def _split(self, matrices: bool) -> list[dict[str, Any]]:
        return [
            {
                "params": [p for p in group["params"] if _is_matrix(p, group) == matrices],
                "lr": group["lr"],
                "weight_decay": group["weight_decay"],
            }
            for group in self.param_groups
        ]


def _is_matrix(parameter: Tensor, group: dict[str, Any]) -> bool:
    return parameter.ndim == 2 and group.get("name") != TOKENS
