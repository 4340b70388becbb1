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
    POST /personalize/captions/all {"folder", "captions", "control_folder",
                                    "changes": [{"picture", "caption", "was"}]}
         200 as GET; 409 {"error", "captions": {picture: caption}} where some are no longer what the
              page showed. All of them are written, or none
    GET  /personalize/thumbnail?folder=&picture=&stamp=&settings={}
         200 a small JPEG as the picture is trained with these settings of a DatasetConfig; with
              &large=1 one to look at; with &control_folder=&control=0 its first control image

`captions` is DatasetConfig.captions. What the user can mend is answered by 400 {"error"} otherwise.
Nothing here decodes a picture but the thumbnail, and nothing is written but a picture's .txt file,
inside the host's input folder, links resolved.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import server
from aiohttp import web

from ....trainers.data.listing import list_folder
from ....trainers.errors import DatasetError, PersonalizeError
from ....trainers.settings.dataset import DatasetConfig
from ....trainers.settings.field import from_values
from ..folders import dataset_folder
from .files import Change, ChangedError, controls_of, described, file_of, too_long, write

CAPTIONS, THUMBNAIL = "/personalize/captions", "/personalize/thumbnail"
ALL = f"{CAPTIONS}/all"
MOST_BYTES, MOST_BYTES_OF_ALL = 200_000, 20_000_000
ONE_DAY = "private, max-age=86400"  # a thumbnail's address changes with its file
LARGE_PX = 1024


def register_captions() -> None:
    """Add the routes to the host's server."""
    routes = server.PromptServer.instance.routes
    routes.get(CAPTIONS)(_read)
    routes.post(CAPTIONS)(_write)
    routes.post(ALL)(_write_all)
    routes.get(THUMBNAIL)(_thumbnail)


async def _read(request: web.Request) -> web.Response:
    asked = request.query
    names = [asked.get(name, "") for name in ("folder", "captions", "control_folder")]
    return await _answered(lambda: _described(*names))


async def _write(request: web.Request) -> web.Response:
    return await _posted(request, MOST_BYTES, lambda asked: _written(asked, [asked]))


async def _write_all(request: web.Request) -> web.Response:
    return await _posted(
        request, MOST_BYTES_OF_ALL, lambda asked: _written(asked, asked.get("changes"))
    )


async def _posted(
    request: web.Request, most_bytes: int, work: Callable[[dict[str, Any]], dict[str, Any]]
) -> web.Response:
    # A form of another site cannot be of this type unless its browser asks first.
    if request.content_type != "application/json":
        return web.json_response({"error": "Allowed: application/json."}, status=415)
    body = await request.read()
    if len(body) > most_bytes:
        return web.json_response({"error": too_long(f"{len(body):,} bytes")}, status=413)
    return await _answered(lambda: work(_parsed(body)))


async def _thumbnail(request: web.Request) -> web.Response:
    from ....trainers.data.pictures import READ_ERRORS  # Pillow, numpy and torch, once asked for

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
        (caption, *_), told = error.captions.values(), {"captions": error.captions}
        return web.json_response({"error": str(error), "caption": caption, **told}, status=409)
    except PersonalizeError as error:
        return web.json_response({"error": str(error)}, status=400)


def _described(name: str, choice: str, control_folder: str) -> dict[str, Any]:
    try:
        return described(name, _choice(choice), control_folder)
    except PersonalizeError as error:  # a page that was just opened asks too: no failure of its
        return {"pictures": [], "problems": [str(error)], "writable": False}


def _written(asked: Mapping[str, Any], changes: Any) -> dict[str, Any]:
    if not isinstance(changes, list) or not changes:
        raise DatasetError("changes is missing.\nAllowed: a list of captions.")
    folder, choice = _text(asked, "folder"), _choice(asked.get("captions"))
    write(folder, choice, [_change(one) for one in changes])
    return described(folder, choice, str(asked.get("control_folder", "")))


def _change(asked: Any) -> Change:
    if not isinstance(asked, dict):
        raise DatasetError("A change is none.\nAllowed: picture, caption and was.")
    picture, caption = _text(asked, "picture"), _text(asked, "caption")
    return Change(picture, caption, asked.get("was"), unseen="was" not in asked)


def _text(asked: Mapping[str, Any], key: str) -> str:
    if not isinstance(found := asked.get(key), str):
        raise DatasetError(f"{key} is missing.\nAllowed: a text.")
    return found


def _choice(asked: Any) -> str:
    return str(from_values(DatasetConfig, {"captions": asked} if asked else {}).captions)


def _parsed(text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DatasetError("What was sent is not JSON.\nReload the page.")
    return found


def _jpeg(asked: Mapping[str, str]) -> bytes:
    from io import BytesIO

    from ....trainers.data.summary import THUMBNAIL_PX, inset, thumbnail

    config = from_values(DatasetConfig, _parsed(asked.get("settings", "{}")))
    listing = list_folder(dataset_folder(asked.get("folder", "")))
    picture = file_of(listing, asked.get("picture", ""))
    if "control" in asked:
        controls = controls_of(listing, asked.get("control_folder", ""))
        shown = {str(n): path for n, path in enumerate(controls[listing.pictures.index(picture)])}
        if (path := shown.get(asked["control"])) is None:
            raise DatasetError(f"{picture.name} has no such control image.\nReload the page.")
        drawn = inset(path)
    else:
        drawn = thumbnail(picture, config, LARGE_PX if "large" in asked else THUMBNAIL_PX)
    content = BytesIO()
    drawn.save(content, "JPEG", quality=80)
    return content.getvalue()
