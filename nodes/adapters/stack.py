"""The node that puts several adapters to use at once."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..sockets import LoraStack, PersonalizeEmbedding
from .apply import STRENGTH

NUM_ROWS = 8  # the front end shows those in use and one more; stacks can be chained
NO_FILE = "None"  # as other packs' stackers write it
# What a row says about a LoRA, in the order of Row, with what it is where an input is not given.
LORA_INPUTS: dict[str, Any] = {
    "strength_model": 1.0, "strength_clip": 1.0, "start": 0.0, "end": 1.0, "blocks": "",
}  # fmt: skip


class AdapterStack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..host.models.adapters.stack import lora_files

        files = [NO_FILE, *lora_files()]
        rows = [one for number in range(1, NUM_ROWS + 1) for one in _row(number, files)]
        return io.Schema(
            node_id="PersonalizeAdapterStack",
            display_name="Adapter Stack",
            category="personalize/adapters",
            description=(
                "Applies several LoRAs and learned tokens, each with its own strengths and switch: "
                "files, or what is in the graph. Their order does not matter."
            ),
            search_aliases=[
                "lora stack", "lora stacker", "power lora loader", "multiple loras", "load lora",
                "multi lora", "embedding",
            ],
            inputs=[
                io.Model.Input(
                    "model", optional=True, tooltip="What to apply them to; stays as it is."
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The clip to apply them to; stays as it is. Learned tokens need it.",
                ),
                LoraStack.Input(
                    "lora_stack",
                    optional=True,
                    tooltip="Files of another stack, of any pack, to apply with these. From a "
                    "stack whose model is wired in, leave it out, or its files count twice.",
                ),
                *rows,
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with all of them."),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="The clip with all of them. Encode all prompts with it: rows with a "
                    "start or an end reach the sampler with the prompts.",
                ),
                LoraStack.Output(
                    display_name="lora_stack",
                    tooltip="The files and strengths, for nodes that take a LORA_STACK. What is "
                    "wired in is in no file, and limits have no place in it: neither is in it.",
                ),
                io.String.Output(
                    display_name="triggers",
                    tooltip="What the prompt needs: trigger words that the LoRAs name, and tokens.",
                ),
                io.Hooks.Output(
                    display_name="hooks",
                    tooltip="The rows with a start or an end, for ComfyUI's hook nodes. Prompts "
                    "of the clip output have them already.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """What is switched off is not computed, be it a training."""
        rows = range(1, NUM_ROWS + 1)
        return [f"lora_{n}" for n in rows if inputs.get(f"lora_{n}", "") is None and _on(inputs, n)]

    @classmethod
    def execute(
        cls, model: Any = None, clip: Any = None, lora_stack: Any = None, **inputs: Any
    ) -> io.NodeOutput:
        from ..host.models.adapters.stack import Row, apply_stack, rows_of_stack

        own = [
            Row(
                f"lora_{n}",
                item,
                *(inputs.get(f"{name}_{n}", d) for name, d in LORA_INPUTS.items()),
            )
            for n in range(1, NUM_ROWS + 1)
            if _on(inputs, n) and (item := inputs.get(f"lora_{n}")) not in (None, NO_FILE)
        ]
        return io.NodeOutput(*apply_stack(model, clip, [*rows_of_stack(lora_stack), *own]))


def _on(inputs: dict[str, Any], number: int) -> bool:
    return bool(inputs.get(f"on_{number}", True))


def _row(number: int, files: list[str]) -> list[io.Input]:
    """The inputs of one row. None is required, so that a graph names only those that it uses."""
    file = io.Combo.Input(f"lora_{number}", options=files, default=NO_FILE, optional=True)
    return [
        io.Boolean.Input(
            f"on_{number}",
            default=True,
            optional=True,
            tooltip="Off: as if this row were not there.",
        ),
        io.MultiType.Input(
            file,
            types=[io.LoraModel, PersonalizeEmbedding],
            lazy=True,
            tooltip="A LoRA file, or wire in a LoRA or a learned token of the graph.",
        ),
        *(
            io.Float.Input(
                f"strength_{part}_{number}",
                optional=True,
                tooltip=f"How strongly the {part} is changed. Nothing to a learned token.",
                **STRENGTH,
            )
            for part in ("model", "clip")
        ),
        *(
            io.Float.Input(
                f"{name}_{number}",
                default=LORA_INPUTS[name],
                min=0.0,
                max=1.0,
                step=0.01,
                optional=True,
                tooltip=f"{which} of sampling that the LoRA is in force in: 0 is the first step, "
                "1 the end. Encode the prompts with the clip output.",
            )
            for name, which in (("start", "Start of the part"), ("end", "End of the part"))
        ),
        io.String.Input(
            f"blocks_{number}",
            default=LORA_INPUTS["blocks"],
            optional=True,
            tooltip="Block weights, as LoRA Block Weight writes them: 17 numbers for SD 1.5, 12 "
            "for SDXL, names as in OUT05=0.5, *=1, or a preset such as OUTALL. Empty: all.",
        ),
    ]
