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

from .contracts import Parts


class LongerTable(nn.Embedding):
    """nn.Embedding whose ids go on, behind its own rows, in those of `rows`, one after another."""

    rows: nn.ParameterList

    def forward(self, input: Tensor) -> Tensor:
        behind = input - self.num_embeddings
        known = super().forward(input.clamp(max=self.num_embeddings - 1))
        rows = torch.cat(list(self.rows)).to(known.dtype)
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


def _longer(table: nn.Embedding) -> LongerTable:
    if not isinstance(table, LongerTable):
        # Only the class changes: the table's own parameter and its name stay.
        table.__class__ = LongerTable
        assert isinstance(table, LongerTable)
        table.rows = nn.ParameterList()
    return table
