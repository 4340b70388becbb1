"""The node that makes a run ready to be trained elsewhere."""

from __future__ import annotations

from comfy_api.latest import io


class ExportRun(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeExportRun",
            display_name="Export Run",
            category="personalize/results",
            description=(
                "Makes a run ready to be trained elsewhere without a page: its run.json, the "
                "files that it needs with their hashes, and the commands. Copies no models."
            ),
            search_aliases=["headless", "accelerate", "multi gpu", "cluster", "run.json", "cli"],
            is_output_node=True,
            inputs=[
                io.String.Input("run", force_input=True, tooltip="The run of a training node."),
                io.String.Input(
                    "name",
                    default="%run%",
                    tooltip="A folder in output/personalize/exports. %run% becomes the name of "
                    "the run's own folder. What is there already is replaced.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The folder of the export.")],
        )

    @classmethod
    def execute(cls, run: str, name: str) -> io.NodeOutput:
        from ..host.runs.export import export_run

        folder, lines = export_run(run, name)
        return io.NodeOutput(str(folder), ui={"text": lines})
