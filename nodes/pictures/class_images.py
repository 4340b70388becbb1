"""The node that makes class images."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...trainers.settings.class_images import ClassImagesConfig
from ...trainers.settings.field import from_values
from ..host.sampling import SAMPLERS, SCHEDULERS
from ..schema import inputs_of
from ..sockets import PersonalizeDataset


class ClassImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        settings = inputs_of(ClassImagesConfig)
        seed, batch_size = settings.pop("seed"), settings.pop("batch_size")
        return io.Schema(
            node_id="PersonalizeClassImages",
            display_name="Class Images",
            category="personalize/dataset",
            description=(
                "Makes pictures of the subject's class with the base model, for prior "
                "preservation: they keep the class as it is while your subject is learned. They "
                "are kept, and only those that are missing are made."
            ),
            search_aliases=[
                "regularization images", "reg images", "prior preservation", "dreambooth",
                "generate class images",
            ],
            is_output_node=True,  # so that they can be made and looked over before training
            inputs=[
                io.Model.Input("model", tooltip="The base model, the one that will be trained."),
                io.Clip.Input("clip", tooltip="The clip of the same checkpoint."),
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                *settings.values(),
                io.Combo.Input(
                    "sampler_name", options=SAMPLERS, default="dpmpp_2m", tooltip="As in KSampler."
                ),
                io.Combo.Input(
                    "scheduler", options=SCHEDULERS, default="karras", tooltip="As in KSampler."
                ),
                seed,
                batch_size,
            ],
            outputs=[
                PersonalizeDataset.Output(
                    display_name="dataset", tooltip="For class_dataset of a training node."
                )
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, sampler_name: str, scheduler: str, **settings: Any
    ) -> io.NodeOutput:
        config = from_values(ClassImagesConfig, settings)
        from ..host.pictures.class_images import Painter, class_images
        from ..host.pictures.overview import show_dataset

        dataset = class_images(Painter(model, clip, vae, sampler_name, scheduler), config)
        return io.NodeOutput(dataset, ui=show_dataset(dataset))
