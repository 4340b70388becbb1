"""The training nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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
    # Lazy: a run that is on disk may do without them; see host/sources.py.
    return [
        io.Model.Input(
            "model", lazy=True, tooltip="The base model. LoRAs wired in before are kept."
        ),
        io.Clip.Input("clip", lazy=True, tooltip="The text encoder of the same checkpoint."),
        io.Vae.Input("vae", lazy=True, tooltip="Encodes the pictures, once each."),
        PersonalizeDataset.Input("dataset", tooltip="From a Training Images node."),
    ]


def _class_dataset() -> io.Input:
    return PersonalizeDataset.Input(
        "class_dataset",
        optional=True,
        tooltip=(
            "Pictures of the subject's class, such as any dogs (prior preservation): they keep "
            "the class from turning into the subject. From Class Images or Training Images "
            "(Folder)."
        ),
    )


def _validation_dataset() -> io.Input:
    return PersonalizeDataset.Input(
        "validation_dataset",
        optional=True,
        tooltip=(
            "Pictures that are never trained but watched, instead of a share of dataset "
            "(held_out). From a Training Images node, at the same resolution."
        ),
    )


def _preview() -> io.Input:
    return PersonalizePreview.Input(
        "preview", optional=True, tooltip="From Preview Settings: pictures while it trains."
    )


def _shown(strip: Any, cls: type[io.ComfyNode]) -> Any:
    """The previews of all steps, for the node's body."""
    if strip is None:
        return None
    import numpy as np
    import torch

    picture = torch.from_numpy(np.asarray(strip, dtype=np.float32) / 255)[None]
    return ui.PreviewImage(picture, cls=cls)


def _records() -> list[io.Output]:
    return [
        io.LossMap.Output(
            display_name="loss_map", tooltip="The loss of every step, for Plot Loss."
        ),
        io.String.Output(display_name="run", tooltip="The run's folder: settings, losses, result."),
    ]


# -- what the three nodes share -----------------------------------------------

LAZY = ("model", "clip", "vae")
# Places of the outputs that are made of the base, so that it must be there.
MADE_OF_BASE = {"lora": (0, 1), "dreambooth": (0, 1), "textual_inversion": (0,)}


def _train(cls: type[io.ComfyNode], config: RunConfig, **given: Any) -> Outcome:
    from .host.runs.base import Spot
    from .host.runs.training import run_training

    return run_training(_sockets(given), config, Spot.of(cls.hidden))


def _sockets(given: Mapping[str, Any]) -> Sockets:
    from .host.runs.inputs import Sockets

    names = [field.name for field in dataclasses.fields(Sockets)]
    return Sockets(**{name: given[name] for name in names if name in given})


def _missing(cls: type[io.ComfyNode], method: str, given: Mapping[str, Any]) -> list[str]:
    """Which of the lazy inputs the host must evaluate before the node can run."""
    from .host.runs.base import Spot
    from .host.runs.run import needs_base

    missing = [name for name in LAZY if given.get(name) is None]
    if not missing:
        return []
    config, spot = run_config(method, given), Spot.of(cls.hidden)
    return missing if needs_base(_sockets(given), config, spot, MADE_OF_BASE[method]) else []


def _must_run_again(cls: type[io.ComfyNode], method: str) -> bool:
    from .host.runs.base import must_run_again

    return must_run_again(cls.hidden.unique_id, MADE_OF_BASE[method])


class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        first = (
            "steps", "batch_size", "learning_rate", "rank", "alpha", "train_text_encoder", "seed",
        )  # fmt: skip
        return io.Schema(
            node_id="PersonalizeTrainLora",
            display_name="Train LoRA",
            category="personalize/train",
            description=(
                "Trains a LoRA on your pictures and hands out the model and clip with it applied, "
                "ready to sample. The base model is not changed."
            ),
            search_aliases=[
                "lora trainer", "train lora", "finetune", "fine-tune", "dreambooth lora", "dora",
                "kohya", "personalize",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            inputs=[
                *_sockets_in(),
                *settings_inputs("lora", first),
                _class_dataset(),
                _validation_dataset(),
                _preview(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The base model with the LoRA."),
                io.Clip.Output(display_name="clip", tooltip="The clip with the LoRA."),
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="The LoRA alone: for Save LoRA, Apply LoRA and ComfyUI's own nodes.",
                ),
                *_records(),
            ],
        )  # fmt: skip

    @classmethod
    def check_lazy_status(cls, **given: Any) -> list[str]:
        return _missing(cls, "lora", given)

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> bool:
        return _must_run_again(cls, "lora")

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


class TrainDreamBooth(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        first = (
            "steps", "batch_size", "learning_rate", "train_text_encoder", "prior_weight", "seed",
        )  # fmt: skip
        return io.Schema(
            node_id="PersonalizeTrainDreamBooth",
            display_name="Train DreamBooth",
            category="personalize/train",
            description=(
                "Trains the whole model on your pictures, optionally the text encoder too, and "
                "hands out the trained model and clip, ready to sample or to save with Save "
                "Checkpoint. The base model is not changed."
            ),
            search_aliases=[
                "dreambooth", "train checkpoint", "train model", "full finetune", "fine-tune",
                "prior preservation", "regularization images", "personalize",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            inputs=[
                *_sockets_in(),
                _preset(),
                *settings_inputs("dreambooth", first),
                _class_dataset(),
                _validation_dataset(),
                _preview(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The trained model."),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="The trained clip; the one that was wired in if it was not trained.",
                ),
                *_records(),
            ],
        )  # fmt: skip

    @classmethod
    def check_lazy_status(cls, **given: Any) -> list[str]:
        return _missing(cls, "dreambooth", given)

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> bool:
        return _must_run_again(cls, "dreambooth")

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


class TrainTextualInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        first = (
            "token", "initializer", "vectors", "steps", "batch_size", "learning_rate", "seed",
        )  # fmt: skip
        # Class images would keep what this method does not change.
        without = ("prior_weight", "prior", "class_prompt", "prior_samples")
        return io.Schema(
            node_id="PersonalizeTrainTextualInversion",
            display_name="Train Textual Inversion",
            category="personalize/train",
            description=(
                "Learns a new word for what your pictures show, and hands out the clip that knows "
                "it. Neither the model nor the clip that is wired in is changed."
            ),
            search_aliases=[
                "textual inversion", "embedding training", "train embedding", "learn a word",
                "ti", "finetune", "personalize",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            inputs=[
                *_sockets_in(),
                *settings_inputs("textual_inversion", first, without),
                _validation_dataset(),
                _preview(),
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
                *_records(),
            ],
        )  # fmt: skip

    @classmethod
    def check_lazy_status(cls, **given: Any) -> list[str]:
        return _missing(cls, "textual_inversion", given)

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> bool:
        return _must_run_again(cls, "textual_inversion")

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
