"""The training nodes."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainers.config import LoraConfig, ObjectiveConfig, TrainingConfig, run_config
from .schema import inputs_of
from .sockets import PersonalizeDataset


class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        settings = inputs_of(TrainingConfig) | inputs_of(LoraConfig) | inputs_of(ObjectiveConfig)
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
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The base model. LoRAs wired in before are kept."),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint."),
                io.Vae.Input("vae", tooltip="Encodes the pictures, once each."),
                PersonalizeDataset.Input("dataset", tooltip="From a Training Images node."),
                *(settings.pop(name) for name in first),
                *settings.values(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The base model with the LoRA."),
                io.Clip.Output(display_name="clip", tooltip="The clip with the LoRA."),
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="The LoRA alone: for Save LoRA, Apply LoRA and ComfyUI's own nodes.",
                ),
                io.LossMap.Output(
                    display_name="loss_map", tooltip="The loss of every step, for Plot Loss."
                ),
                io.String.Output(
                    display_name="run", tooltip="The run's folder: settings, losses, result."
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, dataset: Any, **values: Any) -> io.NodeOutput:
        config = run_config("lora", values)
        from .host.apply import apply_lora
        from .host.training import Sockets, run_training

        outcome = run_training(Sockets(model, clip, vae, dataset), config, cls.hidden.unique_id)
        model, clip = apply_lora(model, clip, outcome.adapter, 1.0, 1.0)
        return io.NodeOutput(
            model, clip, outcome.adapter, {"loss": outcome.losses}, str(outcome.run)
        )
