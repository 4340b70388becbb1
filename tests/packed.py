"""The pack as one package, as its modules see each other; `trainers` alone needs none."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

from tests.host import ROOT

NAME = "personalize_packed"


def module(name: str) -> Any:
    """A module of the pack, such as headless.recipe."""
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[NAME])
    return importlib.import_module(f"{NAME}.{name}")
