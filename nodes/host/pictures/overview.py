"""What nodes show: pictures, a dataset with its text, and progress while it is read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.utils
import numpy as np
import torch
from comfy_api.latest import ui
from PIL import Image
from torch import Tensor

from ....trainers.data.captions import word_notices
from ....trainers.data.dataset import Dataset
from ....trainers.data.summary import contact_sheet, description, summary
from ..memory import check_interrupt
from ..status import running_node, show_text
from ..words import count_tokens, is_embedding


def show_dataset(dataset: Dataset, has_body: bool = False) -> dict[str, Any]:
    """What a node returns as its `ui`: the summary and the contact sheet.

    The summary is also shown under the node that is executing; the log has all there is to say.

    Args:
        has_body: the node shows its pictures and the summary itself (js/pictures/captions.js).
    """
    texts = [picture.caption for picture in dataset.pictures]
    notices = word_notices(texts, list(map(count_tokens, texts)), is_embedding)
    logging.getLogger(__name__).info("%s", description(dataset, notices))
    text = summary(dataset, notices)
    if has_body:
        return {"text": [text]}
    show_text(text, running_node())
    return {**ui.PreviewImage(image_of(contact_sheet(dataset))).as_dict(), "text": [text]}


def image_of(picture: Image.Image) -> Tensor:
    """An RGB picture as an IMAGE, fp32 (1, h, w, 3) in 0..1."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def reading_progress() -> Callable[[int, int], None]:
    """A function that is told (done, total): moves the node's bar and raises if cancelled."""
    bar = comfy.utils.ProgressBar(1)

    def report(done: int, total: int) -> None:
        check_interrupt()
        bar.update_absolute(done, total)

    return report
