"""The training methods. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable

from ..contracts import Parts, Trainable
from ..settings.run import RunConfig
from . import dreambooth, lora, textual_inversion

METHODS: dict[str, Callable[[Parts, RunConfig], Trainable]] = {
    "lora": lora.prepare,
    "dreambooth": dreambooth.prepare,
    "textual_inversion": textual_inversion.prepare,
}
