"""Learned tokens that other methods train further (pivotal tuning, arXiv 2106.05744)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..contracts import Rows, TextSide
from ..errors import SettingsError
from ..settings.methods.dreambooth import DreamBoothConfig
from ..settings.methods.lora import LoraConfig

Learned = Mapping[str, Rows]


def train_tokens(
    text: TextSide, own: LoraConfig | DreamBoothConfig
) -> tuple[Learned, list[dict[str, Any]]]:
    """The rows of every learned token, which train from now on, and their group for the optimizer.

    Raises:
        SettingsError: they are to be trained, and there is none.
    """
    if not own.train_token:
        return {}, []
    if not text.learned:
        raise SettingsError(
            ("train_token is on, but the clip knows no learned token; allowed: off, or a clip "
             "from Train Textual Inversion or Apply Embedding",)
        )  # fmt: skip
    rows = [row.requires_grad_() for by in text.learned.values() for row in by.values()]
    # Without decay, a token that no caption has stays as it is.
    group = {"name": "tokens", "params": rows, "lr": own.token_learning_rate, "weight_decay": 0.0}
    return dict(text.learned), [group]


def copies(learned: Learned) -> dict[str, dict[str, Tensor]]:
    """Copies of rows on the CPU."""
    return {
        token: {name: row.detach().to("cpu", copy=True) for name, row in by_encoder.items()}
        for token, by_encoder in learned.items()
    }
