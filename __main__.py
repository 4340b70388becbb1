"""Trains what a run.json says, without ComfyUI's server; see headless/.

python ComfyUI/custom_nodes/personalize RUN.json     from anywhere
python -m personalize RUN.json                       in ComfyUI/custom_nodes
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys


def load() -> str:
    """Load the pack under the name that ComfyUI gives it, so that the two share its modules.

    Returns:
        That name.
    """
    parent, name = os.path.split(os.path.dirname(os.path.abspath(__file__)))
    folder = os.path.join(os.path.realpath(parent), name)
    # Python looks into the folder of a script first, where `nodes` would be ours.
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != os.path.realpath(folder)]
    package = folder.replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(package, os.path.join(folder, "__init__.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[package] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return package


def main() -> int:
    """The command's exit code."""
    package = load()
    return int(importlib.import_module(f"{package}.headless.command").main(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
