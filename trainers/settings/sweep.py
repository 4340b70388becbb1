"""The grid of a sweep: text with a line for each setting, and the runs that come of it.

    learning_rate: 1e-4, 5e-5
    rank: 4, 16
    seed: 7

Every setting of the methods can be named, and `method` itself. Values with a comma stand in double
quotes. Imports no torch.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import itertools
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import SettingsError
from .field import raise_problems, settings_of, value_problems
from .memory import MemoryConfig
from .run import METHOD_CONFIGS, METHOD_DEFAULTS, ON_TRAINER, WITHOUT, check_queued, config_groups
from .store import StoreConfig

MOST_RUNS = 64
METHOD = "method"
LENGTHS = ("steps", "epochs")  # a longer run goes on from a shorter one, so that comes first
SWITCH = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
# What is kept of a run, and where it computes, does not make it another one; see runs/folder.py.
SAME_RUN = {*settings_of(StoreConfig), *settings_of(MemoryConfig)} - {"resume_from", "resume_step"}
SHAPE = "a line for each setting, such as learning_rate: 1e-4, 5e-5"
MOST_SHOWN = 60  # characters of what was written


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        values: the settings of the grid that its method has.
        varied: those of them that have several values in the grid, by which people know it; with
            the method where that has several.
    """

    method: str
    values: Mapping[str, Any]
    varied: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What makes it differ, such as `learning_rate 5e-05, rank 16`."""
        return ", ".join(f"{name} {shown(value)}" for name, value in self.varied.items())


@dataclass(frozen=True)
class Grid:
    """A sweep as it was asked for.

    Attributes:
        axes: what has several values, in the order of the text, and its values.
        cells: the runs; what is written last changes from each to the next.
    """

    axes: Mapping[str, tuple[Any, ...]]
    cells: tuple[Cell, ...]


def grid_of(text: str, method: str) -> Grid:
    """The runs that a text asks for.

    Args:
        method: of those runs where the text names none.

    Raises:
        SettingsError: a line cannot be read, a value is not allowed, or there are too many runs;
            all of it is listed.
    """
    problems: list[str] = []
    written = _written(text, problems)
    methods = written.pop(METHOD, [method])
    problems += [f"{METHOD} {_not_in(one, METHOD_CONFIGS)}" for one in methods
                 if one not in METHOD_CONFIGS]  # fmt: skip
    known = [one for one in methods if one in METHOD_CONFIGS]
    if known:
        problems += _unknown(written, known)
    axes = {name: _values(name, texts, known, problems) for name, texts in written.items()}
    _check_axes({METHOD: methods, **axes}, problems)
    raise_problems(problems)
    grid = _grid(methods, axes)
    if len(grid.cells) > MOST_RUNS:
        problems.append(
            f"settings makes {len(grid.cells)} runs; allowed: at most {MOST_RUNS} in one sweep"
        )
    raise_problems(problems)
    _check_cells(grid)
    return grid


def labelled(problems: Mapping[str, Sequence[str]], num_cells: int) -> list[str]:
    """Problems with the cells that have them; without these where all have the same one."""
    having: dict[str, list[str]] = {}
    for label, found in problems.items():
        for problem in found:
            having.setdefault(problem, []).append(label)
    return [
        problem if len(labels) == num_cells else f"{problem} (with {' / '.join(labels)})"
        for problem, labels in having.items()
    ]


def shown(value: Any) -> str:
    """A value as people write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


# -- reading ------------------------------------------------------------------


def _written(text: str, problems: list[str]) -> dict[str, list[str]]:
    """The values of each line as they are written, by the setting."""
    found: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("#"):
            continue
        name, colon, rest = (part.strip() for part in line.partition(":"))
        values = [value.strip() for value in next(csv.reader([rest], skipinitialspace=True), [])]
        if not colon or not values:
            problems.append(f"settings has the line {line[:MOST_SHOWN]!r}; allowed: {SHAPE}")
        elif name in found:
            problems.append(f"{name} has two lines in settings; allowed: one with all its values")
        else:
            found[name] = values
    if not found and not problems:
        problems.append(f"settings is empty; allowed: {SHAPE}")
    return found


def _unknown(names: Mapping[str, Any], methods: Sequence[str]) -> list[str]:
    """Which of the names none of the methods has, each with the one that may be meant."""
    known = {name for method in methods for name in _known(method)}
    problems = []
    for name in names:
        if name in known:
            continue
        near = difflib.get_close_matches(name, sorted(known), 1)
        meant = f" such as {near[0]}" if near else ", by the names of its widgets"
        which = " and ".join(methods)
        problems.append(f"{name[:MOST_SHOWN]!r} is no setting; allowed: those of {which}{meant}")
    return problems


def _known(method: str) -> dict[str, tuple[type[Any], Any]]:
    """A method's settings: the class that has each, and its type."""
    return {
        name: (group, typing.get_type_hints(group)[name])
        for group in config_groups(method).values()
        for name in settings_of(group)
        if name not in WITHOUT.get(method, ())
    }


def _values(
    name: str, texts: Sequence[str], methods: Sequence[str], problems: list[str]
) -> tuple[Any, ...]:
    """What is written as values of the setting's type, checked for each method that has it."""
    having = [known[name] for known in map(_known, methods) if name in known]
    if not having:
        return tuple(texts)
    values = tuple(_value(text, having[0][1]) for text in texts)
    found = {
        problem: None
        for group, kind in having
        for value in values
        for problem in _problems(group, name, value, kind)
    }
    problems += found
    return tuple(sorted(values)) if name in LENGTHS and not found else values


def _problems(group: type[Any], name: str, value: Any, kind: Any) -> list[str]:
    if kind is bool and not isinstance(value, bool):
        return [f"{name} is {value!r}; allowed: on or off"]
    return value_problems(group, {name: value})


def _value(text: str, kind: Any) -> Any:
    """A value of that type where the text is one; else the text, which the checks refuse."""
    if kind is bool:
        return SWITCH.get(text.casefold(), text)
    with contextlib.suppress(ValueError):
        if kind is float:
            return float(text)
        if kind is int:
            return int(text)
    with contextlib.suppress(ValueError, OverflowError):
        if kind is int and float(text) == int(float(text)):  # 1e3
            return int(float(text))
    return text


# -- the runs -----------------------------------------------------------------


def _check_axes(axes: Mapping[str, Sequence[Any]], problems: list[str]) -> None:
    for name, values in axes.items():
        twice = {shown(value) for value in values if list(values).count(value) > 1}
        problems += [f"{name} has {value} twice; allowed: each value once"
                     for value in sorted(twice)]  # fmt: skip
        if len(values) > 1 and name in SAME_RUN:
            problems.append(
                f"{name} has {len(values)} values, but it does not change what a run learns; "
                "allowed: one value"
            )


def _grid(methods: Sequence[str], axes: Mapping[str, tuple[Any, ...]]) -> Grid:
    several = {METHOD: tuple(methods), **axes}
    several = {name: values for name, values in several.items() if len(values) > 1}
    cells: dict[str, Cell] = {}  # a setting that a method lacks makes no further runs of it
    for method in methods:
        own = {name: values for name, values in axes.items() if name in _known(method)}
        for chosen in itertools.islice(itertools.product(*own.values()), 10 * MOST_RUNS):
            values = dict(zip(own, chosen, strict=True))
            varied = {name: value for name, value in {METHOD: method, **values}.items()
                      if name in several}  # fmt: skip
            cell = Cell(method, values, varied)
            cells[repr((method, values))] = cell
    return Grid(several, tuple(cells.values()))


def _check_cells(grid: Grid) -> None:
    """Refuse what contradicts itself on a training node, as that does when it is queued."""
    problems: dict[str, Sequence[str]] = {}
    for cell in grid.cells:
        defaults = {
            name: METHOD_DEFAULTS[cell.method].get(name, field.default)
            for group in config_groups(cell.method).values()
            for name, (field, _) in settings_of(group).items()
        }
        together = {name: cell.values.get(name, defaults[name]) for name in ON_TRAINER[cell.method]}
        try:
            check_queued(cell.method, together)
        except SettingsError as error:
            problems[cell.label] = error.problems
    raise_problems(labelled(problems, len(grid.cells)))


def _not_in(value: str, allowed: Mapping[str, Any]) -> str:
    return f"is {value[:MOST_SHOWN]!r}; allowed: {', '.join(allowed)}"
