"""The node that draws the loss of a training."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io, ui

from ...trainers.errors import SettingsError

LOSSES = "losses"  # of the node's `ui`: one text of JSON each time that it is executed
AUTO = "auto"
THEMES = (AUTO, "dark", "light")
OTHERS = tuple(f"loss_map_{number}" for number in range(2, 7))  # as many as there are dashes


class PlotLoss(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeLossPlot",
            display_name="Plot Loss",
            category="personalize/results",
            description=(
                "Draws the loss of every step and a smoothed line through it; also the held-out "
                "pictures' loss, and where there are previews and states. Several runs lie over "
                "each other."
            ),
            search_aliases=["loss graph", "loss curve", "training chart", "compare runs"],
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
                *(
                    io.LossMap.Input(
                        name, optional=True, tooltip="Another run, drawn over the first."
                    )
                    for name in OTHERS
                ),
                io.String.Input(
                    "labels",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip=(
                        "What each run is called where there are several, one a line, in the order "
                        "of the inputs. Empty: the input's name."
                    ),
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The plot.")],
        )

    @classmethod
    def execute(
        cls, loss_map: Any, theme: str = AUTO, labels: str = "", **others: Any
    ) -> io.NodeOutput:
        from ...trainers.runs.pictures.lines import Line, draw_lines, points_of
        from ...trainers.runs.pictures.plot import draw_losses, marks_of
        from ..host.pictures.overview import image_of

        # A page has chosen already: js/training/plot.js
        chosen = "dark" if theme == AUTO else theme
        more = {name: others[name] for name in OTHERS if others.get(name) is not None}
        maps = {"loss_map": loss_map, **more}
        names = labels_of(labels, tuple(maps)) if more else list(maps)
        lines = [
            Line(name, one["loss"], marks_of(one))
            for name, one in zip(names, maps.values(), strict=True)
        ]
        if more:
            plot = draw_lines(lines, chosen)
        else:
            plot = draw_losses(lines[0].losses, marks=lines[0].marks, theme=chosen)
        image = image_of(plot)
        # A page shows the points instead of the picture: js/training/plot.js
        points = json.dumps([points_of(line) for line in lines], allow_nan=False)
        shown = {**ui.PreviewImage(image, cls=cls).as_dict(), LOSSES: [points]}
        return io.NodeOutput(image, ui=shown)


def labels_of(text: str, inputs: tuple[str, ...]) -> list[str]:
    """What each run is called: its line of `text`, or the name of its input.

    Raises:
        SettingsError: there are more lines than runs.
    """
    given = [line.strip() for line in text.rstrip().splitlines()]
    if len(given) > len(inputs):
        problem = f"labels has {len(given)} lines for {len(inputs)} loss maps; allowed: one each"
        raise SettingsError((problem,))
    given += [""] * (len(inputs) - len(given))
    return [label or name for label, name in zip(given, inputs, strict=True)]
