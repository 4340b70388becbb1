"""The node that trains a grid of settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from comfy_api.latest import io, ui

from ...trainers.errors import SettingsError
from ...trainers.settings.run import METHOD_CONFIGS
from ...trainers.settings.sweep import MOST_RUNS, grid_of
from .train import BASE, others_in, sockets_in, sockets_of

if TYPE_CHECKING:  # host modules load torch, so they wait until a node runs
    from ..host.workbench.sweep import Planned, Refused

METHODS = tuple(METHOD_CONFIGS)
EXAMPLE = "learning_rate: 1e-4, 5e-5\nrank: 4, 16\nsteps: 500"


class Sweep(io.ComfyNode):
    SHOWS_TRAINING: ClassVar[bool] = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeSweep",
            display_name="Sweep",
            category="personalize/train",
            description=(
                "Trains every combination of the settings that you list, one run after another, "
                "and shows them beside each other: a table, their losses, their pictures. Each "
                "run is kept and goes on where it was, as one of a training node."
            ),
            search_aliases=[
                "grid search", "hyperparameter search", "xy plot training", "tune learning rate",
                "sweep lora", "batch of trainings", "personalize",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                *sockets_in(),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=METHODS[0],
                    tooltip="How the runs train, unless settings has a line for method.",
                ),
                io.String.Input(
                    "settings",
                    default=EXAMPLE,
                    multiline=True,
                    tooltip=(
                        "A line for each setting: its name as on the nodes, a colon, its values "
                        "with commas between. All combinations are trained, at most "
                        f"{MOST_RUNS} runs. What is not listed comes from the settings inputs, or "
                        "is the training node's default."
                    ),
                ),
                *others_in("lora"),
            ],
            outputs=_outputs(),
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, method: str | None = None, settings: str | None = None) -> bool | str:
        """Refuses a grid when it is queued; what is wired is not known by then."""
        if method is None or settings is None:
            return True
        try:
            grid_of(settings, method)
        except SettingsError as error:
            return str(error)
        return True

    @classmethod
    def check_lazy_status(cls, **given: Any) -> list[str]:
        """Which of the base's sockets the host must evaluate before the node can run."""
        from ..host.workbench.sweep import sweep_needs_base

        missing = [name for name in BASE if given.get(name) is None]
        return missing if missing and sweep_needs_base(cls._planned(given)) else []

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> int:
        """Another one where runs have failed, which are tried again when the node is queued."""
        from ..host.workbench.sweep import failures_before

        return failures_before(cls.hidden.unique_id)

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        from ...trainers.runs.catalog.sweep import best_of, judged_by, table, warning
        from ...trainers.runs.pictures.sweep import draw_sheet, draw_sweep
        from ..host.folders import runs_folder
        from ..host.pictures.overview import image_of
        from ..host.runs.base import GraphNode
        from ..host.workbench.sweep import run_sweep

        axes = grid_of(given["settings"], given["method"]).axes
        runs = run_sweep(cls._planned(given), GraphNode.of(cls.hidden))
        best = best_of(runs)
        assert best is not None, "a sweep without a result has raised"
        judged = f"Best by {judged_by(runs)}: {best.run}. {warning(axes)}".rstrip()
        text = f"{table(runs, axes)}\n\n{judged}"
        sheet = image_of(draw_sheet(runs, axes, runs_folder()))
        plot = image_of(draw_sweep(runs))
        names = list(dict.fromkeys(run.run for run in runs if run.run))
        shown = ui.PreviewImage(sheet, cls=cls).as_dict() | {"text": (text,)}
        return io.NodeOutput(best.run, names, text, sheet, plot, ui=shown)

    @classmethod
    def _planned(cls, given: Mapping[str, Any]) -> list[Planned | Refused]:
        from ..host.runs.base import GraphNode
        from ..host.workbench.sweep import planned

        grid = grid_of(given["settings"], given["method"])
        return planned(grid, sockets_of(given), given, GraphNode.of(cls.hidden))


def _outputs() -> list[io.Output]:
    return [
        io.String.Output(
            display_name="best",
            tooltip=(
                "The run with the lowest loss of the held-out pictures; without any, with the "
                "lowest smoothed training loss. Its folder's name, for Load Run and Compare."
            ),
        ),
        io.String.Output(
            display_name="runs",
            is_output_list=True,
            tooltip="All runs by the names of their folders, as a list.",
        ),
        io.String.Output(
            display_name="table", tooltip="Settings, losses and folders of all runs, in Markdown."
        ),
        io.Image.Output(
            display_name="sheet",
            tooltip=(
                "The last previews of each run with labels; without Preview Settings, the loss of "
                "each run."
            ),
        ),
        io.Image.Output(display_name="plot", tooltip="The smoothed losses of all runs."),
    ]
