"""The node pack's entry point: which nodes there are."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .adapters.apply import ApplyEmbedding, ApplyLora
from .adapters.merge import ExtractLora, MergeLoras, ResizeLora
from .adapters.stack import AdapterStack
from .pictures.captioning import CaptionImages
from .pictures.class_images import ClassImages
from .pictures.dataset import FolderDataset, ImageDataset
from .results.before_after import BeforeAfter
from .results.compare import Compare
from .results.hub import FetchFromHub, PushToHub
from .results.plot import PlotLoss
from .results.save import SaveEmbedding, SaveLora
from .results.similarity import SubjectSimilarity
from .training.export import ExportRun
from .training.load import LoadRun
from .training.settings import (
    LossSettings,
    MemorySettings,
    OptimizerSettings,
    PreviewSettings,
    RunSettings,
)
from .training.sweep import Sweep
from .training.train import TrainDreamBooth, TrainLora, TrainTextualInversion

NODES: list[type[io.ComfyNode]] = [
    FolderDataset,
    ImageDataset,
    CaptionImages,
    ClassImages,
    TrainLora,
    TrainDreamBooth,
    TrainTextualInversion,
    Sweep,
    OptimizerSettings,
    LossSettings,
    RunSettings,
    MemorySettings,
    PreviewSettings,
    ApplyLora,
    ApplyEmbedding,
    AdapterStack,
    MergeLoras,
    ExtractLora,
    ResizeLora,
    SaveLora,
    SaveEmbedding,
    PlotLoss,
    Compare,
    BeforeAfter,
    LoadRun,
    SubjectSimilarity,
    ExportRun,
    PushToHub,
    FetchFromHub,
]


class Personalize(ComfyExtension):
    async def on_load(self) -> None:
        from .host.captions.models import register_captioners
        from .host.captions.pages import register_captions
        from .host.folders import register_embeddings
        from .host.pictures.before_after import register_before_after
        from .host.runs.pages import register_pages
        from .host.workbench.presets import register_presets
        from .host.workbench.queue import register_queue
        from .host.workbench.runs import register_runs

        register_before_after()
        register_captioners()
        register_captions()
        register_embeddings()
        register_pages()
        register_presets()
        register_queue()
        register_runs()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .host.status import telling

        return list(map(telling, NODES))


async def comfy_entrypoint() -> Personalize:
    return Personalize()
