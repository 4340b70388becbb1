"""The host's folders: which of the input folder can be datasets; where runs, embeddings and what is
fetched lie; what of the output folder may be shared.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import folder_paths

from ...trainers.data.listing import list_folder, picture_folders
from ...trainers.errors import DatasetError, RunError, SettingsError
from ...trainers.runs.folder import RunFolder

NO_FOLDER = "(none yet: drop pictures here)"
DATA_SET = "input (data set)"
# What something can be fetched into.
PLACES = (
    "checkpoints", "diffusion_models", "loras", "embeddings", "text_encoders", "vae", DATA_SET
)  # fmt: skip
OLD_NAMES = ("unet", "clip")  # of folders that the host still reads


def register_embeddings() -> None:
    """Let the host find embeddings in output/embeddings, as it finds LoRAs in output/loras."""
    folder_paths.add_model_folder_path(
        "embeddings", str(Path(folder_paths.get_output_directory()) / "embeddings")
    )


def runs_folder() -> Path:
    """Where every run has its folder."""
    return Path(folder_paths.get_output_directory()) / "personalize"


def find_run(run: str, place: str, remedy: str) -> RunFolder:
    """A run by its folder's name, or by its path; only what lies in the folder of runs is opened.

    Args:
        place: the input that names it.
        remedy: what to do where there is none.

    Raises:
        RunError: there is none.
    """
    root = Path(os.path.realpath(runs_folder()))
    path = _resolved(root / run.strip())
    folder = RunFolder.at(path) if path is not None and root in path.parents else None
    if folder is None:
        raise RunError(
            f"{place}: {run[:200]!r} is no run; allowed: a folder of output/personalize that a "
            f"training made.\n{remedy}"
        )
    return folder


def folder_to_fetch_into(place: str) -> Path:
    """The folder of one of PLACES."""
    if place == DATA_SET:
        return Path(folder_paths.get_input_directory())
    folders = [Path(folder) for folder in folder_paths.get_folder_paths(place)]
    return next((folder for folder in folders if folder.name not in OLD_NAMES), folders[0])


def output_file(path: str) -> Path:
    """A file in the output folder, by its path or its name there.

    Raises:
        SettingsError: there is none, or it would lie outside.
    """
    root = Path(os.path.realpath(folder_paths.get_output_directory()))
    file = _resolved(root / path.strip())
    if file is None or root not in file.parents or not file.is_file():
        raise SettingsError(
            (f"path is {path!r}; allowed: a file in ComfyUI's output folder, by its name there, "
             "such as loras/dog_00001_.safetensors, or wired from Save LoRA",)
        )  # fmt: skip
    return file


def dataset_folders() -> list[str]:
    """Names of all folders in the input folder that hold pictures, nested ones too, sorted.

    A name is a path from the input folder with forward slashes. Links out of it are not followed.
    """
    root = Path(folder_paths.get_input_directory())
    names = (folder.relative_to(root).as_posix() for folder in picture_folders(root))
    return sorted(names, key=str.casefold)


def dataset_folder(name: str) -> Path:
    """The folder of that name in the input folder.

    Raises:
        DatasetError: it would lie outside the input folder, does not exist, or has no picture.
    """
    root = Path(os.path.realpath(folder_paths.get_input_directory()))
    if name.strip() in ("", NO_FOLDER):
        raise DatasetError(
            "No folder is chosen.\nDrop pictures onto the node, or make a folder with pictures in "
            f"{root}, press R and choose it."
        )
    folder = _resolved(root / name)
    if folder is None or root not in folder.parents:
        raise DatasetError(
            f"Folder {name!r} is not inside {root}.\nMove or copy the pictures into a folder there "
            "and choose that one."
        )
    if not os.path.isdir(folder):  # no error for a name that is too long
        raise DatasetError(
            f"Folder {name!r} does not exist in {root}.\nMake it and put pictures into it, or "
            f"choose one of: {', '.join(dataset_folders()) or '(none has pictures yet)'}."
        )
    return folder


def folder_names(text: str) -> list[str]:
    """The names of folders in a text, with commas or line ends between."""
    return [name.strip() for name in re.split(r"[,\n]", text) if name.strip()]


def folder_problem(name: str) -> str | None:
    """Why that folder cannot be a dataset, to be told before anything runs; or None."""
    try:
        folder = dataset_folder(name)
        if not list_folder(folder).pictures:
            return f"Folder {name!r} has no pictures in it.\nPut some there, or choose another one."
    except DatasetError as error:
        return str(error)
    return None


def _resolved(path: Path) -> Path | None:
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a name with a null character
        return None
