"""The node that draws the loss of a training."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

AUTO = "auto"
THEMES = (AUTO, "dark", "light")


class PlotLoss(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeLossPlot",
            display_name="Plot Loss",
            category="personalize/results",
            description=(
                "Draws the loss of every step and a smoothed line through it; also the held-out "
                "pictures' loss, and where there are previews and states."
            ),
            search_aliases=["loss graph", "loss curve", "training chart"],
            is_output_node=True,
            inputs=[
                io.LossMap.Input("loss_map", tooltip="From a training node."),
                io.Combo.Input(
                    "theme",
                    options=list(THEMES),
                    default=AUTO,
                    optional=True,
                    tooltip=(
                        "auto is dark or light as the page that queues the graph; dark where no "
                        "page does."
                    ),
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The plot.")],
        )

    @classmethod
    def execute(cls, loss_map: Any, theme: str = AUTO) -> io.NodeOutput:
        from ...trainers.runs.pictures.plot import draw_losses, marks_of
        from ..host.pictures.overview import image_of

        chosen = (
            "dark" if theme == AUTO else theme
        )  # a page has chosen already: js/training/plot.js
        plot = draw_losses(loss_map["loss"], marks=marks_of(loss_map), theme=chosen)
        image = image_of(plot)
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))
