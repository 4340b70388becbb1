"""The families of base models that can be trained. A new one is a file and a line here."""

from __future__ import annotations

from ..contracts import Family
from .sd15 import SD15

FAMILIES: dict[str, Family] = {family.name: family for family in (SD15,)}
