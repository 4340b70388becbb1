"""A run made ready to be trained elsewhere: output/personalize/exports/<name>/.

run.json      the run, with its graph
files.json    {"files": [{"folder", "name", "bytes", "sha256"}]}: what it needs there
README.txt    the commands
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ....trainers.errors import RecipeError
from ....trainers.runs.files import checked_prefix, write_whole
from ..folders import runs_folder
from ..status import counted
from .base import known_files
from .graph import INPUT, PACK, NeededFile, needed_files

EXPORTS = "exports"
RUN_NAME = "%run%"
COMMANDS = """\
{title}

1. There, install ComfyUI and this node pack (custom_nodes/{pack}){others}.

2. Put these files into ComfyUI's folder, under the same names (files.json has their hashes):

{files}

3. Open a terminal in the folder of this README, and say where ComfyUI lies there:

   Linux, macOS:            COMFYUI=~/ComfyUI
   Windows (PowerShell):    $COMFYUI = "C:\\ComfyUI"

4. With the Python that runs ComfyUI, check that all is there:

   python "$COMFYUI/custom_nodes/{pack}" run.json --dry-run

   Then train. One process:

   python "$COMFYUI/custom_nodes/{pack}" run.json

   The GPUs of one machine, here 2, each with the whole model:

   torchrun --nproc-per-node 2 "$COMFYUI/custom_nodes/{pack}" run.json

   For a model that does not fit one of them, let --shard follow run.json.

   Several machines, here 2 with 8 GPUs each, that share ComfyUI's output folder; on each of them,
   with 0 for the first and 1 for the second after --node-rank, and the address of the first:

   torchrun --nnodes 2 --nproc-per-node 8 --node-rank 0 --master-addr 10.0.0.1 \
--master-port 29500 "$COMFYUI/custom_nodes/{pack}" run.json

   accelerate launch takes the same, in its own words.

ComfyUI's own arguments follow --, as in: ... run.json -- --lowvram
The result is in ComfyUI's output/personalize/{run}.
Copy that folder into the same place here, and the graph takes it from disk.
"""


def export_run(run: str, name: str) -> tuple[Path, list[str]]:
    """Write the three files; the folder they are in, and lines for the person at the node.

    Args:
        run: the folder of a run, as a training node hands it out.
        name: of the export; %run% is the name of the run's folder.

    Raises:
        RecipeError: it is no run, does not say what its graph was, or lacks files by now.
        SaveError: a file cannot be written, or the name cannot be used.
    """
    source = Path(run)
    facts = _facts(source)
    target = _target(checked_prefix(name.replace(RUN_NAME, source.name)))
    graph = facts["graph"]
    files = needed_files(graph["nodes"])
    _check(graph["files"], files)
    known = known_files()
    listed = [{**file.as_dict(), "sha256": known(file.path).hex()} for file in counted(files)]
    write_whole(target / "run.json", json.dumps(facts, indent=2).encode())
    write_whole(target / "files.json", json.dumps({"files": listed}, indent=2).encode())
    write_whole(target / "README.txt", _commands(facts, listed, source.name).encode())
    size = sum(file["bytes"] for file in listed) / 1e9
    place = target.relative_to(os.path.realpath(runs_folder())).as_posix()
    return target, [
        f"output/{runs_folder().name}/{place}",
        "README.txt in it says what to do with it.",
        f"To copy: {len(listed)} file{'s' * (len(listed) > 1)}, {size:.2f} GB.",
    ]


def _facts(run: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"'{run}' is not the folder of a run: its run.json cannot be read.\nWire in the run "
            "output of a training node."
        ) from error
    if not facts.get("graph"):
        raise RecipeError(
            f"'{run.name}' does not say what its graph was: an earlier version trained it.\n"
            "Queue its training node once more, which adds that."
        )
    return facts


def _target(name: str) -> Path:
    parent = Path(os.path.realpath(runs_folder() / EXPORTS))
    target = Path(os.path.realpath(parent / name))
    if parent not in target.parents:
        raise RecipeError(
            f"Name {name!r} leads out of {parent}.\nUse a name inside it, such as my_dog."
        )
    return target


def _check(before: list[dict[str, Any]], files: list[NeededFile]) -> None:
    there = {(file.folder, file.name) for file in files}
    gone = [f"{f['folder']}/{f['name']}" for f in before if (f["folder"], f["name"]) not in there]
    if gone:
        raise RecipeError(
            f"The run needs files that are no longer there: {', '.join(gone)}.\nPut them back, "
            "and queue again."
        )


def _commands(facts: dict[str, Any], files: list[dict[str, Any]], run: str) -> str:
    packs = facts["graph"]["custom_nodes"]
    places = [f["folder"] if f["folder"] == INPUT else f"models/{f['folder']}" for f in files]
    lines = [
        f"   {place}/{file['name']}  ({file['bytes'] / 1e6:.1f} MB)"
        for place, file in zip(places, files, strict=True)
    ]
    return COMMANDS.format(
        title=f"Run {run}: {facts['method']} on {facts['architecture']}",
        pack=PACK,
        others=f", and the packs {', '.join(packs)}" if packs else "",
        files="\n".join(lines),
        run=run,
    )
