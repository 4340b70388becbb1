"""What is wired into a training node, and whether it goes together."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from ....trainers.data.dataset import Dataset
from ....trainers.data.validation import check_watched, seen_twice
from ....trainers.errors import DatasetError, SettingsError
from ....trainers.settings.objective import CLASS_IMAGES
from ....trainers.settings.preview import PreviewConfig
from ....trainers.settings.run import RunConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sockets:
    """What is wired into a training node.

    Attributes:
        model, clip, vae: of one checkpoint; None where the host has not loaded them, since the
            node said that it needs none (see base.py).
    """

    model: Any
    clip: Any
    vae: Any
    dataset: Dataset
    class_dataset: Dataset | None = None
    validation_dataset: Dataset | None = None
    preview: PreviewConfig | None = None

    @property
    def num_controls(self) -> int:
        """How many control images each picture has."""
        return self.dataset.num_controls

    @property
    def without_base(self) -> bool:
        """Whether the host has not loaded the base."""
        return self.model is None and self.clip is None and self.vae is None


def check_wiring(sockets: Sockets, config: RunConfig) -> None:
    """See that the datasets go together, and with the settings.

    Raises:
        DatasetError, SettingsError: they do not.
    """
    instance, classes = sockets.dataset, sockets.class_dataset
    watched = sockets.validation_dataset
    prior = config.objective.prior
    if classes is not None and config.objective.prior_weight and prior != CLASS_IMAGES:
        raise SettingsError(
            (f"prior is '{prior}', which takes no class_dataset, but one is wired; "
             "allowed: 'class images', or no class_dataset",)
        )  # fmt: skip
    check_watched(config.validation, watched is not None)
    _check_resolution("class_dataset", classes, instance)
    _check_resolution("validation_dataset", watched, instance)
    _check_controls(sockets)
    if watched is not None and (twice := seen_twice(instance, watched)):
        log.warning(
            "Personalize: validation_dataset ('%s') has pictures that are trained too, so their "
            "loss does not show whether others are learned by heart: %s.",
            watched.name, ", ".join(twice),
        )  # fmt: skip


def _check_controls(sockets: Sockets) -> None:
    """See that all have the same number of control images; class images may have none."""
    instance, wanted = sockets.dataset, sockets.num_controls
    for socket, dataset, may_lack in (
        ("validation_dataset", sockets.validation_dataset, False),
        ("class_dataset", sockets.class_dataset, True),
    ):
        if dataset is None or dataset.num_controls in (wanted, 0 if may_lack else wanted):
            continue
        raise DatasetError(
            f"Input '{socket}' ('{dataset.name}') has {_number(dataset.num_controls)} with each "
            f"picture, but 'dataset' ('{instance.name}') has {_number(wanted)}.\n"
            f"Give them the same{', or none to the class images' if may_lack else ''}."
        )
    if sockets.preview is None:
        return
    sockets.preview.check_controls(wanted)
    if wanted and not sockets.preview.control_images:
        log.warning(
            "Personalize: the pictures have control images, but Preview Settings has none, so "
            "previews are made from the prompts alone. Wire some into its control_images."
        )


def _number(controls: int) -> str:
    return f"{controls or 'no'} control image{'' if controls == 1 else 's'}"


def _check_resolution(socket: str, dataset: Dataset | None, instance: Dataset) -> None:
    if dataset is not None and dataset.resolution_px != instance.resolution_px:
        raise DatasetError(
            f"Input '{socket}' ('{dataset.name}') has resolution {dataset.resolution_px}, "
            f"but 'dataset' ('{instance.name}') has {instance.resolution_px}.\n"
            "Set the same resolution on both nodes."
        )
