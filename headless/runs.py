"""The runs on disk from the command line: listed, deleted, made smaller, as in the page."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import host

COMMAND = "runs"
COLUMNS = ("run", "state", "steps", "loss", "changed", "size", "title")
EPILOG = """\
What follows -- goes to ComfyUI, such as -- --output-directory PATH. A run at work or pinned stays
as it is.
"""


def main(own: Sequence[str], of_host: Sequence[str]) -> int:
    """The exit code.

    Raises:
        PersonalizeError: there is no such run, or it must stay as it is.
    """
    asked = _asked(own)
    folder = host.output_folder(host.find_comfyui(asked.comfyui), of_host) / "personalize"
    from ..trainers.runs.catalog import tidy
    from ..trainers.runs.catalog.listing import Catalog

    for name in asked.delete:
        tidy.delete(folder, name)
    for name in asked.restore:
        tidy.restore(folder, name)
    problems: list[str] = []
    freed = 0
    if asked.free:
        freed, problems = tidy.free(folder, asked.of, asked.free)
    if asked.empty_trash:
        more, left = tidy.empty_trash(folder)
        freed, problems = freed + more, [*problems, *left]
    catalog = Catalog(folder)
    if asked.json:
        print(json.dumps(json.loads(catalog.listing()), indent=1))
        for sentence in problems:
            print(sentence, file=sys.stderr)
        return int(bool(problems))
    rows, left_out = catalog.rows()
    for line in table(rows):
        print(line)
    if freed:
        print(f"{freed / 1e6:,.1f} MB freed")
    for sentence in (*left_out, *problems):
        print(sentence)
    return int(bool(problems))


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each run below a line with the columns' names, each as wide as it must be."""
    lines = [COLUMNS, *map(_cells, rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(COLUMNS))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    loss = row["last_loss"]
    title = "".join(sign if sign.isprintable() else " " for sign in row["title"])
    return (
        row["run"],
        row["state"] + " (pinned)" * row["pinned"],
        f"{row['steps']}/{row['planned_steps']}",
        "" if loss is None else f"{loss:.4f}",
        time.strftime("%Y-%m-%d %H:%M", time.localtime(row["changed"])),
        f"{sum(row['bytes'].values()) / 1e6:,.1f} MB",
        title,
    )


def _asked(own: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    asked = parser.parse_args(own)
    if bool(asked.free) != bool(asked.of):
        parser.error("--free and --of belong together: what is freed, and of which runs")
    return asked


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"personalize {COMMAND}",
        usage=f"personalize {COMMAND} [options] [-- arguments of ComfyUI]",
        description="Lists the runs on disk; the last that changed comes first.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, several = parser.add_argument, partial(parser.add_argument, metavar="RUN", action="append")
    add("--json", action="store_true", help="as JSON, with all that the page's list has")
    several("--delete", default=[], help="move this run into the trash; may be repeated")
    several("--restore", default=[], help="put it back from there")
    add("--empty-trash", action="store_true", help="delete for good what is in the trash")
    add(
        "--free", choices=("states", "previews"), action="append", default=[],
        help="delete the states or the previews of the runs that --of names; never results",
    )  # fmt: skip
    several("--of", default=[], help="a run that --free makes smaller; may be repeated")
    add("--comfyui", metavar="PATH", type=Path, help="its folder; by default that of this pack")
    return parser
