"""The tree keeps its shape: who imports whom, how long things get, what ships with a node."""

from __future__ import annotations

import ast
import graphlib
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import ROOT

TRAINERS = sorted((ROOT / "trainers").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))
HEADLESS = sorted((ROOT / "headless").rglob("*.py"))
HOST_MODULES = ("comfy", "comfy_extras", "comfy_execution", "execution", "folder_paths")
HOST_MODULES += ("latent_preview", "node_helpers", "server")
FUNCTION_LINES, FILE_LINES = 60, 400
DOCS, WORKFLOWS = ROOT / "js" / "docs", ROOT / "workflows"

MOST_ENTRIES = 12  # of a folder, beside __init__.py


def part_of(name: str) -> str:
    """The room or front module of trainers/ that a dotted name belongs to; "" for others."""
    parts = name.split(".")
    return parts[1] if parts[0] == "trainers" and len(parts) > 1 else ""


def imports(file: Path) -> set[str]:
    """Dotted names of all that a file imports, at its top or later, seen from the root."""
    package = file.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def inside(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that are more than a blank, a comment or a docstring."""
    lines = set()
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout | {tokenize.ENDMARKER}:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def functions(source: str) -> Iterator[tuple[str, int]]:
    """Name and lines of code of every function's body."""
    lines = code_lines(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = range(node.body[0].lineno, (node.end_lineno or 0) + 1)
            yield node.name, len(lines & set(body))


def node_ids() -> list[str]:
    calls = (n for f in NODES for n in ast.walk(ast.parse(f.read_text(encoding="utf-8"))))
    return [
        keyword.value.value
        for call in calls
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "node_id" and isinstance(keyword.value, ast.Constant)
    ]


def named(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", TRAINERS, ids=named)
def test_trainers_never_import_the_host_or_its_nodes(file: Path) -> None:
    host = (*HOST_MODULES, "comfy_api", "nodes")
    assert {name for name in imports(file) if inside(name, host)} == set()


def test_parts_of_trainers_import_each_other_in_no_circle() -> None:
    below: dict[str, set[str]] = {}
    for file in TRAINERS:
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        own = part_of(name.removesuffix(".__init__"))
        below.setdefault(own, set()).update({part_of(one) for one in imports(file)} - {own, ""})
    list(graphlib.TopologicalSorter(below).static_order())  # CycleError names the circle


@pytest.mark.parametrize("root", ["trainers", "nodes", "headless"])
def test_folders_have_few_entries_and_say_what_lives_there(root: str) -> None:
    for init in (ROOT / root).rglob("__init__.py"):
        entries = {path.name for path in init.parent.iterdir()} - {"__init__.py", "__pycache__"}
        assert len(entries) <= MOST_ENTRIES, f"{init.parent}: {sorted(entries)}"
        assert ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))), init


@pytest.mark.parametrize("file", NODES + HEADLESS, ids=named)
def test_the_host_is_reached_through_one_folder_and_one_file(file: Path) -> None:
    if file.is_relative_to(ROOT / "nodes" / "host") or file == ROOT / "headless" / "host.py":
        return
    assert {name for name in imports(file) if inside(name, HOST_MODULES)} == set()


@pytest.mark.parametrize("file", TRAINERS + NODES + HEADLESS, ids=named)
def test_pack_imports_itself_relatively(file: Path) -> None:
    tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    absolute = [node.module for node in tree if isinstance(node, ast.ImportFrom) and not node.level]
    assert [name for name in absolute if inside(name or "", ("trainers", "nodes"))] == []


@pytest.mark.parametrize(
    "file", [ROOT / "trainers/errors.py", *(ROOT / "trainers/settings").glob("*.py")], ids=named
)
def test_settings_are_known_without_torch(file: Path) -> None:
    heavy = ("torch", "diffusers", "transformers", "peft")
    assert {name for name in imports(file) if inside(name, heavy)} == set()


@pytest.mark.parametrize("file", TRAINERS + NODES + HEADLESS, ids=named)
def test_files_and_functions_stay_short(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= FILE_LINES
    assert {name: n for name, n in functions(source) if n > FUNCTION_LINES} == {}


def test_every_node_has_a_help_page_and_no_page_is_left_over() -> None:
    ids = node_ids()
    assert sorted(ids) == sorted(page.stem for page in DOCS.glob("*.md"))
    assert [i for i in ids if not i.startswith("Personalize")] == []


def test_every_workflow_has_its_picture() -> None:
    graphs = {file.stem for file in WORKFLOWS.glob("*.json")}
    assert graphs
    assert graphs == {file.stem for file in WORKFLOWS.glob("*.jpg")}


def test_templates_lie_in_one_folder_for_the_host_serves_only_one() -> None:
    names = ("workflow", "workflows", "example", "examples", "example_workflows")
    assert [name for name in names if (ROOT / name).is_dir()] == ["workflows"]
