"""What a host's collections of garbage need not look at."""

from __future__ import annotations

import gc
import importlib


def set_aside_what_is_imported() -> None:
    """From here on collections pass over all that is there now.

    Each training makes two, which walk through all that the host has imported: a quarter of a small
    training's time. What trainings leave behind comes later, and is found as ever.
    """
    importlib.import_module("peft")  # with all that a first training imports
    gc.collect()
    gc.freeze()
