"""The node that takes up a run of another day."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..sockets import PersonalizeEmbedding
from .train import TrainDreamBooth, TrainingNode, TrainLora, TrainTextualInversion

NODES: dict[str, type[TrainingNode]] = {
    node.METHOD: node for node in (TrainLora, TrainDreamBooth, TrainTextualInversion)
}


class LoadRun(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..host.workbench.load import run_names

        return io.Schema(
            node_id="PersonalizeLoadRun",
            display_name="Load Run",
            category="personalize/train",
            description=(
                "Hands out what a run on disk learned, by its last step, its best one or any that "
                "it kept, as the training node does: without its pictures, and without a base "
                "where none is needed."
            ),
            search_aliases=[
                "resume", "checkpoint of a run", "load training", "load lora of a run",
                "best step", "restore",
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            inputs=[
                io.MultiType.Input(
                    io.Combo.Input("run", options=run_names()),
                    types=[io.String],
                    tooltip=(
                        "The runs in output/personalize, the newest first. Or wire in best of "
                        "Sweep, or run of a training node."
                    ),
                ),
                io.String.Input(
                    "step",
                    default="last",
                    tooltip=(
                        "last, best, or the number of a step of which the run kept a result or a "
                        "state. best: the lowest loss of the held-out pictures; without any, the "
                        "lowest mean loss of 20 steps."
                    ),
                ),
                *_base(),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip=(
                        "The base with what was learned; of Textual Inversion the base as it is."
                    ),
                ),
                io.Clip.Output(display_name="clip", tooltip="The clip with what was learned."),
                io.LoraModel.Output(display_name="lora", tooltip="Of a LoRA run: the LoRA alone."),
                PersonalizeEmbedding.Output(
                    display_name="embedding", tooltip="Of Textual Inversion: the token alone."
                ),
                io.LossMap.Output(
                    display_name="loss_map", tooltip="The loss of every step up to this one."
                ),
                io.String.Output(display_name="run", tooltip="The run's folder."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, run: str | None = None, step: str | None = None) -> bool | str:
        """Any run that is there now, also one that the page's list lacks; a wired one is not known
        yet."""
        from ..host.workbench.load import problem_with

        if run is None or step is None:
            return True
        return problem_with(run, str(step)) or True

    @classmethod
    def fingerprint_inputs(cls, run: str | None = None, **given: Any) -> Any:
        from ..host.workbench.load import facts_now

        return facts_now(cls.hidden.unique_id, run)

    @classmethod
    def check_lazy_status(cls, run: str, **given: Any) -> list[str]:
        """Which of the base's sockets the outputs that are wired need."""
        from ..host.runs.base import GraphNode
        from ..host.workbench.load import sockets_asked

        needed = sockets_asked(run, GraphNode.of(cls.hidden))
        return [name for name in needed if given.get(name) is None]

    @classmethod
    def execute(cls, run: str, step: str, model: Any = None, clip: Any = None) -> io.NodeOutput:
        from ..host.models.tokenizer import with_embeddings
        from ..host.runs.base import GraphNode
        from ..host.status import running_node, show_text
        from ..host.workbench.load import OUTPUTS, described, load_run

        loaded = load_run(run, str(step), GraphNode.of(cls.hidden), model, clip)
        config, outcome, clip = loaded.config, loaded.outcome, loaded.clip
        if getattr(config.own, "train_token", False) and clip is not None:
            clip = with_embeddings(clip, outcome.learned.needs)
        node = NODES[config.method]
        made = node.outputs(outcome, config, loaded.model, clip)
        outputs = {"model": loaded.model, **dict(zip(node.output_names(), made, strict=True))}
        show_text(described(loaded), running_node())
        own = [outputs.get(name) for name in OUTPUTS]
        return io.NodeOutput(*own, outcome.loss_map, str(outcome.run))


def _base() -> list[io.Input]:
    return [
        io.Model.Input(
            "model",
            lazy=True,
            optional=True,
            tooltip="The base that the run was trained on; for the output model alone.",
        ),
        io.Clip.Input(
            "clip",
            lazy=True,
            optional=True,
            tooltip="The text encoder of the same base; for the output clip alone.",
        ),
    ]
