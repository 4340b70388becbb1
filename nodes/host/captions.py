"""Captions in the browser: what a folder's pictures are called, to look at and to write anew.

    GET  /personalize/captions?folder=&captions=&control_folder=
         200 {"pictures": [{"name", "caption", "source", "words", "tokens", "editable", "why",
              "stamp", "controls": [name]}], "problems": [sentence], "writable": bool};
              `caption` and `source` are null where a picture has none of its own, `words` are
              those of its folder, `why` says why it is not editable, `stamp` changes with its
              files; what the user can mend, such as a folder that is not chosen yet, is a problem
              without pictures
    POST /personalize/captions {"folder", "captions", "control_folder", "picture", "caption", "was"}
         200 as GET; 409 {"error", "caption"} where the caption is no longer what the page showed
    GET  /personalize/thumbnail?folder=&picture=&stamp=&settings={}
         200 a small JPEG as the picture is trained with these settings of a DatasetConfig; with
              &control_folder=&control=0 its first control image, whole

`captions` is DatasetConfig.captions. What the user can mend is answered by 400 {"error"} otherwise.
Nothing here decodes a picture but the thumbnail, and nothing is written but a picture's .txt file,
inside the host's input folder, links resolved.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import folder_paths
import server
from aiohttp import web

from ...trainers.data.captions import clean_lines, own_captions
from ...trainers.data.listing import METADATA_NAME, Listing, PictureFile, list_folder
from ...trainers.errors import DatasetError, PersonalizeError
from ...trainers.runs.files import write_whole
from ...trainers.settings.dataset import DatasetConfig
from ...trainers.settings.field import from_values
from .folders import dataset_folder, folder_names
from .words import count_tokens

CAPTIONS, THUMBNAIL = "/personalize/captions", "/personalize/thumbnail"
MOST_CHARACTERS, MOST_BYTES = 20_000, 200_000
TXT_COUNTS = ("auto", "txt")
ONE_DAY = "private, max-age=86400"  # a thumbnail's address changes with its file
WRITING = threading.Lock()


class ChangedError(DatasetError):
    """The caption is not what the page showed; `caption` is what it is now."""

    def __init__(self, caption: str) -> None:
        self.caption = caption
        super().__init__("The caption was changed elsewhere.\nTake that one, or save yours again.")


def register_captions() -> None:
    """Add the routes to the host's server."""
    routes = server.PromptServer.instance.routes
    routes.get(CAPTIONS)(_read)
    routes.post(CAPTIONS)(_write)
    routes.get(THUMBNAIL)(_thumbnail)


async def _read(request: web.Request) -> web.Response:
    asked = request.query
    names = [asked.get(name, "") for name in ("folder", "captions", "control_folder")]
    return await _answered(lambda: _described(*names))


async def _write(request: web.Request) -> web.Response:
    # A form of another site cannot be of this type unless its browser asks first.
    if request.content_type != "application/json":
        return web.json_response({"error": "Allowed: application/json."}, status=415)
    body = await request.read()
    if len(body) > MOST_BYTES:
        return web.json_response({"error": _too_long(f"{len(body):,} bytes")}, status=413)
    return await _answered(lambda: write(_parsed(body)))


async def _thumbnail(request: web.Request) -> web.Response:
    from ...trainers.data.pictures import READ_ERRORS  # Pillow, numpy and torch, once asked for

    asked = dict(request.query)
    picture = asked.get("picture", "")
    try:
        jpeg = await asyncio.to_thread(_jpeg, asked)
    except PersonalizeError as error:
        return web.json_response({"error": str(error)}, status=400)
    except READ_ERRORS:
        return web.json_response({"error": f"{picture} cannot be read."}, status=404)
    headers = {"Cache-Control": ONE_DAY}
    return web.Response(body=jpeg, content_type="image/jpeg", headers=headers)


async def _answered(work: Callable[[], dict[str, Any]]) -> web.Response:
    try:
        return web.json_response(await asyncio.to_thread(work))
    except ChangedError as error:
        return web.json_response({"error": str(error), "caption": error.caption}, status=409)
    except PersonalizeError as error:
        return web.json_response({"error": str(error)}, status=400)


def _described(name: str, choice: str, control_folder: str) -> dict[str, Any]:
    try:
        return described(name, choice, control_folder)
    except PersonalizeError as error:  # a page that was just opened asks too: no failure of its
        return {"pictures": [], "problems": [str(error)], "writable": False}


def described(name: str, choice: str, control_folder: str = "") -> dict[str, Any]:
    """The captions of a folder, as GET answers.

    Args:
        control_folder: as on Training Images (Folder).

    Raises:
        DatasetError: there is no such folder.
        SettingsError: there is no such choice.
    """
    listing, choice = list_folder(dataset_folder(name)), _choice(choice)
    found, problems = own_captions(listing, choice)
    controls: list[tuple[Path, ...]] = [()] * len(found)
    try:
        controls = _controls(listing, control_folder)
    except DatasetError as error:
        problems = [*problems, str(error)]
    pictures = [
        {
            "name": picture.name,
            "caption": text or None,
            "source": source or None,
            "words": picture.folder_words,
            "tokens": count_tokens(text),
            "editable": not (why := _locked(picture, source, choice)),
            "why": why,
            "stamp": _stamp(picture, shown),
            "controls": [path.name for path in shown],
        }
        for picture, (text, source), shown in zip(listing.pictures, found, controls, strict=True)
    ]
    return {
        "pictures": pictures,
        "problems": problems,
        "writable": os.access(listing.folder, os.W_OK),
    }


def write(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Write the .txt file of one picture, or delete it where the caption is empty.

    Raises:
        ChangedError: the caption is no longer the one that `was` says.
        DatasetError: what is asked for cannot be written.
        SaveError: the disk is full.
    """
    for key in ("folder", "picture", "caption"):
        if not isinstance(asked.get(key), str):
            raise DatasetError(f"{key} is missing.\nAllowed: a text.")
    name, caption = str(asked["picture"]), str(asked["caption"])
    choice = _choice(asked.get("captions"))
    content = _encoded(caption)
    with WRITING:
        listing = list_folder(dataset_folder(str(asked["folder"])))
        file = _file(listing, name)
        alone = dataclasses.replace(listing, pictures=(file,))
        ((text, source),), _ = own_captions(alone, choice)
        if why := _locked(file, source, choice):
            raise DatasetError(f"{name}: {why}")
        if "was" in asked and (asked["was"] or "") != text:
            raise ChangedError(text)
        target = _target(file)
        if content:
            write_whole(target, content)
        else:
            target.unlink(missing_ok=True)
        return described(str(asked["folder"]), choice, str(asked.get("control_folder", "")))


def _choice(asked: Any) -> str:
    return str(from_values(DatasetConfig, {"captions": asked} if asked else {}).captions)


def _encoded(caption: str) -> bytes:
    if len(caption) > MOST_CHARACTERS:
        raise DatasetError(_too_long(f"{len(caption):,} characters"))
    text = clean_lines(caption)
    try:
        return f"{text}\n".encode() if text else b""
    except UnicodeEncodeError as error:
        raise DatasetError("The caption has half a character.\nType it again.") from error


def _too_long(what: str) -> str:
    return f"The caption has {what}.\nAllowed: {MOST_CHARACTERS:,} characters."


def _parsed(text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DatasetError("What was sent is not JSON.\nReload the page.")
    return found


def _file(listing: Listing, name: str) -> PictureFile:
    """The picture of that name; a name is looked up and never made a path of."""
    for picture in listing.pictures:
        if picture.name == name:
            return picture
    raise DatasetError(
        f"There is no picture {name!r} in {listing.folder.name!r}.\nReload the page."
    )


def _locked(picture: PictureFile, source: str, choice: str) -> str:
    """Why the caption of a picture cannot be written as a .txt file beside it; or nothing."""
    if choice not in TXT_COUNTS:
        return f"captions is '{choice}', so a .txt file would not count."
    if source == METADATA_NAME:
        return f"{METADATA_NAME} has a line for it, which comes before a .txt file: edit it there."
    root = Path(os.path.realpath(folder_paths.get_input_directory()))
    target = _target(picture)
    if any(root not in path.parents for path in (target, Path(os.path.realpath(picture.path)))):
        return f"It lies outside {root}."
    return "" if os.access(target.parent, os.W_OK) else "Its folder cannot be written to."


def _target(picture: PictureFile) -> Path:
    """The caption file that there is, or would be, links resolved."""
    return Path(os.path.realpath(picture.beside.get(".txt") or picture.path.with_suffix(".txt")))


def _controls(listing: Listing, control_folder: str) -> list[tuple[Path, ...]]:
    """The control images of every picture."""
    from ...trainers.data.beside.controls import control_files  # torch, as above

    folders = [dataset_folder(name) for name in folder_names(control_folder)]
    return control_files(listing, folders)[0]


def _stamp(picture: PictureFile, controls: tuple[Path, ...]) -> str:
    paths = [picture.path, *controls]
    paths += [path for what, path in picture.beside.items() if what == "mask"]
    return "-".join(str(path.stat().st_mtime_ns) for path in paths)


def _jpeg(asked: Mapping[str, str]) -> bytes:
    from io import BytesIO

    from ...trainers.data.summary import inset, thumbnail

    config = from_values(DatasetConfig, _parsed(asked.get("settings", "{}")))
    listing = list_folder(dataset_folder(asked.get("folder", "")))
    picture = _file(listing, asked.get("picture", ""))
    if "control" in asked:
        controls = _controls(listing, asked.get("control_folder", ""))
        shown = {str(n): path for n, path in enumerate(controls[listing.pictures.index(picture)])}
        if (path := shown.get(asked["control"])) is None:
            raise DatasetError(f"{picture.name} has no such control image.\nReload the page.")
        drawn = inset(path)
    else:
        drawn = thumbnail(picture, config)
    content = BytesIO()
    drawn.save(content, "JPEG", quality=80)
    return content.getvalue()
