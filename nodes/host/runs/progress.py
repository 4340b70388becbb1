"""The node's progress bar and the status line in its body."""

from __future__ import annotations

import time
from collections import deque

import comfy.utils
import psutil
import torch

from ....trainers.loop import Progress
from ..memory import check_interrupt, device
from .base import GraphNode
from .pages import PAGES

SMOOTHING_STEPS = 20  # the loss of one step is mostly the luck of its timestep
SHOWN_SECONDS = 0.4  # between two updates, so that pages cost a training next to nothing


class Reporter:
    """Shows how far a node is; each call but `step` and `say` also honours Cancel.

    Attributes:
        shows_rate: say the learning rate too, where it is not the one that is set.
    """

    def __init__(self, node: GraphNode) -> None:
        self.node = node
        self.shows_rate = False
        self._bar: comfy.utils.ProgressBar | None = None
        self._losses: deque[float] = deque(maxlen=SMOOTHING_STEPS)
        self._times: deque[float] = deque(maxlen=SMOOTHING_STEPS + 1)
        self._last_shown = -SHOWN_SECONDS
        self._note, self._expected = "", ""

    @property
    def base_file(self) -> str:
        """The name of the file that is trained from; nothing where the graph does not say."""
        return self.node.base_file()

    def status(self, text: str) -> None:
        """Show `text` in the node's body, while there is still something to cancel."""
        check_interrupt()
        self._show(text)

    def say(self, text: str) -> None:
        """Show `text` in the node's body."""
        PAGES.say(self.node, text)

    def note(self, text: str) -> None:
        """Show `text` below all that is shown while the run is at work, from now on."""
        self._note = text

    def expect(self, seconds: float, run: str) -> None:
        """Show until the first step what the run will take, as the one of this name took."""
        self._expected = f"about {clock(seconds)} by run {run}"

    def _show(self, text: str) -> None:
        expected = "" if self.has_steps else self._expected  # steps have a time of their own
        self.say("\n".join(filter(None, (text, expected, self._note))))

    def pictures(self, done: int, total: int) -> None:
        self._count("encoding pictures", done, total)

    def captions(self, done: int, total: int) -> None:
        self._count("encoding captions", done, total)

    def teacher(self, done: int, total: int) -> None:
        self._count("asking the base model", done, total)

    def _count(self, what: str, done: int, total: int) -> None:
        check_interrupt()
        if self._is_due(done == total):
            self._show(f"{what} {done}/{total}")

    def step(self, progress: Progress) -> None:
        self._losses.append(progress.loss)
        self._times.append(time.monotonic())
        if self._is_due(progress.step == progress.num_steps):
            if self._bar is None:
                self._bar = comfy.utils.ProgressBar(progress.num_steps)
            self._bar.update_absolute(progress.step, progress.num_steps)
            self._show(self._line(progress))

    def _is_due(self, last: bool) -> bool:
        """Whether there is something to show now, which is then taken as shown."""
        now = time.monotonic()
        if not last and now - self._last_shown < SHOWN_SECONDS:
            return False
        self._last_shown = now
        return True

    @property
    def has_steps(self) -> bool:
        return bool(self._losses)

    @property
    def loss(self) -> float:
        """The mean of the last steps."""
        return sum(self._losses) / max(1, len(self._losses))

    def _line(self, progress: Progress) -> str:
        line = f"step {progress.step}/{progress.num_steps} · loss {self.loss:.4f}"
        if self.shows_rate:
            line += f" · rate {progress.learning_rate:.2g}"
        if len(self._times) < 2:
            return line
        seconds = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        left = seconds * (progress.num_steps - progress.step)
        return f"{line} · {_speed(seconds)} · {clock(left)} left · {_memory_bytes() / 1e9:.1f} GB"


def _memory_bytes() -> int:
    """What this process holds where models run."""
    if (place := device()).type == "cuda":
        return torch.cuda.memory_allocated(place)
    return int(psutil.Process().memory_info().rss)


def _speed(seconds: float) -> str:
    return f"{1 / seconds:.1f} it/s" if seconds < 1 else f"{seconds:.1f} s/it"


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
