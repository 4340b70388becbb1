"""The graph that a run came from as the page had it, with its layout: workflow.json in its folder.

It names folders and prompts, and may hold much that has nothing to do with the run. So it is no
part of run.json, which is exported, and no file that is saved or pushed is made with it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_whole

WORKFLOW_JSON = "workflow.json"


def keep_workflow(folder: Path, workflow: Mapping[str, Any]) -> None:
    """Keep the graph of the run in `folder`, in place of what it was the last time.

    Raises:
        SaveError: it cannot be written.
    """
    path, content = folder / WORKFLOW_JSON, json.dumps(workflow).encode()
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            return
    write_whole(path, content)
