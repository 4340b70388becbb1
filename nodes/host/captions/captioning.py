"""Captions of a whole folder by a model: made, and written where that is asked for."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ....trainers.data.captions import own_captions, with_prefix
from ....trainers.data.listing import Listing, PictureFile, list_folder, named, raise_listed
from ....trainers.errors import DatasetError
from ....trainers.settings.dataset import CaptioningConfig
from ..folders import dataset_folder
from ..memory import check_interrupt
from ..status import counted
from .files import Change, ChangedError, locked, write
from .models import Captioning, captioning

CHOICE = "auto"  # of DatasetConfig.captions: where a .txt file counts
log = logging.getLogger(__name__)


@dataclass
class Captioned:
    """What came of it.

    Attributes:
        captions: of every picture by name, in the folder's order; empty where there is none.
        made: names of the pictures that got a new one.
        written: how many of those were written.
        changed: names of those that somebody else wrote a caption for meanwhile, which stays.
        unread: names of pictures that cannot be decoded.
    """

    folder: str
    captions: dict[str, str]
    made: list[str] = field(default_factory=list)
    written: int = 0
    changed: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """What there is to say, in a line or more."""
        kept = sum(map(bool, self.captions.values())) - len(self.made)
        what = f"{self.written} written" if self.written else "nothing written"
        lines = [f"{self.folder}: {len(self.made)} new captions, {what}; {kept} kept"]
        if empty := [name for name, caption in self.captions.items() if not caption]:
            lines.append(f"note: the model had nothing to say of {named(empty, 6)}")
        if self.changed:
            lines.append(f"note: changed elsewhere meanwhile, and kept: {named(self.changed, 6)}")
        return "\n".join(lines)


def caption_folder(folder: str, model: str, clip: Any, config: CaptioningConfig) -> Captioned:
    """Caption the pictures of a folder of the input folder; each is written as soon as it is made.

    Args:
        model, clip: see models.captioning.

    Raises:
        DatasetError: captions cannot be read or written; or pictures cannot be read, after all
            others are done.
        SettingsError, UnavailableError, UnsupportedModelError: see models.captioning.
    """
    listing = list_folder(dataset_folder(folder))
    own, problems = own_captions(listing, CHOICE)
    if problems:  # an unreadable caption is one too
        raise DatasetError(problems[0])
    todo = [
        (file, text, source)
        for file, (text, source) in zip(listing.pictures, own, strict=True)
        if config.overwrite or not text
    ]
    if config.write:
        _check_writable(listing, todo)
    texts = (text for text, _ in own)
    done = Captioned(
        folder, dict(zip((file.name for file in listing.pictures), texts, strict=True))
    )
    if todo:
        with captioning(model, clip, config) as describe:
            for file, text, _ in counted(todo):
                check_interrupt()
                _caption(done, describe, file, text, config)
    raise_listed(
        listing.folder.name, done.unread, len(listing.pictures), "cannot be read",
        "Remove them or save them again; the captions of all others are done.",
    )  # fmt: skip
    return done


def show(done: Captioned) -> dict[str, Any]:
    """What the node returns as its `ui`: the summary, and the new captions for its body."""
    for name in done.made:
        log.info("Personalize: %s: %s", name, done.captions[name])
    made = {name: done.captions[name] for name in done.made}
    return {"text": [done.summary], "made": [json.dumps(made)]}


def _caption(
    done: Captioned, describe: Captioning, file: PictureFile, was: str, config: CaptioningConfig
) -> None:
    from ....trainers.data.pictures import READ_ERRORS

    try:
        picture = _picture(file)
    except READ_ERRORS:
        done.unread.append(file.name)
        return
    said = describe(picture)
    caption = with_prefix(config.prefix, said)
    if not caption:
        return
    if config.write:
        try:
            write(done.folder, CHOICE, [Change(file.name, caption, was)])
        except ChangedError as error:
            done.captions[file.name] = error.captions[file.name]
            done.changed.append(file.name)
            return
        done.written += 1
    done.captions[file.name] = caption
    done.made.append(file.name)


def _picture(file: PictureFile) -> Image.Image:
    """The whole picture, RGB, upright; transparent parts white."""
    from ....trainers.data.pictures import opened, to_rgb, upright

    with opened(file.path) as image:
        return to_rgb(upright(image))


def _check_writable(listing: Listing, todo: Sequence[tuple[PictureFile, str, str]]) -> None:
    reasons: dict[str, list[str]] = {}
    for file, _, source in todo:
        if why := locked(file, source, CHOICE):
            reasons.setdefault(why, []).append(file.name)
    for why, names in reasons.items():
        raise_listed(
            listing.folder.name, names, len(listing.pictures),
            f"cannot get a .txt file that counts: {why.rstrip('.')}",
            "Mend that, or turn write or overwrite off.",
        )  # fmt: skip
