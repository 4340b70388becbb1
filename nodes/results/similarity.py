"""The node that measures how like the subject samples are: CLIP-I, CLIP-T and DINO."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ...trainers.settings.field import from_values
from ...trainers.settings.preview import SimilarityConfig
from ..schema import inputs_of
from ..sockets import PersonalizeDataset


class SubjectSimilarity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeSimilarity",
            display_name="Subject Similarity",
            category="personalize/results",
            description=(
                "Measures samples beside the pictures of a dataset: how like the subject they are "
                "(CLIP-I, DINO) and how well they follow their prompts (CLIP-T). Names the best "
                "row of a comparison: which strength, which length, which method."
            ),
            search_aliases=[
                "clip-i", "clip-t", "clip score", "dino", "subject fidelity", "prompt fidelity",
                "metrics", "evaluate", "clip similarity",
            ],
            is_output_node=True,
            inputs=[*_sockets(), *inputs_of(SimilarityConfig).values()],
            outputs=_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        dataset: Any,
        images: Any,
        clip_vision: Any = None,
        dino: Any = None,
        clip: Any = None,
        masks: Any = None,
        **values: Any,
    ) -> io.NodeOutput:
        config = from_values(SimilarityConfig, values)
        from ...trainers.runs.pictures.similarity import CLIP_I, CLIP_T, DINO
        from ...trainers.runs.pictures.similarity_plot import draw_report
        from ..host.pictures.overview import image_of
        from ..host.pictures.similarity import Judges, Samples, numbers, similarity

        judges = Judges(clip_vision, dino, clip)
        report = similarity(dataset, Samples(images, masks), judges, config)
        chart, table = image_of(draw_report(report)), report.table()
        shown = {**ui.PreviewImage(chart, cls=cls).as_dict(), "text": [table]}
        means = numbers(report, (CLIP_I, CLIP_T, DINO))
        return io.NodeOutput(*means, table, report.as_csv(), chart, ui=shown)


def _sockets() -> list[io.Input]:
    return [
        PersonalizeDataset.Input(
            "dataset",
            tooltip=(
                "The subject: its pictures as they are trained. Pictures that were not trained "
                "tell more than those that were."
            ),
        ),
        io.Image.Input(
            "images", tooltip="What is measured: samples, or images of Compare, row by row."
        ),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip=(
                "For CLIP-I and CLIP-T: a CLIP of Load CLIP Vision, such as ViT-L/14, ViT-H/14 or "
                "ViT-bigG/14."
            ),
        ),
        io.ClipVision.Input(
            "dino",
            optional=True,
            tooltip="For DINO: DINOv2 (large, giant) or DINOv3 (ViT-H+), by Load CLIP Vision.",
        ),
        io.Clip.Input(
            "clip",
            optional=True,
            tooltip=(
                "For CLIP-T: the text half of the same CLIP as clip_vision, with its "
                "text_projection. clip_g of an SDXL checkpoint is that of ViT-bigG/14."
            ),
        ),
        io.Mask.Input(
            "masks",
            optional=True,
            tooltip=(
                "Where the subject is in images, one mask for all or one each: only that is "
                "looked at, on grey. The dataset has its own: see dataset_masks."
            ),
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Float.Output(
            display_name="clip_i",
            tooltip="The mean over all images: how like the dataset's pictures they are, by CLIP.",
        ),
        io.Float.Output(
            display_name="clip_t",
            tooltip="The mean over all images: how well they follow their prompts.",
        ),
        io.Float.Output(
            display_name="dino",
            tooltip="The mean over all images: how like the dataset's pictures they are, by DINO.",
        ),
        io.String.Output(
            display_name="table", tooltip="Each row's means, the best marked with a star."
        ),
        io.String.Output(
            display_name="per_image", tooltip="The numbers of each image, as CSV with a header."
        ),
        io.Image.Output(display_name="chart", tooltip="The table as a picture."),
    ]
