"""The training nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..trainers.settings.dreambooth import CUSTOM, PRESETS
from ..trainers.settings.run import RunConfig, run_config
from .schema import settings_inputs
from .sockets import PersonalizeDataset, PersonalizeEmbedding, PersonalizePreview

if TYPE_CHECKING:  # host modules load torch, so they wait until a node runs
    from .host.runs.inputs import Sockets
    from .host.runs.training import Outcome


def _sockets_in() -> list[io.Input]:
    # Lazy: a run that is on disk may do without them; see host/runs/base.py.
    return [
        io.Model.Input(
            "model", lazy=True, tooltip="The base model. LoRAs wired in before are kept."
        ),
        io.Clip.Input("clip", lazy=True, tooltip="The text encoder of the same checkpoint."),
        io.Vae.Input("vae", lazy=True, tooltip="Encodes the pictures, once each."),
        PersonalizeDataset.Input("dataset", tooltip="From a Training Images node."),
    ]


def _others_in(method: str) -> list[io.Input]:
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
    return [*classes, validation_dataset, preview]


def _schema(method: str, inputs: list[io.Input], outputs: list[io.Output], **words: Any) -> Any:
    """What the schemas of the training nodes share."""
    records = [
        io.LossMap.Output(
            display_name="loss_map", tooltip="The loss of every step, for Plot Loss."
        ),
        io.String.Output(display_name="run", tooltip="The run's folder: settings, losses, result."),
    ]
    return io.Schema(
        category="personalize/train",
        is_output_node=True,
        hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        inputs=[*_sockets_in(), *inputs, *_others_in(method)],
        outputs=[*outputs, *records],
        **words,
    )


def _shown(strip: Any, cls: type[io.ComfyNode]) -> Any:
    """The previews of all steps, for the node's body."""
    if strip is None:
        return None
    import numpy as np
    import torch

    picture = torch.from_numpy(np.asarray(strip, dtype=np.float32) / 255)[None]
    return ui.PreviewImage(picture, cls=cls)


# -- what the three nodes share -----------------------------------------------

LAZY = ("model", "clip", "vae")
# Places of the outputs that are made of the base, so that it must be there.
MADE_OF_BASE = {"lora": (0, 1), "dreambooth": (0, 1), "textual_inversion": (0,)}


def _train(cls: type[io.ComfyNode], config: RunConfig, **given: Any) -> Outcome:
    from .host.runs.base import GraphNode
    from .host.runs.training import run_training

    return run_training(_sockets(given), config, GraphNode.of(cls.hidden))


def _sockets(given: Mapping[str, Any]) -> Sockets:
    from .host.runs.inputs import Sockets

    names = [field.name for field in dataclasses.fields(Sockets)]
    return Sockets(**{name: given[name] for name in names if name in given})


def _missing(cls: type[io.ComfyNode], method: str, given: Mapping[str, Any]) -> list[str]:
    """Which of the lazy inputs the host must evaluate before the node can run."""
    from .host.runs.base import GraphNode
    from .host.runs.run import needs_base

    missing = [name for name in LAZY if given.get(name) is None]
    if not missing:
        return []
    config, node = run_config(method, given), GraphNode.of(cls.hidden)
    return missing if needs_base(_sockets(given), config, node, MADE_OF_BASE[method]) else []


def _lazily(method: str) -> Callable[[type[io.ComfyNode]], type[io.ComfyNode]]:
    """Lets a training node ask for its base only where it needs it."""

    def check_lazy_status(cls: type[io.ComfyNode], /, **given: Any) -> list[str]:
        return _missing(cls, method, given)

    def fingerprint_inputs(cls: type[io.ComfyNode], /, **given: Any) -> bool:
        from .host.runs.base import must_run_again

        return must_run_again(cls.hidden.unique_id, MADE_OF_BASE[method])

    def decorated(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
        node.check_lazy_status = classmethod(check_lazy_status)
        node.fingerprint_inputs = classmethod(fingerprint_inputs)
        return node

    return decorated


@_lazily("lora")
class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        first = (
            "steps", "batch_size", "learning_rate", "rank", "alpha", "train_text_encoder", "seed",
        )  # fmt: skip
        return _schema(
            "lora",
            node_id="PersonalizeTrainLora",
            display_name="Train LoRA",
            description=(
                "Trains a LoRA on your pictures and hands out the model and clip with it applied, "
                "ready to sample. The base model is not changed."
            ),
            search_aliases=[
                "lora trainer", "train lora", "finetune", "fine-tune", "dreambooth lora", "dora",
                "kohya", "personalize",
            ],
            inputs=[
                *settings_inputs("lora", first),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The base model with the LoRA."),
                io.Clip.Output(display_name="clip", tooltip="The clip with the LoRA."),
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="The LoRA alone: for Save LoRA, Apply LoRA and ComfyUI's own nodes.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, dataset: Any, **others: Any) -> io.NodeOutput:
        from .host.models.tokenizer import with_embeddings
        from .host.models.weights import apply_lora

        config = run_config("lora", others)
        outcome = _train(cls, config, model=model, clip=clip, vae=vae, dataset=dataset, **others)
        if config.own.train_token:
            clip = with_embeddings(clip, outcome.learned.needs)
        model, clip = apply_lora(model, clip, outcome.learned, 1.0, 1.0)
        return io.NodeOutput(
            model, clip, outcome.learned, outcome.loss_map, str(outcome.run),
            ui=_shown(outcome.strip, cls),
        )  # fmt: skip


@_lazily("dreambooth")
class TrainDreamBooth(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        first = (
            "steps", "batch_size", "learning_rate", "train_text_encoder", "prior_weight", "seed",
        )  # fmt: skip
        return _schema(
            "dreambooth",
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
            inputs=[
                _preset(),
                *settings_inputs("dreambooth", first),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The trained model."),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="The trained clip; the one that was wired in if it was not trained.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: Any,
        preset: str = CUSTOM,  # fills the widgets in the editor; a run takes the widgets
        **others: Any,
    ) -> io.NodeOutput:
        from .host.models.tokenizer import with_embeddings
        from .host.models.weights import apply_weights

        config = run_config("dreambooth", others)
        outcome = _train(cls, config, model=model, clip=clip, vae=vae, dataset=dataset, **others)
        if config.own.train_token:
            clip = with_embeddings(clip, outcome.learned.needs)
        model, clip = apply_weights(model, clip, outcome.learned)
        return io.NodeOutput(
            model, clip, outcome.loss_map, str(outcome.run),
            ui=_shown(outcome.strip, cls),
        )  # fmt: skip


def _preset() -> io.Input:
    return io.Combo.Input(
        "preset",
        options=[CUSTOM, *PRESETS],
        default=CUSTOM,
        tooltip=(
            "Choosing one fills the settings below for such a subject; change them as you like. "
            "It does nothing by itself: a run takes the settings as they stand."
        ),
        extra_dict={"presets": {name: dict(values) for name, values in PRESETS.items()}},
    )


@_lazily("textual_inversion")
class TrainTextualInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        first = (
            "token", "initializer", "vectors", "steps", "batch_size", "learning_rate", "seed",
        )  # fmt: skip
        # Class images would keep what this method does not change.
        without = ("prior_weight", "prior", "class_prompt", "prior_samples")
        return _schema(
            "textual_inversion",
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
            inputs=[
                *settings_inputs("textual_inversion", first, without),
            ],
            outputs=[
                io.Clip.Output(
                    display_name="clip",
                    tooltip="Knows the token at once: write it in any prompt, also with a weight.",
                ),
                PersonalizeEmbedding.Output(
                    display_name="embedding",
                    tooltip="The token alone: for Save Embedding and Apply Embedding.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, dataset: Any, **others: Any) -> io.NodeOutput:
        from ..trainers.methods.results import Embedding, read
        from .host.models.tokenizer import with_embedding

        config = run_config("textual_inversion", others)
        outcome = _train(cls, config, model=model, clip=clip, vae=vae, dataset=dataset, **others)
        learned, token = outcome.learned, config.own.token
        embedding = Embedding(token, read(learned, outcome.text_encoders), learned.metadata)
        return io.NodeOutput(
            None if clip is None else with_embedding(clip, embedding),
            embedding,
            outcome.loss_map,
            str(outcome.run),
            ui=_shown(outcome.strip, cls),
        )
