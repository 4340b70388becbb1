"""The rows of benchmarks.gpu as a section of docs/performance.md."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_cases import BARE, NAMES, Case

PLACE = "\n## GPU\n"  # after which, and what is said there of all of them, the rows go


class Row(NamedTuple):
    """What was measured of a case; memory in bytes, 0 where it was not.

    Attributes:
        size_px: what it was trained at; thin models train small.
        held: what tensors still took after it.
        operations: of a step, from a bare loop.
        rate: operations a second of a large matmul, from a bare loop.
    """

    case: Case
    size_px: int
    seconds: float
    peak: int
    reserved: int = 0
    held: int = 0
    operations: float = math.nan
    rate: float = math.nan


def table(rows: Sequence[Row], memory: str) -> str:
    """Ratios and shares where the bare loop of the same ran too; they are of one picture."""
    lines = [
        "| training | px | precision | s/step | x bare | of the matmul "
        f"| GB, {memory} | GB, torch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    bares = {row.case.compared_with: row for row in rows if row.case.kind == BARE}
    for row in rows:
        case = row.case
        bare_row = bares.get(case.compared_with)
        ratio = share = ""
        if bare_row:
            batch = case.settings.get("batch_size", 1)
            ratio = f"{row.seconds / batch / bare_row.seconds:.2f}"
            done = bare_row.operations * batch / row.seconds
            share = f"{100 * done / bare_row.rate:.0f} %"
        peak, reserved = (f"{num / 1e9:.1f}" if num else "" for num in (row.peak, row.reserved))
        name = f"{NAMES[case.base]} {case.title}"
        lines.append(
            f"| {name} | {row.size_px} | {case.precision} | {row.seconds:.3f} "
            f"| {ratio} | {share} | {peak} | {reserved} |"
        )
    return "\n".join(lines)


def section(stats: Mapping[str, Any], rows: Sequence[Row], notes: Sequence[str], steps: int) -> str:
    """The rows with the day, the card and the versions that they were measured with.

    Args:
        stats: what the host says of itself, which may be gone by now.
    """
    card, _, allocator = stats["devices"][0]["name"].partition(" : ")
    day = datetime.date.today()
    system = stats["system"]
    versions = {"torch": system["pytorch_version"], "ComfyUI": system["comfyui_version"]}
    versions |= {name: importlib.metadata.version(name) for name in ("diffusers", "peft")}
    if allocator:
        versions |= {"ComfyUI's allocator": allocator}
    rates = {r.case.precision: r.rate for r in rows if r.rate == r.rate}
    told = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in rates.items())
    lines = [
        f"### {card.split(maxsplit=1)[-1]}, {day.day} {day:%B %Y}",
        "",
        f"{', '.join(' '.join(version) for version in versions.items())}; {steps} steps a "
        f"row; a large matmul: {told or 'not measured'}.",
        "",
        table(rows, "resident" if card == "cpu" else "tensors"),
        *(["", *(f"- {note}" for note in notes)] if notes else []),
    ]
    return "\n".join(lines) + "\n"


def write(page: Path, text: str) -> None:
    """Puts a section in place of the one with its heading, or before the others of its kind.

    What the page says of all of them stays before them.
    """
    heading = text.split("\n", 1)[0]
    before = page.read_text(encoding="utf-8") if page.exists() else f"# Performance\n{PLACE}"
    old = re.compile(rf"^{re.escape(heading)}\n.*?(?=^###? |\Z)", re.DOTALL | re.MULTILINE)
    before = old.sub("", before)
    first, place, rest = before.partition(PLACE)
    if not place:
        first, place = before, PLACE
    heading_at = re.search(r"^###? |\Z", rest, re.MULTILINE)
    assert heading_at is not None
    told, others = rest[: heading_at.start()], rest[heading_at.start() :]
    parts = [f"{first.rstrip()}\n{place.rstrip()}", told.strip(), text.strip(), others.strip()]
    page.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
