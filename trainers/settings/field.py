"""What is known of a setting beside its value: bounds, help, source; and how values are checked.

The settings themselves are beside this file.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import SettingsError


@dataclass(frozen=True)
class Setting:
    """What is known of one field beside its name and default.

    Attributes:
        before: of a setting that was not always there: the value that does what was done without
            it. A run with that value is the same run as one that does not know the setting.
    """

    help: str
    min: float | None = None
    max: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    advanced: bool = True
    source: str = ""
    before: Any = None

    def problem_with(self, value: Any) -> str | None:
        """What is wrong with `value`, in the user's words, or None."""
        if self.choices:
            allowed = ", ".join(self.choices)
            return None if value in self.choices else f"is {value!r}; allowed: {allowed}"
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            too_small = self.min is not None and not value >= self.min
            too_large = self.max is not None and not value <= self.max
            if too_small or too_large:
                return f"is {value}; allowed: {self.min} to {self.max}"
        return None


def setting(default: Any, help: str, **facts: Any) -> Any:
    """A dataclass field that carries a Setting."""
    return field(default=default, metadata={"setting": Setting(help=help, **facts)})


class Settings:
    """A dataclass of settings. Making one raises a SettingsError with all that is not allowed."""

    def __post_init__(self) -> None:
        raise_problems(value_problems(type(self), vars(self)))
        raise_problems(self.problems())

    def problems(self) -> list[str]:
        """Which of its values do not go together, in the user's words."""
        return []


def settings_of(config: Any) -> dict[str, tuple[dataclasses.Field[Any], Setting]]:
    """The fields of a config class (or one of its objects) that carry a Setting, by name."""
    return {
        f.name: (f, f.metadata["setting"])
        for f in dataclasses.fields(config)
        if "setting" in f.metadata
    }


def value_problems(config_class: type[Any], values: Mapping[str, Any]) -> list[str]:
    """Which of the entries of `values` that are its fields are outside their bounds."""
    problems = []
    types_by_name = typing.get_type_hints(config_class)
    for name, (_, facts) in settings_of(config_class).items():
        if name not in values:
            continue
        value, expected = values[name], types_by_name[name]
        if problem := _type_problem(value, expected) or facts.problem_with(value):
            problems.append(f"{name} {problem}")
    return problems


def _type_problem(value: Any, expected: Any) -> str | None:
    allowed = expected.__args__ if isinstance(expected, types.UnionType) else (expected,)
    # An int is a fine float; a bool is neither, although Python says so.
    if isinstance(value, bool):
        matches = bool in allowed
    else:
        matches = isinstance(value, tuple(allowed)) or (isinstance(value, int) and float in allowed)
    names = " or ".join(kind.__name__ for kind in allowed)
    return None if matches else f"is {value!r}; allowed: a value of type {names}"


def raise_problems(problems: Iterable[str]) -> None:
    """Raise one SettingsError with all of `problems`; do nothing if there are none."""
    if listed := tuple(problems):
        raise SettingsError(listed)


def from_values(config_class: type[Any], values: Mapping[str, Any]) -> Any:
    """An object of `config_class` from the entries of `values` that are its fields.

    Raises:
        SettingsError: one or more values are not allowed; all are listed.
    """
    names = settings_of(config_class).keys()
    return config_class(**{name: values[name] for name in names if name in values})
