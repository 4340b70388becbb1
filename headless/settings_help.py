"""The settings as --help lists them: made from the same fields as the nodes' widgets."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from ..trainers.settings.dataset import DatasetConfig
from ..trainers.settings.field import Setting, settings_of
from ..trainers.settings.run import METHOD_CONFIGS, METHOD_DEFAULTS, config_groups

WIDTH = 96


def settings_help() -> str:
    """A paragraph for each setting, by what it belongs to."""
    lines: list[str] = []
    for title, fields in _groups():
        lines += ["", title]
        for name, (default, facts) in fields.items():
            lines += _paragraph(name, default, facts)
    return "\n".join(lines).lstrip()


def _groups() -> Iterator[tuple[str, Mapping[str, tuple[str, Setting]]]]:
    shared = {name: kind for name, kind in config_groups("lora").items() if name != "own"}
    for group, kind in shared.items():
        yield f"settings of every method: {group}", _fields(kind)
    for method, kind in METHOD_CONFIGS.items():
        yield f"settings of {method}", _fields(kind)
    yield "settings of the pictures (folder names them)", _fields(DatasetConfig)


def _fields(kind: type[Any]) -> dict[str, tuple[str, Setting]]:
    found = {}
    for name, (field, facts) in settings_of(kind).items():
        defaults = [_shown(field.default)]
        defaults += [
            f"{method} {_shown(own[name])}" for method, own in METHOD_DEFAULTS.items()
            if name in own and own[name] != field.default and kind not in METHOD_CONFIGS.values()
        ]  # fmt: skip
        found[name] = ("; ".join(defaults), facts)
    return found


def _paragraph(name: str, default: str, facts: Setting) -> list[str]:
    if facts.choices:
        allowed = f"; one of: {', '.join(facts.choices)}"
    elif facts.min is not None:
        allowed = f"; {_shown(facts.min)} to {_shown(facts.max)}"
    else:
        allowed = ""
    head = f"  {name} ({default}{allowed})"
    blank = " " * 6
    text = textwrap.wrap(facts.help, WIDTH, initial_indent=blank, subsequent_indent=blank)
    return [*textwrap.wrap(head, WIDTH, subsequent_indent=blank), *text]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value) or "empty"
