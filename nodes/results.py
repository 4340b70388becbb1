"""Nodes that keep and show what a training made."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..trainers.errors import SettingsError
from ..trainers.settings.field import from_values
from ..trainers.settings.preview import CompareConfig
from .schema import inputs_of
from .sockets import PersonalizeEmbedding
from .stack import NO_FILE, NUM_ROWS

AUTO = "auto"
THEMES = (AUTO, "dark", "light")
# The words of saved graphs; "kohya" is the spelling of the model's community, whichever that is.
KOHYA, DIFFUSERS = "kohya", "diffusers"
FORMATS = tuple(
    f"{name} {dtype}" for name in (KOHYA, DIFFUSERS) for dtype in ("fp32", "fp16", "bf16")
)


class SaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeSaveLora",
            display_name="Save LoRA",
            category="personalize/results",
            description=(
                "Saves a LoRA for ComfyUI, A1111, Forge and diffusers, with its settings and "
                "trigger phrase. Files in output/loras can be picked in Load LoRA at once."
            ),
            search_aliases=["export lora", "lora file", "safetensors"],
            is_output_node=True,
            inputs=[
                io.LoraModel.Input("lora", tooltip="From Train LoRA, or any node that makes one."),
                io.String.Input(
                    "filename_prefix",
                    default="loras/%dataset%",
                    tooltip=(
                        "Folder and beginning of the file's name, inside output/. %dataset% "
                        "becomes the name of the pictures' folder."
                    ),
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    tooltip=(
                        "Spelling of the keys and type of the numbers. kohya is that of the "
                        "model's community, which ComfyUI, A1111 and Forge read; diffusers what "
                        "its pipelines, peft and ComfyUI read (with model wired in; no DoRA). "
                        "fp32 is exact; fp16 and bf16 make half the file."
                    ),
                ),
                *_choices(),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
        )

    @classmethod
    def execute(
        cls,
        lora: Any,
        filename_prefix: str,
        format: str,
        bundle_embedding: bool = False,
        captions: bool = False,
        thumbnail: bool = True,
        workflow: bool = False,
        model: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        from .host.files import Choices, save_lora

        graph = {"prompt": cls.hidden.prompt, **(cls.hidden.extra_pnginfo or {})}
        spelling, dtype = format.split()
        choices = Choices(
            diffusers=spelling == DIFFUSERS,
            bundle=bundle_embedding,
            captions=captions,
            thumbnail=thumbnail,
            graph=graph if workflow else {},
        )
        path = save_lora(lora, filename_prefix, dtype, choices, model, clip)
        return io.NodeOutput(str(path), ui={"text": [str(path)]})


def _choices() -> list[io.Input]:
    """What a LoRA's file is to hold, and what it is to be checked with."""
    return [
        io.Boolean.Input(
            "bundle_embedding",
            default=False,
            optional=True,
            advanced=True,
            tooltip=(
                "Put the learned token that the captions have into the file, for A1111 and "
                "Forge (bundle_emb). There must be exactly one."
            ),
        ),
        io.Boolean.Input(
            "captions",
            default=False,
            optional=True,
            advanced=True,
            tooltip=(
                "Put captions, the trigger phrase and the name of the pictures' folder "
                "into the file, for everyone who gets it."
            ),
        ),
        io.Boolean.Input(
            "thumbnail",
            default=True,
            optional=True,
            advanced=True,
            tooltip=(
                "Put the last preview of the training beside the file, as a picture of "
                "the same name, where LoRA managers look for it."
            ),
        ),
        io.Boolean.Input(
            "workflow",
            default=False,
            optional=True,
            advanced=True,
            tooltip=(
                "Put this graph into the file, as ComfyUI does with its own; it names "
                "your folders and prompts."
            ),
        ),
        io.Model.Input(
            "model",
            optional=True,
            tooltip=(
                "The base model: the file is read back for it, and kept only if ComfyUI reads all "
                "of it and then predicts what it does with the LoRA in the graph."
            ),
        ),
        io.Clip.Input("clip", optional=True, tooltip="Its clip, for the same check."),
    ]


class SaveEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeSaveEmbedding",
            display_name="Save Embedding",
            category="personalize/results",
            description=(
                "Saves a learned token for ComfyUI, A1111, Forge and diffusers. Files in "
                "output/embeddings can be used in prompts at once, as embedding:name."
            ),
            search_aliases=["export embedding", "textual inversion file", "save token"],
            is_output_node=True,
            inputs=[
                PersonalizeEmbedding.Input("embedding", tooltip="From Train Textual Inversion."),
                io.String.Input(
                    "filename_prefix",
                    default="embeddings/%token%",
                    tooltip=(
                        "Folder and beginning of the file's name, inside output/. %token% becomes "
                        "the token's letters and digits."
                    ),
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
        )

    @classmethod
    def execute(cls, embedding: Any, filename_prefix: str) -> io.NodeOutput:
        from .host.files import save_embedding

        path = save_embedding(embedding, filename_prefix)
        return io.NodeOutput(str(path), ui={"text": [str(path)]})


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
        from ..trainers.runs.plot import draw_losses, marks_of
        from .host.pictures.overview import image_of

        chosen = "dark" if theme == AUTO else theme  # a page has chosen already: js/plot.js
        plot = draw_losses(loss_map["loss"], marks=marks_of(loss_map), theme=chosen)
        image = image_of(plot)
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


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
        from .host.runs.export import export_run

        folder, lines = export_run(run, name)
        return io.NodeOutput(str(folder), ui={"text": lines})


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from .host.sampling import SAMPLERS, SCHEDULERS

        settings = inputs_of(CompareConfig, folded=True)
        seed, baseline = settings.pop("seed"), settings.pop("baseline")
        return io.Schema(
            node_id="PersonalizeCompare",
            display_name="Compare",
            category="personalize/results",
            description=(
                "Samples LoRAs at several strengths, learned tokens and a run's results with the "
                "same prompts and seed, and shows all of it on one sheet. Pictures are kept, and "
                "only those that are missing are made."
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
                        "The run of a training node: what it has learned at each length that it "
                        "was trained to, a row each."
                    ),
                ),
                *_adapters(),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="All of them, with labels."),
                io.Image.Output(
                    display_name="images", tooltip="The pictures alone, row by row, as a batch."
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
        from .host.pictures.class_images import Painter
        from .host.pictures.compare import compare

        places = (f"lora_{number}" for number in range(1, NUM_ROWS + 1))
        adapters = {
            place: item for place in places if (item := inputs.get(place)) not in (None, NO_FILE)
        }
        painter = Painter(model, clip, vae, sampler_name, scheduler)
        sheet, images = compare(painter, config, adapters, run or "")
        return io.NodeOutput(sheet, images, ui=ui.PreviewImage(sheet, cls=cls))


def _adapters() -> list[io.Input]:
    """What is compared. The front end shows those in use and one more: js/stack.js."""
    from .host.models.adapters.stack import lora_files

    files = [NO_FILE, *lora_files()]
    return [
        io.MultiType.Input(
            io.Combo.Input(f"lora_{number}", options=files, default=NO_FILE, optional=True),
            types=[io.LoraModel, PersonalizeEmbedding],
            tooltip="A LoRA file, or wire in a LoRA or a learned token of the graph.",
        )
        for number in range(1, NUM_ROWS + 1)
    ]
