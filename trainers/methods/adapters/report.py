"""What a LoRA keeps of what it was made from, in a few lines."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .low_rank import Kept, total_residual

WORST = 3
ROUNDING = 1e-5  # of differences in fp32


def report(layers: Sequence[Kept]) -> str:
    """Layers and ranks; how much is lost, in all and where most; what could not be kept at all.

    Losses are relative Frobenius norms: of the part of the change that is lost, to all of it.
    """
    inside = [layer for layer in layers if layer.rank]
    outside = [layer for layer in layers if not layer.rank and layer.norm]
    ranks = sorted({layer.rank for layer in inside})
    listed = "no rank" if not ranks else f"rank {ranks[0]}"
    listed += f" to {ranks[-1]}" if len(ranks) > 1 else ""
    lines = [f"{len(inside)} layers, {listed}; {_percent(total_residual(layers))} is lost"]
    lossy = [layer for layer in inside if layer.residual > ROUNDING]
    if worst := sorted(lossy, key=lambda layer: -layer.residual)[:WORST]:
        most = ", ".join(f"{layer.name} {_percent(layer.residual)}" for layer in worst)
        lines.append(f"most in {most}")
    if outside:
        share = math.hypot(*(layer.lost for layer in outside)) / _norm(layers)
        largest = max(outside, key=lambda layer: layer.lost)
        lines.append(
            f"no LoRA can hold {len(outside)} of the weights, norms and biases, "
            f"{_percent(share)} of the change, such as {largest.name}"
        )
    return "\n".join(lines)


def _norm(layers: Sequence[Kept]) -> float:
    return math.hypot(*(layer.norm for layer in layers))


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share > ROUNDING else "nothing"
