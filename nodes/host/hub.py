"""The Hugging Face Hub and the host's folders: what may go there, and where what comes may lie."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.utils

from ...trainers.errors import SettingsError
from ...trainers.hub import card, fetch, push
from ...trainers.hub.artifact import artifact_at
from ...trainers.hub.connection import checked_id, connected
from ...trainers.runs.folder import RunFolder
from .folders import DATA_SET, folder_to_fetch_into, output_file, runs_folder
from .memory import check_interrupt
from .status import running_node, show_text, tell_of_files

log = logging.getLogger(__name__)

SHOWN_SECONDS = 0.3


@dataclass(frozen=True)
class Choices:
    """What goes to the Hub with a file.

    Attributes:
        base_model: the base's id on the Hub, or empty.
        license: empty for the base's.
        instance_prompt: empty for what the run says.
        captions: whether those of the pictures are told, in the card and in the file.
        model_card: whether README.md is written.
        workflow: whether the graph that is in the file goes with it.
    """

    private: bool = True
    base_model: str = ""
    license: str = ""
    instance_prompt: str = ""
    previews: bool = True
    captions: bool = False
    model_card: bool = True
    commit_message: str = ""
    workflow: bool = False


def push_file(path: str, repo_id: str, run: str, choices: Choices) -> push.Pushed:
    """Send a file of the output folder, with a card made of its run. The file here stays as it is.

    Raises:
        HubError: see trainers.hub.push.
        SettingsError: the file or the run is not there, or not inside the output folder.
    """
    push.check_token()
    repo_id = checked_id("repo_id", repo_id)
    folder = _run_folder(run)
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8")) if folder else {}
    artifact = artifact_at(output_file(path), str(facts.get("architecture", "")))
    with connected(check_interrupt, _Line()) as hub:
        base = choices.base_model.strip()
        of_base = push.base_of(hub, checked_id("base_model", base)) if base else None
        full_id = push.repository_for(hub, repo_id, choices.private)
        pictures = push.last_previews(folder) if folder and choices.previews else []
        told = card.Told(
            full_id,
            of_base,
            facts,
            choices.license.strip(),
            choices.instance_prompt.strip() or card.prompt_of(facts),
            [(picture.name, picture.prompt) for picture in pictures],
            choices.captions,
        )
        text = card.card(artifact, told) if choices.model_card else None
        message = choices.commit_message.strip() or f"Add {artifact.path.name}"
        kept = [] if choices.captions else artifact.told_of_pictures
        kept += [] if choices.workflow else artifact.told_of_the_graph
        pushed = push.push(hub, full_id, artifact, text, pictures, message, kept)
    note = f"; without its metadata {', '.join(kept)}" if kept else ""
    _say(f"pushed: {pushed.url}{note}")
    return pushed


def fetch_files(place: str, repo_id: str, revision: str, files: str) -> str:
    """Bring files of a repository into one of the host's folders.

    Args:
        place: one of folders.PLACES.

    Returns:
        The name that the host's nodes list there.

    Raises:
        HubError, SaveError, SettingsError: see trainers.hub.fetch.
    """
    repo_id = checked_id("repo_id", repo_id)
    kind = fetch.DATASET if place == DATA_SET else fetch.MODEL
    root = folder_to_fetch_into(place)
    with connected(check_interrupt, _Line()) as hub:
        repository = fetch.pinned(hub, repo_id, kind, revision)
        found, what = fetch.fetch(hub, repository, files, root)
    name = os.path.relpath(found, root)
    name = Path(name).as_posix() if place == DATA_SET else name
    tell_of_files()
    _say(f"{what}: {name}")
    return name


def _run_folder(run: str) -> Path | None:
    if not run:
        return None
    root = Path(os.path.realpath(runs_folder()))
    folder = Path(os.path.realpath(root / run))
    if root not in folder.parents or RunFolder.at(folder) is None:
        raise SettingsError(
            (f"run is '{Path(run).name}'; allowed: the run of a training node of this pack",)
        )
    return folder


def _say(text: str) -> None:
    show_text(text, running_node())
    log.info("Personalize: %s.", text)


class _Line:
    """The node's bar and the line under it, while something goes to or comes from the Hub."""

    def __init__(self) -> None:
        self._node = running_node()
        self._bar: comfy.utils.ProgressBar | None = None
        self._shown: Mapping[str, Any] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        check_interrupt()
        now, last = time.monotonic(), self._shown
        if last.get("what") == what and now - last["at"] < SHOWN_SECONDS and done < total:
            return
        self._shown = {"what": what, "at": now}
        if self._bar is None:
            self._bar = comfy.utils.ProgressBar(max(1, total))
        self._bar.update_absolute(done, max(1, total))
        show_text(f"{what}: {done / 1e6:.1f} of {total / 1e6:.1f} MB", self._node)
