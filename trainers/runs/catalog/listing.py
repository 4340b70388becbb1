"""All runs, read once and looked at again only where something has changed.

A list is asked for by every page that is open, each time that a training begins, ends or has
previews, while it wants the processor: so rows stay in memory in the very bytes that are sent, a
folder is read again when its times have changed, and many that ask within a second get the same
answer. What was read outlives the host, see remembered.py.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import detail, remembered, tidy
from .names import run_names, run_path
from .reading import is_unchanged
from .rows import Found, Live, find, now

FRESH_SECONDS = 1.0  # for which an answer is given again
MOST_DETAILS = 8


class Catalog:
    """The runs in one folder; several threads may ask at once.

    Args:
        parent: the folder of all runs; it need not be there.
        titles: what the places of settings are called; see settings.py.
        remembers: whether what was read is kept on disk; see remembered.py.
    """

    def __init__(
        self, parent: Path, titles: Mapping[str, str] | None = None, remembers: bool = False
    ) -> None:
        self.parent, self._titles = parent, titles or {}
        self._lock = threading.Lock()
        self._found: dict[str, Found] = {}
        self._encoded: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._listing: tuple[tuple[str | None, int], float, bytes] | None = None
        self._details: dict[str, tuple[Any, float, bytes]] = {}
        self._remembers, self._recalled = remembers, False
        self._is_news = False  # whether there are rows that last and are not remembered yet

    # -- to look at ---------------------------------------------------------

    def listing(self, live: Live | None = None, changes: int = 0) -> bytes:
        """All runs as JSON, the last that changed first.

        {"runs": [rows], "trash": [{"run", "title", "deleted"}], "problems": [sentences]}

        Args:
            changes: how many there were that pages were told of; another number, and no earlier
                answer is given again.
        """
        with self._lock:
            key = live.run if live else None, changes
            if self._listing and self._listing[0] == key:
                if time.monotonic() - self._listing[1] < FRESH_SECONDS:
                    return self._listing[2]
            rows, problems = self._rows(live)
            encoded = b",".join(self._in_bytes(row) for row in rows)
            rest = encode({"trash": tidy.in_trash(self.parent), "problems": problems})
            content = b'{"runs":[%b],%b' % (encoded, rest[1:])
            self._listing = key, time.monotonic(), content
            return content

    def rows(self, live: Live | None = None) -> tuple[list[dict[str, Any]], list[str]]:
        """The rows of all runs, the last that changed first; and what was left out."""
        with self._lock:
            return self._rows(live)

    def row(self, name: str, live: Live | None = None) -> dict[str, Any]:
        """The row of one run.

        Raises:
            UnknownRunError: there is none of that name.
        """
        run_path(self.parent, name)
        with self._lock:
            return now(self._find(name), live, self.parent)

    def detail(self, name: str, live: Live | None = None) -> bytes:
        """One run with all that is known of it, as JSON; see detail.py.

        Raises:
            UnknownRunError: there is none of that name.
        """
        folder = run_path(self.parent, name)
        with self._lock:
            found = self._find(name)
            row = now(found, live, self.parent)
            at_work = live is not None and live.run == name
            key = found.content.stamps, row["state"], at_work
            kept = self._details.get(name)
            if kept and kept[0] == key:
                is_new = time.monotonic() - kept[1] < FRESH_SECONDS
                if is_new or (found.settled and not at_work):
                    return kept[2]
            shown = live if at_work else None
            content = encode(detail.detail(folder, found, row, shown, self._titles))
            self._details.pop(name, None)
            self._details[name] = key, time.monotonic(), content
            while len(self._details) > MOST_DETAILS:
                self._details.pop(next(iter(self._details)))
            return content

    def found(self, name: str) -> Found:
        """One run as it was read.

        Raises:
            UnknownRunError: there is none of that name.
        """
        run_path(self.parent, name)
        with self._lock:
            return self._find(name)

    # -- to keep ------------------------------------------------------------

    def forget(self, *names: str) -> None:
        """Read these runs anew, which were changed just now."""
        with self._lock:
            self._listing = None
            self._is_news |= bool(names)  # one that was deleted is not remembered either
            for name in names:
                self._found.pop(name, None)
                self._encoded.pop(name, None)
                self._details.pop(name, None)

    def _rows(self, live: Live | None) -> tuple[list[dict[str, Any]], list[str]]:
        self._recall()
        names, problems = run_names(self.parent)
        for gone in self._found.keys() - set(names):
            del self._found[gone]
            self._encoded.pop(gone, None)
            self._is_news = True
        at_work = live.run if live else None
        rows = [now(self._find(name, name == at_work), live, self.parent) for name in names]
        self._remember()
        return sorted(rows, key=lambda row: -row["changed"]), problems

    def _recall(self) -> None:
        if self._recalled or not self._remembers:
            return
        self._recalled = True
        for name, (found, row) in remembered.recall(self.parent).items():
            self._found.setdefault(name, found)
            self._encoded[name] = found.row, row

    def _remember(self) -> None:
        if self._is_news and self._remembers:
            self._is_news = False
            lasting = [found for found in self._found.values() if found.lasts]
            remembered.remember(self.parent, [(f, self._in_bytes(f.row)) for f in lasting])

    def _find(self, name: str, whole: bool = True) -> Found:
        """A run as it is now; its row alone will do where it is not asked for as a whole."""
        folder, known = self.parent / name, self._found.get(name)
        if known and known.settled and (known.is_whole or not whole):
            if is_unchanged(folder, known.content.stamps):
                return known
        found = find(folder)
        self._is_news |= found.lasts and not _is_same(known, found)
        if found.lasts and not whole:
            found = Found.short(found.row, found.content.stamps)
        self._found[name] = found
        return found

    def _in_bytes(self, row: dict[str, Any]) -> bytes:
        kept = self._encoded.get(row["run"])
        if kept is None or kept[0] is not row:
            kept = self._encoded[row["run"]] = row, encode(row)
        return kept[1]


def _is_same(known: Found | None, found: Found) -> bool:
    """Whether what is remembered of a run would be what it was."""
    if known is None or not known.lasts or known.row != found.row:
        return False
    return known.content.stamps == found.content.stamps


def encode(value: Mapping[str, Any]) -> bytes:
    """The value as JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
