"""The command line: what is asked for, what happens, and the exit code.

0: trained, or taken from disk. 1: it cannot be, for a reason that was told in two lines. 128 and
the signal's number (130 is Ctrl-C): stopped; the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..trainers.errors import PersonalizeError, ProcessesError, RecipeError
from . import host, runs
from .changes import changed
from .described import read_recipe
from .look import check_files, check_same, exported_hashes, why_another
from .plan import plan
from .recipe import Recipe
from .settings_help import settings_help
from .terminal import Terminal

if TYPE_CHECKING:
    from ..nodes.host.runs.run import Run

EPILOG = """\
RUN.json is the run.json of a run's folder (output/personalize/...), one written by hand, such as

  {"method": "lora", "base": {"checkpoint": "sd15.safetensors"},
   "dataset": {"folder": "dog", "prompt": "a photo of sks dog"}, "steps": 800}

or a graph saved with File > Export (API). What follows -- goes to ComfyUI, such as
-- --lowvram, or -- --base-directory PATH for one whose folders lie elsewhere. Ctrl-C writes the
state; the same command goes on from there.

personalize runs lists the runs that are there, and tidies them; see personalize runs --help.
"""


def main(arguments: Sequence[str]) -> int:
    """The exit code."""
    own, of_host = _split(list(arguments))
    if own[:1] == [runs.COMMAND]:
        return _told(lambda: runs.main(own[1:], of_host))
    asked = _parser().parse_args(own)
    terminal = Terminal()
    return _told(lambda: _run(asked, of_host, terminal), terminal.close)


def _told(work: Callable[[], int], close: Callable[[], None] = lambda: None) -> int:
    try:
        return work()
    except PersonalizeError as error:
        close()
        print(error, file=sys.stderr)
        return 1


def _run(asked: argparse.Namespace, of_host: Sequence[str], terminal: Terminal) -> int:
    recipes = [changed(read_recipe(file), asked.set) for file in asked.files]
    hashes = [exported_hashes(file) if asked.dry_run else {} for file in asked.files]
    host.start(host.find_comfyui(asked.comfyui), of_host, terminal.say, terminal.count)
    asked_of_launcher = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    terminal.is_shown = host.join(asked.shard or asked_of_launcher)
    for recipe, hashed in zip(recipes, hashes, strict=True):
        host.load_nodes(recipe, asked.custom_nodes)
        if not asked.other_files:
            check_files(recipe, hashed)
    code = 0
    for file, recipe in zip(asked.files, recipes, strict=True):
        # Before any bar: the host's log cannot begin with a line that is written over.
        terminal.line(f"{file}:")
        if code := _train(recipe, asked, terminal):
            break
    host.leave()
    return code


def _train(recipe: Recipe, asked: argparse.Namespace, terminal: Terminal) -> int:
    folders = _look_at_runs(recipe, asked, terminal)
    ended_by = host.run(recipe)
    terminal.close()
    number = host.ended_by_signal()
    if isinstance(ended_by, ProcessesError) and number != signal.SIGINT:
        raise ended_by  # a launcher that lost one asks the others to end: that is no answer
    if number is not None:
        return 128 + number
    if isinstance(ended_by, host.interrupt()):  # planned; or another process was asked to end
        return 0 if asked.dry_run else 128 + signal.SIGINT
    if ended_by is None:
        for folder in folders:
            terminal.line(f"in {folder}")
        return 0
    if type(ended_by).__name__ == "OutOfMemoryError":  # its text says what to change
        raise RecipeError(str(ended_by)) from ended_by
    raise ended_by


def _look_at_runs(recipe: Recipe, asked: argparse.Namespace, terminal: Terminal) -> list[Path]:
    """The folders of the runs that the recipe asks for, as they come."""
    from ..nodes.host.runs.run import LOOKS

    folders: list[Path] = []

    def look(run: Run) -> None:
        node = str(run.reporter.node.node_id)
        is_target = node in recipe.targets
        if is_target:
            folders.append(run.folder.path)
            if not asked.other_files:
                check_same(recipe, run.facts, node)
            if another := why_another(recipe, run.facts, run.folder.fingerprint):
                terminal.line(another)
        if asked.dry_run:
            _tell(run, is_target, terminal)

    LOOKS[:] = [look]
    return folders


def _tell(run: Run, is_target: bool, terminal: Terminal) -> None:
    """The plan of a run, which ends there unless its result is on disk and others need it."""
    if is_target:
        for line in plan(run):
            terminal.line(line)
    elif run.kept_steps is not None and run.folder.has_result(run.kept_steps):
        return
    else:
        terminal.line(f"needs {run.shown_path}, which would be trained first")
    raise host.interrupt()


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Ours, and the host's."""
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="personalize",
        usage="personalize RUN.json ... [options] [-- arguments of ComfyUI]",
        description="Trains without ComfyUI's server: same code, same files as in the graph.",
        epilog=EPILOG + "\n" + settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("files", metavar="RUN.json", type=Path, nargs="+", help="what to train; several in turn")
    add(
        "--set", metavar="NAME=VALUE", action="append", default=[],
        help="another value for a setting; may be repeated",
    )  # fmt: skip
    add(
        "--dry-run", action="store_true",
        help="check all and tell the plan, with the memory that a step needs; train nothing",
    )  # fmt: skip
    add(
        "--shard", action="store_true",
        help="several processes each keep a part of the denoiser's weights (FSDP2): for models "
        "that do not fit one GPU, and are not quantized (codes stay whole everywhere); "
        "also by accelerate launch --use_fsdp",
    )  # fmt: skip
    add("--comfyui", metavar="PATH", type=Path, help="its folder; by default that of this pack")
    add(
        "--custom-nodes", metavar="NAME", action="append", default=[],
        help="also load this folder of custom_nodes; a run.json names what it needs",
    )  # fmt: skip
    add("--other-files", action="store_true", help="train where files are not those of the run")
    return parser
