"""The training nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from comfy_api.latest import io

from ...trainers.settings.run import RunConfig, check_queued, run_config, together
from ..schema import trainer_inputs
from ..sockets import (
    PersonalizeDataset,
    PersonalizeEmbedding,
    PersonalizeLoss,
    PersonalizeMemory,
    PersonalizeOptimizer,
    PersonalizePreview,
    PersonalizeRun,
)

if TYPE_CHECKING:  # host modules load torch, so they wait until a node runs
    from ..host.runs.inputs import Sockets
    from ..host.workbench.outcome import Outcome

BASE = ("model", "clip", "vae")  # the sockets that carry it


class TrainingNode(io.ComfyNode):
    """What the training nodes share.

    Attributes:
        METHOD: its name in trainers.methods.METHODS.
        SHOWS_TRAINING: it has a body that shows how its training goes (js/training/live.js).
        MADE_OF_BASE: places of the outputs that are made of the base, so that it must be there.
    """

    METHOD: ClassVar[str]
    SHOWS_TRAINING: ClassVar[bool] = True
    MADE_OF_BASE: ClassVar[tuple[int, ...]] = (0, 1)

    @classmethod
    def schema(cls, inputs: list[io.Input], outputs: list[io.Output], **words: Any) -> io.Schema:
        """Adds what all have to a node's own inputs and outputs."""
        return io.Schema(
            category="personalize/train",
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[*sockets_in(), *inputs, *others_in(cls.METHOD)],
            outputs=[
                *outputs,
                io.LossMap.Output(
                    display_name="loss_map", tooltip="The loss of every step, for Plot Loss."
                ),
                io.String.Output(
                    display_name="run", tooltip="The run's folder: settings, losses, result."
                ),
            ],
            **words,
        )

    @classmethod
    def outputs(cls, outcome: Outcome, config: RunConfig, model: Any, clip: Any) -> Sequence[Any]:
        """The node's own outputs; model and clip are None where nothing made of them is asked."""
        raise NotImplementedError

    @classmethod
    def output_names(cls) -> list[str]:
        """Of the node's own outputs."""
        return [output.display_name or "" for output in cls.define_schema().outputs[:-2]]

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        from ..host.models.tokenizer import with_embeddings
        from ..host.runs.base import GraphNode
        from ..host.runs.training import run_training

        config = run_config(cls.METHOD, together(cls.METHOD, given))
        outcome = run_training(sockets_of(given), config, GraphNode.of(cls.hidden))
        clip = given["clip"]
        if getattr(config.own, "train_token", False):
            clip = with_embeddings(clip, outcome.learned.needs)
        made = cls.outputs(outcome, config, given["model"], clip)
        return io.NodeOutput(*made, outcome.loss_map, str(outcome.run))

    @classmethod
    def check_lazy_status(cls, **given: Any) -> list[str]:
        """Which of the base's sockets the host must evaluate before the node can run."""
        from ..host.runs.base import GraphNode
        from ..host.runs.run import needs_base

        missing = [name for name in BASE if given.get(name) is None]
        if not missing:
            return []
        config = run_config(cls.METHOD, together(cls.METHOD, given))
        node = GraphNode.of(cls.hidden)
        return missing if needs_base(sockets_of(given), config, node, cls.MADE_OF_BASE) else []

    @classmethod
    def validate_inputs(cls, **given: Any) -> bool:
        """Refuses settings when they are queued; what is wired is not known by then."""
        check_queued(cls.METHOD, together(cls.METHOD, given))
        return True

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> bool:
        from ..host.runs.base import must_run_again

        return must_run_again(cls.hidden.unique_id, cls.MADE_OF_BASE)


def sockets_in() -> list[io.Input]:
    """What must be wired in."""
    # Lazy: a run that is on disk may do without them; see host/runs/base.py.
    return [
        io.Model.Input(
            "model", lazy=True, tooltip="The base model. LoRAs wired in before are kept."
        ),
        io.Clip.Input("clip", lazy=True, tooltip="The text encoder of the same checkpoint."),
        io.Vae.Input("vae", lazy=True, tooltip="Encodes the pictures, once each."),
        PersonalizeDataset.Input("dataset", tooltip="From a Training Images node."),
    ]


def others_in(method: str) -> list[io.Input]:
    """What may be wired in beside."""
    class_dataset = PersonalizeDataset.Input(
        "class_dataset",
        optional=True,
        tooltip=(
            "Pictures of the subject's class, such as any dogs (prior preservation): they keep "
            "the class from turning into the subject. From Class Images or Training Images "
            "(Folder)."
        ),
    )
    validation_dataset = PersonalizeDataset.Input(
        "validation_dataset",
        optional=True,
        tooltip=(
            "Pictures that are never trained but watched, instead of a share of dataset "
            "(held_out). From a Training Images node, at the same resolution."
        ),
    )
    preview = PersonalizePreview.Input(
        "preview", optional=True, tooltip="From Preview Settings: pictures while it trains."
    )
    # Class images would keep what Textual Inversion does not change.
    classes = [] if method == "textual_inversion" else [class_dataset]
    settings = [
        socket.Input(name, optional=True, tooltip=f"From {node}; its defaults if none is wired.")
        for socket, name, node in (
            (PersonalizeOptimizer, "optimizer_settings", "Optimizer Settings"),
            (PersonalizeLoss, "loss_settings", "Loss Settings"),
            (PersonalizeRun, "run_settings", "Run Settings"),
            (PersonalizeMemory, "memory_settings", "Memory and Speed Settings"),
        )
    ]
    return [*classes, validation_dataset, preview, *settings]


def sockets_of(given: Mapping[str, Any]) -> Sockets:
    """What is wired in, of all that a node was given."""
    from ..host.runs.inputs import Sockets

    names = [field.name for field in dataclasses.fields(Sockets)]
    return Sockets(**{name: given[name] for name in names if name in given})


# -- the nodes ----------------------------------------------------------------


class TrainLora(TrainingNode):
    METHOD = "lora"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            trainer_inputs("lora"),
            [
                io.Model.Output(display_name="model", tooltip="The base model with the LoRA."),
                io.Clip.Output(display_name="clip", tooltip="The clip with the LoRA."),
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="The LoRA alone: for Save LoRA, Apply LoRA and ComfyUI's own nodes.",
                ),
            ],
            node_id="PersonalizeTrainLora",
            display_name="Train LoRA from Images",  # ComfyUI has a Train LoRA of its own
            description=(
                "Trains a LoRA on your pictures and hands out the model and clip with it applied, "
                "ready to sample. The base model is not changed."
            ),
            search_aliases=[
                "lora trainer", "train lora", "finetune", "fine-tune", "dreambooth lora", "dora",
                "kohya", "personalize",
            ],
        )  # fmt: skip

    @classmethod
    def outputs(cls, outcome: Outcome, config: RunConfig, model: Any, clip: Any) -> Sequence[Any]:
        from ..host.models.weights import apply_lora

        return (*apply_lora(model, clip, outcome.learned, 1.0, 1.0), outcome.learned)


class TrainDreamBooth(TrainingNode):
    METHOD = "dreambooth"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            trainer_inputs("dreambooth"),
            [
                io.Model.Output(display_name="model", tooltip="The trained model."),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="The trained clip; the one that was wired in if it was not trained.",
                ),
            ],
            node_id="PersonalizeTrainDreamBooth",
            display_name="Train DreamBooth",
            description=(
                "Trains the whole model on your pictures, optionally the text encoder too, and "
                "hands out the trained model and clip, ready to sample or to save with Save "
                "Checkpoint. The base model is not changed."
            ),
            search_aliases=[
                "dreambooth", "train checkpoint", "train model", "full finetune", "fine-tune",
                "prior preservation", "regularization images", "personalize",
            ],
        )  # fmt: skip

    @classmethod
    def outputs(cls, outcome: Outcome, config: RunConfig, model: Any, clip: Any) -> Sequence[Any]:
        from ..host.models.weights import apply_weights

        return apply_weights(model, clip, outcome.learned)


class TrainTextualInversion(TrainingNode):
    METHOD = "textual_inversion"
    MADE_OF_BASE = (0,)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            trainer_inputs("textual_inversion"),
            [
                io.Clip.Output(
                    display_name="clip",
                    tooltip="Knows the token at once: write it in any prompt, also with a weight.",
                ),
                PersonalizeEmbedding.Output(
                    display_name="embedding",
                    tooltip="The token alone: for Save Embedding and Apply Embedding.",
                ),
            ],
            node_id="PersonalizeTrainTextualInversion",
            display_name="Train Textual Inversion",
            description=(
                "Learns a new word for what your pictures show, and hands out the clip that knows "
                "it. Neither the model nor the clip that is wired in is changed."
            ),
            search_aliases=[
                "textual inversion", "embedding training", "train embedding", "learn a word",
                "ti", "finetune", "personalize",
            ],
        )  # fmt: skip

    @classmethod
    def outputs(cls, outcome: Outcome, config: RunConfig, model: Any, clip: Any) -> Sequence[Any]:
        from ...trainers.methods.results import Embedding, read
        from ..host.models.tokenizer import with_embedding

        rows = read(outcome.learned, outcome.text_encoders)
        embedding = Embedding(config.own.token, rows, outcome.learned.metadata)
        return None if clip is None else with_embedding(clip, embedding), embedding
