"""Learned tokens that other methods train further (pivotal tuning, arXiv 2106.05744)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..contracts import Rows, TextSide
from ..errors import SettingsError

Learned = Mapping[str, Rows]


def train_tokens(text: TextSide) -> Learned:
    """The rows of every learned token; they train from now on.

    Raises:
        SettingsError: there is none.
    """
    if not text.learned:
        raise SettingsError(
            ("train_token is on, but the clip knows no learned token; allowed: off, or a clip "
             "from Train Textual Inversion or Apply Embedding",)
        )  # fmt: skip
    for rows in text.learned.values():
        for row in rows.values():
            row.requires_grad_()
    return dict(text.learned)


def token_groups(learned: Learned, rate: float) -> list[dict[str, Any]]:
    """Their group for the optimizer, if there are any."""
    rows = [row for by_encoder in learned.values() for row in by_encoder.values()]
    # Without decay, a token that no caption has stays as it is.
    return [{"name": "tokens", "params": rows, "lr": rate, "weight_decay": 0.0}] if rows else []


def copies(learned: Learned) -> dict[str, dict[str, Tensor]]:
    """Copies of rows on the CPU."""
    return {
        token: {name: row.detach().to("cpu", copy=True) for name, row in by_encoder.items()}
        for token, by_encoder in learned.items()
    }
