"""Set up, try and test this project: all it needs is Python 3.10 or newer with pip.

    python dev.py demo [--images DIR] [--prompt TEXT] [--base FILE] [--steps N]
    python dev.py test [arguments for pytest]
    python dev.py evidence

Everything lands in ``.dev/`` (or ``PERSONALIZE_DEV_DIR``): a virtual environment, an
unchanged ComfyUI, base models, results. What is there already is not done again.
``COMFYUI_PATH`` names a ComfyUI of your own to use instead.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dev_setup import (
    DEV,
    NEWEST,
    OLDEST,
    PYTHON,
    ROOT,
    Trouble,
    own_environment,
    set_up,
    set_up_browser,
    set_up_lowest,
)

SOME_FAILED, NO_TESTS = 1, 5  # exit codes of pytest; the other where a choice leaves no test
# Test files that read sources or paint pictures, or try the demo, which is no part of the pack.
ALIKE_WITH_ANY_PACKAGES = ("demo_*", "grid", "js", "layout", "places")


def demo(asked: argparse.Namespace) -> int:
    """Trains on pictures in a real ComfyUI and samples with the result."""
    if asked.images is not None and not asked.images.is_dir():
        raise Trouble(f"--images {asked.images} is no folder. Name a folder with 3 to 30 pictures.")
    if asked.base is not None and not asked.base.is_file():
        raise Trouble(f"--base {asked.base} is no file. Name a checkpoint (.safetensors).")
    (comfyui,) = set_up(NEWEST)
    command = [PYTHON, "-m", "tests.before_after", "--comfyui", comfyui, "--work", DEV]
    for name in ("images", "prompt", "base", "steps"):
        if getattr(asked, name) is not None:
            command += [f"--{name}", getattr(asked, name)]
    return call(command)


def evidence() -> int:
    """Measures every method on the demo base and writes docs/evidence.md; takes hours on a CPU."""
    (comfyui,) = set_up(NEWEST)
    work = DEV / "evidence"
    return call([PYTHON, "-m", "demo.report", "--comfyui", comfyui, "--work", work])


def test(asked_of_pytest: Sequence[str]) -> int:
    """Lint, types, then all tests; the last line is pytest's."""
    newest, oldest = set_up(NEWEST, OLDEST)
    set_up_browser()
    in_rounds = "-m" not in asked_of_pytest  # of two, pytest takes the last
    with ThreadPoolExecutor(1) as meanwhile:  # checks keep one core busy, pip the network
        fetched = meanwhile.submit(set_up_lowest) if in_rounds else None
        failed = [name for name, command in checks().items() if not passes(name, command)]
    if failed:
        print(f"Not in order: {', '.join(failed)}. The tests run all the same.", flush=True)
    os.environ |= {
        "PERSONALIZE_DEV_DIR": str(DEV),
        "PERSONALIZE_COMFYUI": str(newest),
        "PERSONALIZE_COMFYUI_OLD": str(oldest),
    }
    # Two at a time: a host alone leaves a core idle half of the time. `-n 0` is one after another.
    # In the order of tests/conftest.py; by number of tests, long files of one test came last.
    apart = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    rounds: list[tuple[list[str], dict[str, str]]] = [(apart, {})]
    if fetched:
        rounds = [([*apart, "-m", "not large"], {}), (["-m", "large"], {})]
        # All other unit tests, since a list of what needs which package would not stay true; hosts
        # bring packages of their own.
        lowest = str(fetched.result())
        environment = {"PYTHONPATH": lowest, "PERSONALIZE_LOWEST": lowest}
        left_out = [f"--ignore-glob=tests/test_{name}.py" for name in ALIKE_WITH_ANY_PACKAGES]
        rounds.append(([*apart, *left_out, "-m", "not host and not large"], environment))
    codes = []
    for own, environment in rounds:
        codes.append(call([PYTHON, "-m", "pytest", *own, *asked_of_pytest], environment))
        if codes[-1] not in (0, SOME_FAILED, NO_TESTS):  # stopped, or cannot go on
            return codes[-1]
    told = set(codes) - {NO_TESTS} or {NO_TESTS}
    return max(told) or bool(failed)


def checks() -> dict[str, list[str]]:
    """Commands, as arguments of ``python -m``, by what they check."""
    # nodes/ reaches trainers/ as a part of one package, so they are checked as the host sees them
    package = DEV / "types" / "personalize"
    package.parent.mkdir(exist_ok=True)
    if not package.exists():
        package.symlink_to(ROOT, target_is_directory=True)
    names = ("trainers", "nodes", "headless")
    pack = [part for name in names for part in ("-p", f"personalize.{name}")]
    tools = ["dev.py", "dev_setup.py", "tests/host.py"]
    return {
        "lint": ["ruff", "check", "."],
        "format": ["ruff", "format", "--check", "."],
        "types of the pack": ["mypy", f"--cache-dir={DEV}/mypy-pack", *pack],
        "types of the tools": ["mypy", f"--cache-dir={DEV}/mypy-tools", *tools],
    }


def passes(name: str, command: Sequence[str]) -> bool:
    """Runs a check; its output is shown only if it finds fault."""
    environment = os.environ | {"MYPYPATH": str(DEV / "types")}
    done = subprocess.run(
        [PYTHON, "-m", *command],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    print(f"{name:20} {'ok' if done.returncode == 0 else 'FAILED'}", flush=True)
    if done.returncode:
        print(done.stdout, flush=True)
    return done.returncode == 0


def call(command: Sequence[object], more: Mapping[str, str] | None = None) -> int:
    """Runs a command that ends in order on Ctrl-C or SIGTERM, and returns its exit code.

    Args:
        more: variables beside those of our environment.
    """
    environment = own_environment() | dict(more or {})
    child = subprocess.Popen([str(part) for part in command], cwd=ROOT, env=environment)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue  # it got the same signal and is tidying up


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up, try and test this project.")
    commands = parser.add_subparsers(dest="command", required=True)
    trial = commands.add_parser("demo", help="train a LoRA in a real ComfyUI and sample with it")
    trial.add_argument("--images", type=Path, help="folder with 3 to 30 pictures of one subject")
    trial.add_argument("--prompt", help="what they show, such as 'a photo of a sks dog'")
    trial.add_argument("--base", type=Path, help="base model, a checkpoint file")
    trial.add_argument("--steps", type=int, help="optimizer steps")
    commands.add_parser("evidence", help="measure every method, write docs/evidence.md (hours)")
    commands.add_parser("test", help="lint, types and all tests; more arguments go to pytest")
    asked, asked_of_pytest = parser.parse_known_args()
    if asked_of_pytest and asked.command != "test":
        parser.error(f"unknown: {' '.join(asked_of_pytest)}")
    if sys.version_info < (3, 10):
        raise Trouble(f"Python {sys.version.split()[0]} is too old. Use Python 3.10 or newer.")
    if asked.command == "demo":
        return demo(asked)
    return evidence() if asked.command == "evidence" else test(asked_of_pytest)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Trouble as trouble:
        sys.exit(f"\n{trouble}")
    except OSError as error:
        sys.exit(f"\n{error.strerror}: {error.filename or DEV}. Mend that and run this again.")
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run this again: it goes on where it stopped.")
