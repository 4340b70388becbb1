"""The node that samples what was learned side by side."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ...trainers.data.captions import one_line
from ...trainers.errors import SettingsError
from ...trainers.settings.field import from_values
from ...trainers.settings.preview import CompareConfig
from ..adapters.stack import NO_FILE, NUM_ROWS
from ..schema import inputs_of
from ..sockets import PersonalizeEmbedding


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..host.sampling import SAMPLERS, SCHEDULERS

        settings = inputs_of(CompareConfig, folded=True)
        seed, baseline = settings.pop("seed"), settings.pop("baseline")
        return io.Schema(
            node_id="PersonalizeCompare",
            display_name="Compare",
            category="personalize/results",
            description=(
                "Samples LoRAs at several strengths, learned tokens and the kept steps of a run "
                "with the same prompts and seed, and shows all of it on one sheet. Pictures are "
                "kept, and only those that are missing are made."
            ),
            search_aliases=[
                "xy plot", "xyz plot", "grid", "lora tester", "lora strength", "compare loras",
                "contact sheet", "evaluate", "checkpoints of a run",
            ],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model; stays as it is."),
                io.Clip.Input("clip", tooltip="The clip of the same checkpoint; stays as it is."),
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                *settings.values(),
                io.Combo.Input(
                    "sampler_name", options=SAMPLERS, default="dpmpp_2m", tooltip="As in KSampler."
                ),
                io.Combo.Input(
                    "scheduler", options=SCHEDULERS, default="karras", tooltip="As in KSampler."
                ),
                seed,
                baseline,
                io.String.Input(
                    "run",
                    optional=True,
                    force_input=True,
                    tooltip=(
                        "The run of a training node or of Load Run: what it has learned by each "
                        "step that it keeps, a row each."
                    ),
                ),
                *_adapters(),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="All of them, with labels."),
                io.Image.Output(
                    display_name="images", tooltip="The pictures alone, row by row, as a batch."
                ),
                io.String.Output(
                    display_name="rows",
                    tooltip="What each row is called, one a line; for Subject Similarity.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls, strengths: str | None = None, prompts: str | None = None
    ) -> bool | str:
        """Refuses these when they are queued; what is wired is not known by then."""
        given = {"strengths": strengths, "prompts": prompts}
        try:
            from_values(
                CompareConfig, {n: str(text) for n, text in given.items() if text is not None}
            )
        except SettingsError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        sampler_name: str,
        scheduler: str,
        run: str = "",
        **inputs: Any,
    ) -> io.NodeOutput:
        config = from_values(CompareConfig, inputs)
        from ..host.pictures.class_images import Painter
        from ..host.pictures.compare import compare

        places = (f"lora_{number}" for number in range(1, NUM_ROWS + 1))
        adapters = {
            place: item for place in places if (item := inputs.get(place)) not in (None, NO_FILE)
        }
        painter = Painter(model, clip, vae, sampler_name, scheduler)
        sheet, images, rows = compare(painter, config, adapters, run or "")
        shown = ui.PreviewImage(sheet, cls=cls)
        return io.NodeOutput(sheet, images, "\n".join(map(one_line, rows)), ui=shown)


def _adapters() -> list[io.Input]:
    """What is compared. The front end shows those in use and one more: js/stack.js."""
    from ..host.models.adapters.stack import lora_files

    files = [NO_FILE, *lora_files()]
    return [
        io.MultiType.Input(
            io.Combo.Input(f"lora_{number}", options=files, default=NO_FILE, optional=True),
            types=[io.LoraModel, PersonalizeEmbedding],
            tooltip="A LoRA file, or wire in a LoRA or a learned token of the graph.",
        )
        for number in range(1, NUM_ROWS + 1)
    ]
