"""The table of docs.scan against the ComfyUI that it was made with."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from docs.scan import PAGE, rows_of
from tests.scanned import MODELS


def classes(comfyui: Path) -> set[str]:
    """The names in `models` of comfy.supported_models."""
    source = (comfyui / "comfy" / "supported_models.py").read_text(encoding="utf-8")
    lists = (
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign | ast.AugAssign) and isinstance(node.value, ast.List)
    )
    return {entry.id for found in lists for entry in found.elts if isinstance(entry, ast.Name)}


def test_every_class_of_comfyui_has_a_row() -> None:
    comfyui = os.environ.get("PERSONALIZE_COMFYUI")
    if not comfyui:
        pytest.skip("PERSONALIZE_COMFYUI names no ComfyUI checkout")
    rows = rows_of(PAGE.read_text(encoding="utf-8"))
    assert classes(Path(comfyui)) <= {row.kind for row in rows}
    assert {row.name for row in rows} == set(MODELS)
    assert {row.result for row in rows} == {"trains", "refused"}
