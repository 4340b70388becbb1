"""The node pack's entry point: which nodes there are."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .adapters import ApplyLora
from .class_images import ClassImages
from .dataset import FolderDataset, ImageDataset
from .results import PlotLoss, SaveLora
from .train import TrainDreamBooth, TrainLora

NODES: list[type[io.ComfyNode]] = [
    FolderDataset,
    ImageDataset,
    ClassImages,
    TrainLora,
    TrainDreamBooth,
    ApplyLora,
    SaveLora,
    PlotLoss,
]


class Personalize(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> Personalize:
    return Personalize()
