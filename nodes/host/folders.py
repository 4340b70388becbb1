"""The host's folders: which of the input folder can be datasets; where runs and embeddings lie."""

from __future__ import annotations

import os
import re
from pathlib import Path

import folder_paths

from ...trainers.data.listing import list_folder, picture_folders
from ...trainers.errors import DatasetError

NO_FOLDER = "(none yet: drop pictures here)"


def register_embeddings() -> None:
    """Let the host find embeddings in output/embeddings, as it finds LoRAs in output/loras."""
    folder_paths.add_model_folder_path(
        "embeddings", str(Path(folder_paths.get_output_directory()) / "embeddings")
    )


def runs_folder() -> Path:
    """Where every run has its folder."""
    return Path(folder_paths.get_output_directory()) / "personalize"


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
    if not folder.is_dir():
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
