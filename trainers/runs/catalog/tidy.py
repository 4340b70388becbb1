"""Runs are deleted in two steps, and lose what can be made again.

output/personalize/trash/<time of it, in ms>/<run>/   is what was deleted, as it was
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from ...errors import RunError, SettingsError
from .labels import read_label
from .names import NAME, TRASH, UnknownRunError, is_link, is_name, run_path
from .reading import LOCK, scan

DELETED = re.compile(r"\d{13}")
WAIT_SECONDS = 0.3  # a list looks at locks too, for a moment
KINDS = {"states": "state", "previews": "preview"}


def delete(parent: Path, name: str, at_work: Collection[str] = ()) -> None:
    """Move a run into the trash.

    Args:
        parent: the folder of all runs.
        at_work: names of runs that train in this process.

    Raises:
        UnknownRunError: there is no such run.
        RunError: it is at work or pinned, or its files are in use.
    """
    folder = run_path(parent, name)
    _check_free(folder, at_work)
    trash = _trash(parent)
    with _held(folder):
        target = _new_place(trash)
        try:
            os.rename(folder, target / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                target.rmdir()
            raise RunError(
                f"Run '{name}' was not deleted: {error.strerror}; allowed: runs of which no "
                "program has a file open.\nClose what uses it and try again."
            ) from error


def restore(parent: Path, name: str) -> None:
    """Put the run that was deleted last under this name back where it was.

    Raises:
        UnknownRunError: there is none in the trash.
        RunError: a run of that name is there again, or its files are in use.
    """
    if not is_name(name):
        raise UnknownRunError(name)
    places = [place for _, place in _deleted(parent) if place.name == name]
    if not places:
        raise UnknownRunError(name)
    if os.path.lexists(parent / name):
        raise RunError(
            f"Run '{name}' is there again: it was trained anew; allowed: one run of a name.\n"
            "Delete that one first."
        )
    try:
        os.rename(places[0], parent / name)
    except OSError as error:
        raise RunError(
            f"Run '{name}' was not put back: {error.strerror}; allowed: runs of which no program "
            "has a file open.\nClose what uses it and try again."
        ) from error
    _drop_empty(places[0].parent)


def in_trash(parent: Path) -> list[dict[str, Any]]:
    """What was deleted, the last first: {"run", "title", "deleted"}, the time of it in seconds.

    Of several with one name the last alone, which is the one that `restore` puts back.
    """
    found: dict[str, dict[str, Any]] = {}
    for deleted, place in _deleted(parent):
        if place.name not in found:
            named = NAME.fullmatch(place.name)
            title = read_label(place)[0].title or (named[2] if named else place.name)
            found[place.name] = {"run": place.name, "title": title, "deleted": deleted / 1000}
    return list(found.values())


def empty_trash(parent: Path) -> tuple[int, list[str]]:
    """Delete for good what is in the trash; how many bytes that were, and what has stayed."""
    freed, problems = 0, list[str]()
    for _, place in _deleted(parent):
        size = sum(file.num_bytes for file in scan(place).files)
        try:
            shutil.rmtree(place)
        except OSError as error:
            problems.append(f"'{place.name}' was not deleted for good: {error.strerror}.")
        else:
            freed += size
            _drop_empty(place.parent)
    return freed, problems


def free(
    parent: Path,
    names: Sequence[str],
    kinds: Collection[str],
    at_work: Collection[str] = (),
    dry: bool = False,
) -> tuple[int, list[str]]:
    """Delete the states or previews of runs; how many bytes that were, and what has stayed.

    Args:
        kinds: of KINDS.
        dry: only count.

    Raises:
        UnknownRunError: one of the runs is not there; nothing was deleted then.
        SettingsError: there is no such kind.
    """
    if wrong := sorted(set(kinds) - KINDS.keys()):
        raise SettingsError((f"kinds has {wrong}; allowed: {', '.join(KINDS)}",))
    folders = {name: run_path(parent, name) for name in names}
    freed, problems = 0, list[str]()
    for folder in folders.values():
        try:
            _check_free(folder, at_work)
            with _held(folder):
                freed += _free(folder, {KINDS[kind] for kind in kinds}, dry, problems)
        except RunError as error:
            problems.append(str(error).splitlines()[0])
    return freed, problems


def _free(folder: Path, kinds: Collection[str], dry: bool, problems: list[str]) -> int:
    freed = 0
    for file in scan(folder).files:
        if file.kind not in kinds:
            continue
        try:
            if not dry:
                (folder / file.name).unlink()
            freed += file.num_bytes
        except OSError as error:
            problems.append(f"{file.name} of '{folder.name}' stays: {error.strerror}.")
    return freed


def _check_free(folder: Path, at_work: Collection[str]) -> None:
    if folder.name in at_work:
        raise _at_work(folder)
    if read_label(folder)[0].pinned:
        raise RunError(
            f"Run '{folder.name}' is pinned; allowed: runs that are not.\nUnpin it first."
        )


def _at_work(folder: Path) -> RunError:
    return RunError(
        f"Run '{folder.name}' is at work; allowed: runs that do not train.\n"
        "Wait for its end, or stop it."
    )


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a run, so that no process begins to train it meanwhile."""
    if (folder / LOCK).is_symlink():  # some versions of filelock empty what it leads to
        raise RunError(
            f"'{LOCK}' of run '{folder.name}' is a link; allowed: a file of its own.\n"
            "Remove the link."
        )
    if not (folder / LOCK).is_file():  # nobody has ever trained it here
        yield
        return
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except filelock.Timeout as error:
        raise _at_work(folder) from error
    except OSError:  # of a disk that cannot be written: what comes next tells why
        pass
    if os.name == "nt":  # a folder with an open file cannot be moved there
        lock.release()
    try:
        yield
    finally:
        lock.release()


# -- the trash ----------------------------------------------------------------


def _trash(parent: Path) -> Path:
    trash = parent / TRASH
    try:
        trash.mkdir(exist_ok=True)
        if is_link(os.lstat(trash)):
            raise RunError(
                f"'{parent.name}/{TRASH}' is a link; allowed: a folder on the disk of the runs.\n"
                "Remove the link."
            )
    except OSError as error:
        raise RunError(
            f"'{parent.name}/{TRASH}' cannot be made: {error.strerror}; allowed: a folder that "
            "can be written.\nMake it writable."
        ) from error
    return trash


def _new_place(trash: Path) -> Path:
    now = int(time.time() * 1000)
    while True:
        place = trash / f"{now:013}"
        try:
            place.mkdir()
        except FileExistsError:
            now += 1
        else:
            return place


def _deleted(parent: Path) -> list[tuple[int, Path]]:
    """Time and folder of each run in the trash, the last first; nothing that leads elsewhere."""
    found = []
    for place in _folders(parent / TRASH):
        if DELETED.fullmatch(place.name):
            found += [(int(place.name), run) for run in _folders(place) if is_name(run.name)]
    return sorted(found, key=lambda one: (-one[0], one[1].name))


def _folders(folder: Path) -> list[Path]:
    try:
        if is_link(os.lstat(folder)):
            return []
        with os.scandir(folder) as entries:
            facts = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    except OSError:
        return []
    return [folder / n for n, f in facts.items() if stat.S_ISDIR(f.st_mode) and not is_link(f)]


def _drop_empty(place: Path) -> None:
    """Delete the folder of a deletion, and the trash, where they are empty."""
    with contextlib.suppress(OSError):
        place.rmdir()
        place.parent.rmdir()
