"""Text of ours in the browser: under a node, and errors in a toast.

What is sent from here is escaped, since front ends take such text for HTML or for Markdown: a
caption with `<sks>` in it would lose the word, or run a script, and a file named `__init__` would
be bold. Logs have it as it is.

The front end (js/errors.js) hears of errors by the event "personalize.error", whose data are
{"node": id, "text": two lines}; it shows them as plain text. "personalize.files" says that there
may be a new file for the loaders' lists (js/files.js).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import comfy.utils
import server
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

from ...trainers.errors import PersonalizeError
from .runs.base import GraphNode
from .runs.pages import PAGES

T = TypeVar("T")
PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
ERROR, FILES = "personalize.error", "personalize.files"


def show_text(text: str, node_id: str | None) -> None:
    """Show `text` under a node, in the page that queued it."""
    instance = server.PromptServer.instance
    if node_id is not None and instance.client_id is not None:
        instance.send_progress_text(escaped(text), node_id)


def escaped(text: str) -> str:
    """Text that a front end shows as it is, line by line, be it taken for HTML or for Markdown.

    As a number, a sign is a sign to both. Two blanks make a line end count in Markdown.
    """
    numbered = PUNCTUATION.sub(lambda sign: f"&#{ord(sign[0])};", text)
    return numbered.replace("\n", "  \n")


def tell_of_files() -> None:
    """Let the page read the lists of files anew, such as that of Load LoRA."""
    server.PromptServer.instance.send_sync(FILES, {})


def running_node() -> str | None:
    """The id of the node that is executing."""
    context = get_executing_context()
    return context.node_id if context else None


def counted(items: Sequence[T]) -> Iterator[T]:
    """`items`, with the running node's bar at how many are done; Cancel stops it."""
    bar = comfy.utils.ProgressBar(len(items))
    for number, item in enumerate(items, 1):
        yield item
        bar.update_absolute(number)  # raises the host's interrupt where there is one


def telling(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, which shows an error that its reader can mend under itself and in a toast."""
    for name in ("execute", "check_lazy_status"):
        own = getattr(node, name).__func__
        if own is not getattr(io.ComfyNode, name).__func__:
            setattr(node, name, classmethod(_telling(own)))
    return node


def _telling(own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def told(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> Any:
        try:
            return own(cls, *args, **inputs)
        except PersonalizeError as error:
            if hasattr(cls, "SHOWS_TRAINING"):  # in a line of its own
                PAGES.say(GraphNode.of(cls.hidden), str(error))
            else:
                show_text(str(error), running_node())
            data = {"node": running_node(), "text": str(error)}
            server.PromptServer.instance.send_sync(ERROR, data)
            raise

    return told
