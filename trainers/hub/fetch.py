"""Files of a repository, at one commit, into a folder of this machine.

<folder>/<owner>--<name>-<first 8 of the commit>/
    dog.safetensors              as in the repository, once it is whole and its hash is right
    dog.safetensors.part         what came so far; the next try goes on from there
    .hub.json                    what was fetched, so that a commit that is here needs no network

Only weights in safetensors, pictures and their texts come here: nothing that runs when it is read.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub

from ..data.listing import CAPTION_SUFFIXES, PICTURE_SUFFIXES, REPEATED_FOLDER
from ..errors import HubError, SaveError, SettingsError
from ..runs.files import BAD_SIGNS, RESERVED, save_error, shown, write_whole
from .connection import Hub

MODEL, DATASET = "model", "dataset"  # the Hub's words
SUFFIXES = {
    MODEL: frozenset((".safetensors",)),
    DATASET: PICTURE_SUFFIXES | frozenset((*CAPTION_SUFFIXES, ".jsonl")),
}
COMMIT = re.compile(r"[0-9a-f]{40}")
PART, RECORD = ".part", ".hub.json"
LEAST_BYTES, MOST_BYTES = 2**20, 2**25  # of one request
FEW_SECONDS, MANY_SECONDS = 0.5, 2.0  # that one should take
MOST_NAMED = 8


@dataclass(frozen=True)
class Repository:
    """One commit of a repository.

    Attributes:
        kind: MODEL or DATASET.
        commit: its hash, 40 digits.
    """

    repo_id: str
    kind: str
    commit: str

    @property
    def folder_name(self) -> str:
        """No two commits of any repositories share it."""
        return f"{self.repo_id.replace('/', '--')}-{self.commit[:8]}"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        name: its path there, with forward slashes.
        sha256: of its content, where it is a large file; else `blob_id` is git's own hash.
    """

    name: str
    size_bytes: int
    sha256: str | None
    blob_id: str

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()


def pinned(hub: Hub, repo_id: str, kind: str, revision: str) -> Repository:
    """The commit that a revision means, if it always means the same.

    Raises:
        HubError: there is no such repository, or the Hub cannot be asked.
        SettingsError: it is a branch, or nothing.
    """
    revision = revision.strip()
    if COMMIT.fullmatch(revision):
        return Repository(repo_id, kind, revision)
    refs = hub.call(repo_id, lambda: hub.api.list_repo_refs(repo_id, repo_type=kind))
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    if revision in tags:
        return Repository(repo_id, kind, tags[revision])
    branches = {ref.name: ref.target_commit for ref in refs.branches}
    allowed = f"one of the tags {', '.join([*tags][-MOST_NAMED:])}" if tags else "a tag"
    branch, note = revision or "main", ""
    if branch in branches:
        note = f": a branch, whose files may change; '{branch}' is now {branches[branch]}"
    raise SettingsError(
        (f"revision is {revision!r}{note}; allowed: a commit's hash of 40 digits, or {allowed}",)
    )


def fetch(hub: Hub, repository: Repository, patterns: str, folder: Path) -> tuple[Path, str]:
    """Bring the files that fit, unless they are here.

    Args:
        patterns: such as `*.safetensors`, divided by commas or lines; empty is all that may come.
        folder: what the repository's own folder is made in.

    Returns:
        The file of a model, or the folder of a data set's pictures; and what happened, in a line.

    Raises:
        HubError: the Hub refuses, breaks off, or sends something else.
        SaveError: it cannot be written here, or something else is in its place.
        SettingsError: nothing fits, or more than one file of a model.
    """
    target = folder / repository.folder_name
    if kept := _kept(target, repository, patterns):
        return _found(target, repository.kind, kept), "is there already"
    files, left_out = _chosen(hub, repository, patterns)
    missing = [file for file in files if not _is_there(hub, target / file.name, file)]
    _check_disk(folder, sum(_missing_bytes(target, file) for file in missing))
    for number, file in enumerate(missing, 1):
        of = f" ({number} of {len(missing)})" if len(missing) > 1 else ""
        _download(hub, repository, file, target, of)
        _verify(hub, file, _part(target, file), repository.repo_id)
    for file in missing:  # all of them at the end: half a data set is none
        _part(target, file).replace(target / file.name)
    names = [file.name for file in files]
    _record(target, repository, patterns, files)
    size = sum(file.size_bytes for file in files)
    told = f"{len(files)} files, {size / 1e6:.1f} MB" if len(files) > 1 else f"{size / 1e6:.1f} MB"
    return _found(target, repository.kind, names), f"fetched: {told}{left_out}"


# -- which files --------------------------------------------------------------


def _chosen(hub: Hub, repository: Repository, patterns: str) -> tuple[list[RemoteFile], str]:
    """The files that fit, and a note of those that may not come."""
    repo_id, kind = repository.repo_id, repository.kind
    files = _listed(hub, repository)
    wanted = [one.strip() for one in re.split(r"[,\n]", patterns) if one.strip()] or ["*"]
    fits = [file for file in files if any(fnmatch.fnmatchcase(file.name, p) for p in wanted)]
    chosen = [f for f in fits if f.suffix in SUFFIXES[kind] and _is_safe(f.name)]
    others = Counter(f.suffix or PurePosixPath(f.name).name for f in fits if f not in chosen)
    listed = ", ".join(f"{n} {suffix}" for suffix, n in others.most_common(MOST_NAMED))
    allowed = ", ".join(sorted(SUFFIXES[kind]))
    if not chosen:
        there = f"what there is: {listed}" if listed else "no file has such a name"
        raise SettingsError(
            (f"files is {patterns!r}, and nothing of '{repo_id}' that may come fits: {there}; "
             f"allowed: {allowed}",)
        )  # fmt: skip
    if kind == MODEL and len(chosen) > 1:
        names = ", ".join(f"{f.name} ({f.size_bytes / 1e6:.0f} MB)" for f in chosen[:MOST_NAMED])
        more = ", ..." if len(chosen) > MOST_NAMED else ""
        raise SettingsError(
            (f"files is {patterns!r}, which {len(chosen)} files of '{repo_id}' fit: {names}{more}; "
             "allowed: the name of one",)
        )  # fmt: skip
    return chosen, f"; left out: {listed}" if listed and kind == DATASET else ""


def _listed(hub: Hub, repository: Repository) -> list[RemoteFile]:
    def ask() -> Any:
        return hub.api.repo_info(
            repository.repo_id,
            revision=repository.commit,
            repo_type=repository.kind,
            files_metadata=True,
        )

    info = hub.call(repository.repo_id, ask)
    return [
        RemoteFile(one.rfilename, one.size, one.lfs.sha256 if one.lfs else None, one.blob_id)
        for one in info.siblings or ()
    ]


def _is_safe(name: str) -> bool:
    """Whether a name of the server's stays in its folder, on every system."""
    parts = name.split("/")
    return not any(
        part in ("", ".", "..")
        or part[0] == "."
        or part[-1] in ". "
        or "\\" in part
        or BAD_SIGNS.search(part)
        or RESERVED.fullmatch(part)
        for part in parts
    )


def _found(target: Path, kind: str, names: Sequence[str]) -> Path:
    """What the host's nodes take: the file, or the folder that holds the pictures."""
    if kind == MODEL:
        return target / names[0]
    above = [PurePosixPath(n).parent for n in names if Path(n).suffix.lower() in PICTURE_SUFFIXES]
    folder = Path(os.path.commonpath(above or [PurePosixPath()]))
    # A folder like 10_dog says how often its pictures count, in the folder around it.
    return target / (folder.parent if REPEATED_FOLDER.fullmatch(folder.name) else folder)


# -- bringing them ------------------------------------------------------------


def _part(target: Path, file: RemoteFile) -> Path:
    return target / (file.name + PART)


def _missing_bytes(target: Path, file: RemoteFile) -> int:
    part = _part(target, file)
    return max(0, file.size_bytes - (part.stat().st_size if part.is_file() else 0))


def _check_disk(folder: Path, num_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise SaveError(
            f"The disk of '{folder.name}' has {free / 1e9:.1f} GB left; {num_bytes / 1e9:.1f} GB "
            "are to come.\nFree some space and queue again."
        )


def _is_there(hub: Hub, path: Path, file: RemoteFile) -> bool:
    if not path.exists():
        return False
    if path.stat().st_size == file.size_bytes and _is_right(hub, path, file):
        return True
    raise SaveError(
        f"'{shown(path)}' is there, and is not what the repository has: it was changed here.\n"
        "Move or delete it, and queue again."
    )


def _download(hub: Hub, repository: Repository, file: RemoteFile, target: Path, of: str) -> None:
    """Write the file's part, or what is missing of it."""
    part, size, title = _part(target, file), file.size_bytes, PurePosixPath(file.name).name + of
    url = huggingface_hub.hf_hub_url(
        repository.repo_id,
        file.name,
        repo_type=repository.kind,
        revision=repository.commit,
        endpoint=hub.api.endpoint,
    )
    step = LEAST_BYTES
    with _written(part, size), part.open("ab") as out:
        if out.tell() > size:
            out.truncate(0)
        done = min(out.tell(), size)
        while done < size:
            end = min(done + step, size)
            hub.show(f"fetching {title}", done, size)
            began = time.monotonic()
            content = hub.patiently(
                repository.repo_id,
                partial(hub.range, url, done, end),
                partial(_show_pause, hub, title, done, size),
            )
            out.write(content)
            out.flush()
            done, took = end, time.monotonic() - began
            if took < FEW_SECONDS:
                step = min(step * 2, MOST_BYTES)
            elif took > MANY_SECONDS:
                step = max(step // 2, LEAST_BYTES)
        hub.show(f"fetching {title}", size, size)


def _show_pause(hub: Hub, title: str, done: int, size: int, text: str) -> None:
    hub.show(f"{title}: {text}", done, size)


@contextlib.contextmanager
def _written(path: Path, num_bytes: int) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise save_error(path, num_bytes, error) from error


def _verify(hub: Hub, file: RemoteFile, part: Path, repo_id: str) -> None:
    """See that the part is the file; what is something else goes."""
    if not _is_right(hub, part, file):
        part.unlink()
        raise HubError(
            f"'{repo_id}': what came for '{file.name}' is not what the repository lists: another "
            "hash. It was deleted.\nQueue again; if it happens twice, a proxy or a mirror "
            "(HF_ENDPOINT) may be in between."
        )


def _is_right(hub: Hub, path: Path, file: RemoteFile) -> bool:
    """Whether a file of this machine has the content that the repository lists."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    if file.sha256 is None:  # git's hash of a blob
        digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    done = 0
    with path.open("rb") as content:
        while block := content.read(2**22):
            digest.update(block)
            done += len(block)
            hub.show(f"checking {PurePosixPath(file.name).name}", done, size)
    return digest.hexdigest() == (file.sha256 or file.blob_id)


# -- what is here -------------------------------------------------------------


def _kept(target: Path, repository: Repository, patterns: str) -> list[str]:
    """The names of what was fetched before for these patterns, if all of it is here."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        told = json.loads((target / RECORD).read_text(encoding="utf-8"))
        sizes: dict[str, int] = told["fetched"][patterns]
        same = (told["repo_id"], told["commit"]) == (repository.repo_id, repository.commit)
        if same and all(_is_safe(n) and (target / n).stat().st_size == s for n, s in sizes.items()):
            return list(sizes)
    return []


def _record(
    target: Path, repository: Repository, patterns: str, files: Sequence[RemoteFile]
) -> None:
    fetched: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        fetched |= json.loads((target / RECORD).read_text(encoding="utf-8"))["fetched"]
    fetched[patterns] = {file.name: file.size_bytes for file in files}
    told = {"repo_id": repository.repo_id, "commit": repository.commit, "fetched": fetched}
    write_whole(target / RECORD, json.dumps(told, indent=2).encode())
