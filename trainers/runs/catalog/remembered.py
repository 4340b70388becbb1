"""What a list shows of the runs, remembered beside them: output/personalize/runs.jsonl.

So the first list after a start of the host reads no run that has not changed since. The first line
is a hash of this package and of the lines below; each of those has a run's row, and the times and
sizes it goes by. What is damaged, or was written by another version, is made again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...errors import SaveError
from ...models.architectures import ARCHITECTURES
from ..files import write_whole
from .reading import MOST_METRICS_BYTES, UnreadableError, read_bytes
from .rows import Found

RUNS_JSONL = "runs.jsonl"
ROW = b',"row":'  # no text in JSON can have it: its quotes would be escaped


def recall(parent: Path) -> dict[str, tuple[Found, bytes]]:
    """What was remembered of the runs in `parent`, by name, and each row as JSON.

    Nothing where it is not of this version or not whole.
    """
    try:
        head, _, content = read_bytes(parent / RUNS_JSONL, MOST_METRICS_BYTES).partition(b"\n")
    except (FileNotFoundError, UnreadableError):
        return {}
    return dict(map(_found, content.splitlines())) if head == _head(content) else {}


def remember(parent: Path, runs: Iterable[tuple[Found, bytes]]) -> None:
    """Keep what is known of these runs, each with its row as JSON, in place of all before."""
    lines = [
        b'{"stamps":%b%b%b}\n' % (json.dumps(found.content.stamps).encode(), ROW, row)
        for found, row in runs
    ]
    content = b"".join(lines)
    with contextlib.suppress(SaveError):  # then they are read again
        write_whole(parent / RUNS_JSONL, _head(content) + b"\n" + content)


def _found(line: bytes) -> tuple[str, tuple[Found, bytes]]:
    told: Mapping[str, Any] = json.loads(line)
    stamps = {name: (when, size) for name, (when, size) in told["stamps"].items()}
    found = Found.short(told["row"], stamps)
    return found.name, (found, line[line.index(ROW) + len(ROW) : -1])


def _head(content: bytes) -> bytes:
    return hashlib.sha256(_version() + content).hexdigest().encode()


@functools.cache
def _version() -> bytes:
    """What decides a row beside its run: this package's code, and what architectures are called."""
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    titles = {name: record.title for name, record in ARCHITECTURES.items()}
    return code + json.dumps(titles, sort_keys=True).encode()
