"""The Hub as this pack talks to it, through huggingface_hub, which alone reads and sends the token.

Calls run in a thread beside, and the node's own thread waits for them: so Cancel works at once,
whatever the network does. A call that was left behind may still end by itself; what it gives is
thrown away. Errors become sentences. They never repeat what a library says: that may name addresses
that are signed for an hour, or the header that carries the token. For the same reason the libraries
log nothing meanwhile.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool  # its threads hold up no exit, an executor's do
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import errors

from ..errors import HubError, PersonalizeError, SettingsError

T = TypeVar("T")
TICK_SECONDS = 0.1
PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0)  # before a broken transfer is taken up again
MOST_TOLD = 300  # signs of what a server says
SITE = "https://huggingface.co"

utils: Any = huggingface_hub.utils  # its type hints do not say what its documentation does
# OSError is the base of all that requests raises, and this one of all that httpx does.
_http_error = errors.HfHubHTTPError.__bases__[0]
FAILURES: Any = (OSError, ValueError, RuntimeError, _http_error)
LOGGERS = ("huggingface_hub", _http_error.__module__.split(".")[0])


class BrokenError(HubError):
    """The connection broke, or the server is in trouble: another try may do."""


class Hub:
    """A connection for one node's work; `connected` makes it.

    Args:
        check: raises what ends the work, such as the host's interrupt.
        show: tells the user what is done, how much of it, and of how much, in bytes.
        endpoint: the server's address; None is huggingface_hub's own choice (HF_ENDPOINT).
    """

    def __init__(
        self,
        check: Callable[[], None],
        show: Callable[[str, int, int], None],
        endpoint: str | None = None,
        pauses: Sequence[float] = PAUSES_SECONDS,
    ) -> None:
        self.api = huggingface_hub.HfApi(endpoint=endpoint, library_name="personalize")
        self.show = show
        self.ended = False  # what runs beside looks here
        self._check, self._pauses = check, pauses
        self._threads = ThreadPool(1)

    def call(
        self, repo_id: str, act: Callable[[], T], watch: Callable[[], None] = lambda: None
    ) -> T:
        """What `act` gives, which asks the Hub about a repository.

        Args:
            watch: called while it lasts, in this thread.

        Raises:
            HubError: the Hub refuses or cannot be reached.
        """
        asked = self._threads.apply_async(act)
        while not asked.ready():
            asked.wait(TICK_SECONDS)
            self._check()
            watch()
        try:
            return asked.get()
        except FAILURES as error:
            raise explained(error, repo_id) from None

    def patiently(self, repo_id: str, act: Callable[[], T], said: Callable[[str], None]) -> T:
        """The same, and again after a while where the connection breaks.

        Args:
            said: told what is waited for.
        """
        for pause in self._pauses:
            try:
                return self.call(repo_id, act)
            except BrokenError:
                said(f"the connection broke, trying again in {pause:g} s")
                self._sleep(pause)
        return self.call(repo_id, act)

    def range(self, url: str, start: int, end: int) -> bytes:
        """Bytes of a file, without the one at `end`; to be called by `call`.

        Raises:
            OSError: it was another number of bytes; and what huggingface_hub raises.
        """
        headers = utils.build_hf_headers(library_name="personalize")
        headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        timeout = huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
        response = huggingface_hub.get_session().get(url, headers=headers, timeout=timeout)
        utils.hf_raise_for_status(response)
        content = bytes(response.content)
        if len(content) != end - start:
            raise ConnectionError(f"{len(content)} bytes came instead of {end - start}")
        return content

    def close(self) -> None:
        self.ended = True
        self._threads.terminate()

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._check()
            time.sleep(min(TICK_SECONDS, seconds))


@contextmanager
def connected(
    check: Callable[[], None],
    show: Callable[[str, int, int], None],
    endpoint: str | None = None,
    pauses: Sequence[float] = PAUSES_SECONDS,
) -> Iterator[Hub]:
    """A Hub, which is closed at the end; see there."""
    hub = Hub(check, show, endpoint, pauses)
    levels = {logger: logger.level for logger in map(logging.getLogger, LOGGERS)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield hub
    finally:
        hub.close()
        for logger, level in levels.items():
            logger.setLevel(level)


def has_token() -> bool:
    """Whether huggingface_hub finds one, in the environment or in the file of its login."""
    return huggingface_hub.get_token() is not None


def checked_id(name: str, repo_id: str) -> str:
    """A repository's id, from an input of that name.

    Raises:
        SettingsError: no repository can be called so.
    """
    repo_id = repo_id.strip()
    try:
        utils.validate_repo_id(repo_id)
    except errors.HFValidationError:
        raise SettingsError(
            (f"{name} is {repo_id[:MOST_TOLD]!r}; allowed: owner/name, as in the address of a page "
             "on the Hub: letters, digits, -, _ and .",)
        ) from None  # fmt: skip
    return repo_id


# -- what went wrong, as a sentence -------------------------------------------

TOKEN_HELP = (
    f"Make a token at {SITE}/settings/tokens, and give it to ComfyUI by `hf auth login` or the "
    "environment variable HF_TOKEN; never write it into a graph."
)


def explained(error: BaseException, repo_id: str) -> PersonalizeError:
    """What to tell the user of an error that a call about this repository raised."""
    if isinstance(error, RuntimeError | ValueError) and error.__cause__ is not None:
        error = error.__cause__  # of an upload, or of a card that the Hub does not take
    if isinstance(error, PersonalizeError):
        return error
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(
            f"'{repo_id}': ComfyUI is off-line: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so "
            "the Hub is not asked.\nUnset it and start ComfyUI anew, or copy the files by hand."
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and isinstance(error, ValueError | RuntimeError):
        return HubError(
            f"'{repo_id}': the Hub answered in a way that huggingface_hub does not understand "
            f"({type(error).__name__}).\nUpdate it, or look at the page of the repository."
        )
    if status is None:
        return BrokenError(
            f"'{repo_id}': the Hub cannot be reached, or the connection broke "
            f"({type(error).__name__}).\nCheck the network (a proxy: HTTPS_PROXY) and queue again: "
            "it goes on where it stopped."
        )
    return _refused(error, status, repo_id)


def _refused(error: BaseException, status: int, repo_id: str) -> HubError:
    seen = "the token that ComfyUI has may not see it" if has_token() else "it wants a token"
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"'{repo_id}' is gated ({status}): its owner wants conditions accepted first.\nOpen "
            f"{SITE}/{repo_id}, accept them, and queue again with that account's token. "
            + TOKEN_HELP
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(
            f"'{repo_id}' is not on the Hub ({status}), or {seen}.\nCheck the name, and whether it "
            f"is a model or a data set. {TOKEN_HELP}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(
            f"'{repo_id}' does not have this revision ({status}).\nTake a commit's hash or a tag "
            "from its page, under Files and versions, History."
        )
    if isinstance(error, errors.EntryNotFoundError):
        return HubError(f"'{repo_id}' does not have this file ({status}).\nCheck its name.")
    if status in (401, 403):
        problem = "the Hub does not take the token" if has_token() else "the Hub wants a token"
        return HubError(
            f"'{repo_id}': {problem} ({status}).\nIt may have expired, or lack the permission to "
            f"write there. {TOKEN_HELP}"
        )
    if status == 429 or status >= 500:
        return BrokenError(
            f"'{repo_id}': the Hub is in trouble or busy ({status}).\nQueue again in a while: it "
            "goes on where it stopped."
        )
    said = _without_tokens(str(getattr(error, "server_message", None) or ""))[:MOST_TOLD]
    return HubError(f"'{repo_id}': the Hub refused ({status}). {said}\nChange it and queue again.")


def _without_tokens(text: str) -> str:
    text = re.sub(r"hf_\w+", "hf_...", " ".join(text.split()))
    token = huggingface_hub.get_token()
    return text.replace(token, "...") if token else text
