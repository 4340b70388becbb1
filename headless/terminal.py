"""What a person at a terminal, or a log, sees of a training."""

from __future__ import annotations

import sys
import time
from typing import Any

LOG_SECONDS = 30.0  # between two lines about steps, where a bar cannot be drawn


class Terminal:
    """A bar with the loss, and a line for all else that a node would show in its body.

    Attributes:
        is_shown: of several processes that train together, one speaks.
    """

    def __init__(self) -> None:
        self.is_shown = True
        self._bar: Any = None
        self._last = ""
        self._logged_at = -LOG_SECONDS

    def say(self, text: str) -> None:
        """One line that a node shows; steps go with the bar."""
        if text.startswith("step "):
            self._steps(text)
        elif "\n" not in text and text != self._last:  # errors are told at the end
            self.line(text)
        self._last = text

    def count(self, done: int, total: int) -> None:
        """How far the running node is."""
        if not (sys.stderr.isatty() and self.is_shown):
            return
        if self._bar is None or self._bar.total != total or done < self._bar.n:
            from tqdm import tqdm

            self.close()
            self._bar = tqdm(total=total, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)
        if done == total:
            self.close()

    def line(self, text: str) -> None:
        """A line of its own."""
        if not self.is_shown:
            return
        if self._bar is not None:
            self._bar.clear()
        print(text, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            sys.stderr.flush()  # its line end, before the next line on stdout
            self._bar = None

    def _steps(self, text: str) -> None:
        if self._bar is not None:
            loss = next((part for part in text.split(" · ") if part.startswith("loss")), "")
            self._bar.set_postfix_str(loss)
        elif not sys.stderr.isatty() and time.monotonic() - self._logged_at >= LOG_SECONDS:
            self._logged_at = time.monotonic()
            self.line(text)
