"""Nodes that make a dataset: from a folder of the host's input, or from images in the graph."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...trainers.data.listing import folder_state
from ...trainers.errors import DatasetError
from ...trainers.settings.dataset import DatasetConfig
from ...trainers.settings.field import from_values
from ..host.folders import (
    NO_FOLDER,
    dataset_folder,
    dataset_folders,
    folder_names,
    folder_problem,
)
from ..schema import inputs_of
from ..sockets import PersonalizeDataset

CATEGORY = "personalize/dataset"
ALIASES = [
    "dataset", "instance images", "training data", "captions", "dreambooth", "train lora",
    "textual inversion", "finetune", "kohya", "control images", "edit model", "image pairs",
]  # fmt: skip
CONTROL_INPUTS = ("control_images", "control_images_2", "control_images_3")
# Where captions and masks of a batch come from is said by wires.
BATCH_SETTINGS = ("prompt", "resolution", "buckets", "max_aspect_ratio", "upscale")
OUTPUT_HELP = "Pictures, captions, masks and control images, ready for a training node."


class FolderDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeFolderDataset",
            display_name="Training Images (Folder)",
            category=CATEGORY,
            description=(
                "Pictures of a folder as training data, with captions and masks from files beside "
                "them. Shows every picture as it will be trained; click a caption to edit it. New "
                "or changed files are noticed at the next run."
            ),
            search_aliases=[*ALIASES, "load images from folder"],
            is_output_node=True,  # so that the pictures can be looked over before training
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=dataset_folders() or [NO_FOLDER],
                    tooltip="A folder in ComfyUI's input folder. Its sub-folders named like "
                    "10_dog count ten times. Drop pictures onto this node, or press the button "
                    "below, to make one; one made by hand shows up after pressing R.",
                ),
                *inputs_of(DatasetConfig).values(),
                io.String.Input(
                    "control_folder",
                    optional=True,
                    advanced=True,
                    default="",
                    tooltip="For edit models: a folder in ComfyUI's input folder with one control "
                    "image for each picture, of the same name; several folders with commas "
                    "between for several control images. Or put name.control.png (or "
                    "name.control1.png, name.control2.png) beside name.png, and leave this empty.",
                ),
            ],
            outputs=[PersonalizeDataset.Output(display_name="dataset", tooltip=OUTPUT_HELP)],
        )

    @classmethod
    def validate_inputs(
        cls, folder: str | None = None, control_folder: str | None = ""
    ) -> bool | str:
        # None is wired: known only when it runs.
        names = [] if folder is None else [str(folder)]
        names += folder_names(control_folder or "")
        return next(filter(None, map(folder_problem, names)), None) or True

    @classmethod
    def fingerprint_inputs(
        cls, folder: str | None = None, control_folder: str | None = "", **settings: Any
    ) -> str | float:
        if folder is None or control_folder is None:
            return float("nan")
        names = [str(folder), *folder_names(control_folder)]
        return " ".join(folder_state(dataset_folder(name)) for name in names)

    @classmethod
    def execute(cls, folder: str, control_folder: str = "", **settings: Any) -> io.NodeOutput:
        from ...trainers.data.dataset import folder_dataset
        from ..host.pictures.overview import reading_progress, show_dataset
        from ..host.runs.base import known_files

        config = from_values(DatasetConfig, settings)
        controls = [dataset_folder(name) for name in folder_names(control_folder)]
        dataset = folder_dataset(
            dataset_folder(folder), config, reading_progress(), control_folders=controls,
            hash_file=known_files(),
        )  # fmt: skip
        return io.NodeOutput(dataset, ui=show_dataset(dataset, has_body=True))


class ImageDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeImageDataset",
            display_name="Training Images (Batch)",
            category=CATEGORY,
            description=(
                "Images from the graph as training data: a batch, or a list with images of "
                "different sizes. Shows every picture as it will be trained."
            ),
            search_aliases=[*ALIASES, "image batch", "image list"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Pictures to train on: a batch or a list."),
                io.String.Input(
                    "captions",
                    optional=True,
                    force_input=True,
                    tooltip="A list with one caption for each image, or one caption for all. "
                    "Replaces the prompt.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One mask for each image, or one for all; white is trained. Load "
                    "Image's mask is white where a picture is transparent: invert it first.",
                ),
                *inputs_of(DatasetConfig, only=BATCH_SETTINGS).values(),
                *(
                    io.Image.Input(
                        name,
                        optional=True,
                        tooltip=f"For edit models: {which} control image of each picture, what it "
                        "is to be made from: as many as images, in the same order.",
                    )
                    for name, which in zip(
                        CONTROL_INPUTS, ("the", "a second", "a third"), strict=True
                    )
                ),
            ],
            outputs=[PersonalizeDataset.Output(display_name="dataset", tooltip=OUTPUT_HELP)],
        )

    @classmethod
    def execute(
        cls,
        images: list[Any],
        captions: list[str] | None = None,
        masks: list[Any] | None = None,
        **settings: list[Any],
    ) -> io.NodeOutput:
        from ...trainers.data.dataset import batch_dataset
        from ..host.pictures.overview import show_dataset

        given = [settings.pop(name, None) for name in CONTROL_INPUTS]
        controls = [[image for batch in batches for image in batch] for batches in given if batches]
        config = from_values(DatasetConfig, {n: _single(n, v) for n, v in settings.items()})
        flat_images = [image for batch in images for image in batch]
        flat_masks = [mask for batch in masks or [] for mask in _as_batch(batch)]
        dataset = batch_dataset(flat_images, captions, flat_masks or None, config, controls)
        return io.NodeOutput(dataset, ui=show_dataset(dataset))


def _single(name: str, values: list[Any]) -> Any:
    """The one value of a widget, which arrives as a list because images may be one."""
    if len(values) != 1:
        raise DatasetError(
            f"Training Images: {name} got a list of {len(values)} values.\n"
            "Allowed: one value. Wire a list of texts into captions instead."
        )
    return values[0]


def _as_batch(mask: Any) -> Any:
    """A mask (h, w) or a batch of masks (B, h, w) as a batch."""
    return mask[None] if mask.ndim == 2 else mask
