"""The node that shows what a training has changed."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ...trainers.errors import SettingsError
from ...trainers.settings.field import from_values
from ...trainers.settings.preview import BeforeAfterConfig
from ..schema import inputs_of


class BeforeAfter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..host.sampling import SAMPLERS, SCHEDULERS

        settings = inputs_of(BeforeAfterConfig)
        seed, base_prompt = settings.pop("seed"), settings.pop("base_prompt")
        base_prompt.optional = True
        return io.Schema(
            node_id="PersonalizeBeforeAfter",
            display_name="Before and After",
            category="personalize/results",
            description=(
                "Samples the base and what was trained with the same prompt and seeds, so that "
                "only the training makes the difference, and shows them over each other with a "
                "slider."
            ),
            search_aliases=[
                "before after", "compare images", "image slider", "base vs trained",
                "compare models", "same seed", "evaluate",
            ],
            is_output_node=True,
            inputs=[
                *_sockets(),
                *settings.values(),
                io.Combo.Input(
                    "sampler_name", options=SAMPLERS, default="dpmpp_2m", tooltip="As in KSampler."
                ),
                io.Combo.Input(
                    "scheduler", options=SCHEDULERS, default="karras", tooltip="As in KSampler."
                ),
                seed,
                base_prompt,
            ],
            outputs=[
                io.Image.Output(
                    display_name="before", tooltip="What the base makes, a batch by seeds."
                ),
                io.Image.Output(
                    display_name="after",
                    tooltip="What was trained makes of the same seeds, a batch in the same order.",
                ),
                io.Image.Output(
                    display_name="compared",
                    tooltip="The pairs side by side on one sheet, with labels.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls, count: int | None = None, width: int | None = None, height: int | None = None
    ) -> bool | str:
        """Refuses too many pictures when they are queued; what is wired is not known by then."""
        given = {"count": count, "width": width, "height": height}
        if None in given.values():
            return True
        try:
            from_values(BeforeAfterConfig, given)
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
        trained_model: Any = None,
        trained_clip: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:
        config = from_values(BeforeAfterConfig, settings)
        from ..host.pictures.before_after import SHOWN, before_after, pairs_of
        from ..host.pictures.class_images import Painter

        painter = Painter(model, clip, vae, sampler_name, scheduler)
        made = before_after(painter, (trained_model, trained_clip), config)
        before, after = (
            ui.PreviewImage(side, cls=cls).as_dict()["images"] for side in (made.before, made.after)
        )
        shown = {SHOWN: pairs_of((before, after), config)}
        return io.NodeOutput(made.before, made.after, made.compared, ui=shown)


def _sockets() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The base model; stays as it is."),
        io.Clip.Input("clip", tooltip="The clip of the same checkpoint; stays as it is."),
        io.Vae.Input("vae", tooltip="Decodes the pictures."),
        io.Model.Input(
            "trained_model",
            optional=True,
            tooltip=(
                "The model of a training node, of Load Run or of Load LoRA. Empty: the base, with "
                "trained_clip, as after Textual Inversion."
            ),
        ),
        io.Clip.Input(
            "trained_clip",
            optional=True,
            tooltip="The clip of the same node. Empty: that of the base, with trained_model.",
        ),
    ]
