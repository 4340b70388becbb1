"""A file and its model card into a repository of the Hub, in one commit: all of it or nothing."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd
from PIL import Image

from ..errors import HubError
from ..runs.story import preview_files
from .artifact import Artifact
from .card import Base
from .connection import TOKEN_HELP, Hub, has_token

CARD = "README.md"
LICENSE_FIELDS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Pushed:
    """What came of it.

    Attributes:
        url: the repository's page.
        commit: the hash of the commit, 40 digits.
    """

    repo_id: str
    url: str
    commit: str


@dataclass(frozen=True)
class Picture:
    """A preview, as it is shared: without what its file says of itself.

    Attributes:
        name: in the repository.
    """

    name: str
    prompt: str
    png: bytes


def check_token() -> None:
    """Raise HubError where there is none: nothing is written to the Hub without."""
    if not has_token():
        raise HubError(f"There is no token to write to the Hub with.\n{TOKEN_HELP}")


def base_of(hub: Hub, repo_id: str) -> Base:
    """The base model with the licence that its own card names.

    Raises:
        HubError: there is no such model, or the Hub cannot be asked.
    """
    info = hub.call(repo_id, lambda: hub.api.model_info(repo_id))
    told = {name: info.card_data.get(name) for name in LICENSE_FIELDS} if info.card_data else {}
    return Base(repo_id, {name: str(value) for name, value in told.items() if value})


def last_previews(run: Path) -> list[Picture]:
    """What each prompt gave in the last preview of the run in a folder."""
    files = preview_files(run)
    steps = [file.stem.split("_")[1] for file in files]
    pictures: list[Picture] = []
    for file in (file for file, step in zip(files, steps, strict=True) if step == max(steps)):
        with Image.open(file) as picture:
            prompt, buffer = str(picture.info.get("prompt", "")), io.BytesIO()
            picture.convert("RGB").save(buffer, "PNG")
        name = f"images/preview_{len(pictures) + 1}.png"
        pictures.append(Picture(name, prompt, buffer.getvalue()))
    return pictures


def repository_for(hub: Hub, repo_id: str, private: bool) -> str:
    """The full id of the repository to push to, which is made if there is none.

    Raises:
        HubError: it is there and public, but private is asked; or the Hub refuses.
    """
    check_token()

    def make() -> Any:
        made = hub.api.create_repo(repo_id, private=private, exist_ok=True)
        return hub.api.repo_info(made.repo_id)

    info = hub.call(repo_id, make)
    if private and not info.private:
        raise HubError(
            f"'{info.id}' is there and public, and private is on: nothing was sent.\nTurn private "
            "off, take another name, or make the repository private in its settings on the Hub."
        )
    return str(info.id)


def push(
    hub: Hub,
    repo_id: str,
    artifact: Artifact,
    card: str | None,
    pictures: Sequence[Picture],
    message: str,
    without: Sequence[str] = (),
) -> Pushed:
    """Send a file, its card and its previews.

    Large files are sent first, and seen by nobody before the commit, which is small. All are given
    as open files, which huggingface_hub sends over plain HTTP: Xet's own transfer cannot be ended.

    Args:
        card: None leaves the repository's own as it is.
        without: names in the file's metadata that stay here.

    Raises:
        HubError: the Hub refuses or breaks off; then there is no commit, or it is said that this
            is unknown.
    """
    small = {picture.name: picture.png for picture in pictures}
    if card is not None:
        small[CARD] = card.encode()
    file = artifact.path
    with Source(file, artifact.beginning(without), hub) as source:

        def read() -> list[CommitOperationAdd]:  # which hashes the file
            add = [CommitOperationAdd(file.name, source)]
            more = [CommitOperationAdd(name, io.BytesIO(put)) for name, put in small.items()]
            return add + more

        def send() -> None:
            for addition in additions:  # one by one, which needs no bar of its own
                hub.api.preupload_lfs_files(repo_id, [addition])

        def publish() -> CommitInfo:
            return hub.api.create_commit(repo_id, additions, commit_message=message)

        additions = hub.call(repo_id, read, lambda: source.show("reading"))
        hub.call(repo_id, send, lambda: source.show("sending"))
        source.show("committing")
        commit = hub.call(repo_id, publish)
    return Pushed(repo_id, f"{hub.api.endpoint}/{repo_id}", str(commit.oid))


class Source(io.BufferedReader):
    """A file to be sent: it knows how far it was read, and ends with the node's work.

    Args:
        beginning: takes the place of as many bytes of the file.
    """

    def __init__(self, path: Path, beginning: bytes, hub: Hub) -> None:
        super().__init__(io.FileIO(path))
        self._title, self._size, self._beginning = path.name, path.stat().st_size, beginning
        self._hub, self._done = hub, 0

    def show(self, what: str) -> None:
        """Tell how far it is; to be called while another thread reads it."""
        self._hub.show(f"{what} {self._title}", self._done, self._size)

    def read(self, size: int | None = -1, /) -> bytes:
        if self._hub.ended:  # cancelled: without its file, what runs beside sends nothing more
            raise InterruptedError
        start = self.tell()
        block = super().read(size)
        instead = self._beginning[start : start + len(block)]
        self._done = start + len(block)
        return instead + block[len(instead) :]
