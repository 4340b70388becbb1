"""A run's settings in the words of the widgets, and as widgets take them back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...settings.field import settings_of, value_problems
from ...settings.run import METHOD_CONFIGS, METHOD_DEFAULTS, ON_OTHERS, ON_TRAINER, config_groups
from .rows import inside

OTHER = "other"  # the place of what no node of this version has
MOST_TEXT = 2000


def shown_settings(
    method: str, facts: Mapping[str, Any], titles: Mapping[str, str]
) -> list[dict[str, Any]]:
    """All settings in the order of the nodes and their widgets.

    Args:
        facts: of run.json.
        titles: what a place is called: a method's training node, by the method, or one of
            ON_OTHERS.

    Returns:
        {"group", "name", "label", "value", "default", "help"}; default and help are None for what
        this version does not know.
    """
    if method not in METHOD_CONFIGS:
        return []
    stored = _stored(method, facts)
    known = {
        name: (METHOD_DEFAULTS[method].get(name, field.default), told.help)
        for group in config_groups(method).values()
        for name, (field, told) in settings_of(group).items()
    }
    shown = []
    for place, names in _places(method, stored).items():
        for name in names:
            default, told = known.get(name, (None, None))
            shown.append(
                {
                    "group": titles.get(place, place),
                    "name": name,
                    "label": name,
                    "value": _shown(stored[name]),
                    "default": default,
                    "help": told,
                }
            )
    return shown


def widget_values(method: str, facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the widgets of each node are to have so that it trains this run again.

    Returns:
        {place: {name: value}}, places as for `shown_settings`; values that are not allowed, as in
        an edited run.json, are left out.
    """
    if method not in METHOD_CONFIGS:
        return {}
    stored, groups = _stored(method, facts), config_groups(method).values()
    fit = {
        name: stored[name]
        for group in groups
        for name in settings_of(group)
        if name in stored and not value_problems(group, {name: stored[name]})
    }
    places = _places(method, fit).items()
    return {place: {name: fit[name] for name in names} for place, names in places if names}


def _stored(method: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    stored: dict[str, Any] = {}
    for group in config_groups(method):
        found = inside(facts, group)
        stored |= found if isinstance(found, dict) else {}
    return stored


def _places(method: str, names: Collection[str]) -> dict[str, list[str]]:
    """Those names by the place where each stands."""
    places = {method: [name for name in ON_TRAINER[method] if name in names]}
    left = set(names) - set(places[method])
    for place, standing in ON_OTHERS.items():
        places[place] = [name for name in standing if name in left]
        left -= set(standing)
    return {**places, OTHER: sorted(left)}


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return value[:MOST_TEXT]
    return str(value)[:MOST_TEXT] if isinstance(value, list | dict) else value
