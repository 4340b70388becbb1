"""A text encoder's embedding table with learned rows behind it.

    e(id) = W[id]               id <  V    the vocabulary, frozen
          = R[id - V]           id >= V    rows of learned tokens, fp32

W and R are tensors of their own. So a gradient, an optimizer's state or an update of R never
touches the vocabulary, and nothing has to be put back after a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts import Parts
from ..errors import SettingsError
from ..models.precision import computes_in


class LongerTable(nn.Embedding):
    """nn.Embedding whose ids go on, behind its own rows, in those of `rows`, one after another."""

    rows: nn.ParameterList

    def forward(self, input: Tensor) -> Tensor:
        behind = input - self.num_embeddings
        known = super().forward(input.clamp(max=self.num_embeddings - 1))
        rows = torch.cat(list(self.rows)).to(computes_in(self))
        learned = nn.functional.embedding(behind.clamp(min=0), rows)
        return torch.where((behind >= 0)[..., None], learned, known)


def table_of(encoder: nn.Module) -> nn.Embedding:
    """The table in which a text encoder looks up token ids."""
    getter: Any = encoder.get_input_embeddings
    table: nn.Embedding = getter()
    return table


def add_token(parts: Parts, token: str, rows: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Teach `parts` a token: its rows, frozen, by text encoder.

    Args:
        rows: (vectors, D) for each text encoder; copied.
    """
    parameters: dict[str, nn.Parameter] = {}
    ids = {}
    for name, start in rows.items():
        table = _longer(table_of(parts.modules[name]))
        copied = start.detach().to(parts.device, torch.float32, copy=True)
        first = table.num_embeddings + sum(others.shape[0] for others in table.rows)
        parameters[name] = nn.Parameter(copied, requires_grad=False)
        table.rows.append(parameters[name])
        ids[name] = tuple(range(first, first + len(copied)))
    parts.learned[token] = ids
    return parameters


def rows_of(parts: Parts, token: str) -> dict[str, nn.Parameter]:
    """The rows of a learned token by text encoder."""
    found = {}
    for name, ids in parts.learned[token].items():
        table = _longer(table_of(parts.modules[name]))
        first = table.num_embeddings
        for rows in table.rows:
            if first == ids[0]:
                found[name] = rows
            first += rows.shape[0]
    return found


Learned = Mapping[str, Mapping[str, nn.Parameter]]  # rows by token, by text encoder


def trained_tokens(parts: Parts) -> Learned:
    """The rows of every learned token; they train from now on (pivotal tuning).

    Raises:
        SettingsError: there is none.
    """
    if not parts.learned:
        raise SettingsError(
            ("train_token is on, but the clip knows no learned token; allowed: off, or a clip "
             "from Train Textual Inversion or Apply Embedding",)
        )  # fmt: skip
    learned = {token: rows_of(parts, token) for token in parts.learned}
    for by_encoder in learned.values():
        for row in by_encoder.values():
            row.requires_grad_()
    return learned


def token_groups(learned: Learned, rate: float) -> list[dict[str, Any]]:
    """Their group for the optimizer, if there are any."""
    rows = [row for by_encoder in learned.values() for row in by_encoder.values()]
    # Without decay, a token that no caption has stays as it is.
    return [{"name": "tokens", "params": rows, "lr": rate, "weight_decay": 0.0}] if rows else []


def kept(learned: Learned) -> dict[str, dict[str, Tensor]]:
    """Copies of rows on the CPU."""
    return {
        token: {name: row.detach().to("cpu", copy=True) for name, row in by_encoder.items()}
        for token, by_encoder in learned.items()
    }


def own_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's parameters by name, without the rows of learned tokens."""
    rows = {
        id(row)
        for table in module.modules()
        if isinstance(table, LongerTable)
        for row in table.rows
    }
    return {key: p for key, p in module.named_parameters() if id(p) not in rows}


def _longer(table: nn.Embedding) -> LongerTable:
    if not isinstance(table, LongerTable):
        # Only the class changes: the table's own parameter and its name stay.
        table.__class__ = LongerTable
        assert isinstance(table, LongerTable)
        table.rows = nn.ParameterList()
    return table
