"""Nodes that make a LoRA of others, or of trained models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io

from ...trainers.methods.adapters.merge import SUM, WAYS
from .apply import STRENGTH

MOST_LORAS = 4
BY_RANK, BY_ENERGY = "rank", "energy"
MOST_RANK = 1024
LORA = "From Train LoRA, or any node that makes one."


def _keep_inputs(default_rank: int) -> list[io.Input]:
    return [
        io.Combo.Input(
            "keep",
            options=[BY_RANK, BY_ENERGY],
            tooltip=(
                "What decides how much of each layer is kept: rank gives all layers the same rank; "
                "energy gives each as many as hold its share, so that the loss is even."
            ),
        ),
        io.Int.Input(
            "rank",
            default=default_rank,
            min=1,
            max=MOST_RANK,
            tooltip="With keep 'rank': the rank of each layer. No layer gets more than it has.",
        ),
        io.Float.Input(
            "energy",
            default=0.99,
            min=0.01,
            max=1.0,
            step=0.01,
            round=False,
            tooltip=(
                "With keep 'energy': the share of each layer's squared singular values to keep. "
                "0.99 loses at most 10 % of its norm, 0.9999 at most 1 %."
            ),
        ),
    ]


def _outputs(what: str) -> list[io.Output]:
    return [
        io.LoraModel.Output(display_name="lora", tooltip=what),
        io.String.Output(
            display_name="report",
            tooltip="Layers, ranks, and how much of the change is lost, in all and where most.",
        ),
    ]


def _drawn() -> io.Output:
    return io.Image.Output(
        display_name="plot",
        tooltip="The rank of each layer, and how much of its change is lost, as a picture.",
    )


class MergeLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeMergeLoras",
            display_name="Merge LoRAs",
            category="personalize/adapters",
            description=(
                "Makes one LoRA of up to four: their exact sum, that sum at a lower rank, or a "
                "merge by TIES, DARE or pruning. Says how much is lost."
            ),
            search_aliases=["combine loras", "add loras", "ties", "dare", "lora svd merge"],
            inputs=[
                *(one for number in range(1, MOST_LORAS + 1) for one in _lora_inputs(number)),
                io.Combo.Input(
                    "method",
                    options=list(WAYS),
                    optional=True,
                    tooltip=(
                        "sum acts as one Apply LoRA behind the other. ties settles conflicts of "
                        "sign, dare_linear and dare_ties drop numbers at random, magnitude_prune "
                        "drops the smallest ones; these need a rank."
                    ),
                ),
                io.Int.Input(
                    "rank",
                    optional=True,
                    default=0,
                    min=0,
                    max=MOST_RANK,
                    tooltip=(
                        "Rank of the merged LoRA. 0 is exact, for sum alone: the ranks add up."
                    ),
                ),
                io.Float.Input(
                    "density",
                    optional=True,
                    default=0.5,
                    min=0.01,
                    max=1.0,
                    step=0.05,
                    round=False,
                    tooltip=(
                        "The share of numbers that methods other than sum keep of each LoRA. "
                        "(Source: TIES keeps 0.2, arXiv 2306.01708; DARE 0.1 to 0.5, 2311.03099.)"
                    ),
                ),
                io.Int.Input(
                    "seed",
                    optional=True,
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Which numbers dare_linear and dare_ties drop.",
                ),
            ],
            outputs=_outputs("The merged LoRA, at strength 1."),
        )

    @classmethod
    def execute(
        cls, method: str = SUM, rank: int = 0, density: float = 0.5, seed: int = 0, **wired: Any
    ) -> io.NodeOutput:
        from ...trainers.methods.adapters.merge import Way, merge
        from ...trainers.runs.metadata import check_one_base
        from ..host.memory import fp64_device
        from ..host.status import counted

        numbers = [n for n in range(1, MOST_LORAS + 1) if wired.get(f"lora_{n}") is not None]
        loras = [wired[f"lora_{n}"] for n in numbers]
        strengths = [wired.get(f"strength_{n}", 1.0) for n in numbers]
        way = Way(method, rank, density, seed)
        check_one_base([_metadata(lora) for lora in loras])
        result = merge(loras, strengths, way, fp64_device(), counted)
        return io.NodeOutput(*_made_of(loras, result))


def _lora_inputs(number: int) -> list[io.Input]:
    # Optional but for two sockets, so that strengths stand together and prompts are short.
    return [
        io.LoraModel.Input(f"lora_{number}", optional=number > 2, tooltip=LORA),
        io.Float.Input(
            f"strength_{number}",
            optional=True,
            tooltip=f"How strongly lora_{number} counts. Negative takes it away.",
            **STRENGTH,
        ),
    ]


class ExtractLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeExtractLora",
            display_name="Extract LoRA",
            category="personalize/adapters",
            description=(
                "Makes a LoRA of the difference of two models: of a DreamBooth, of any trained "
                "checkpoint, or of LoRAs that are applied. Says and draws how much is lost."
            ),
            search_aliases=["model to lora", "checkpoint difference", "dreambooth to lora", "svd"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The trained model, with all that is applied to it."
                ),
                io.Model.Input("base_model", tooltip="The model that it was trained from."),
                *_keep_inputs(32),
                io.Clip.Input(
                    "clip", optional=True, tooltip="The trained clip, if the text encoder changed."
                ),
                io.Clip.Input("base_clip", optional=True, tooltip="The clip before the training."),
            ],
            outputs=[
                *_outputs("Changes base_model into model, as nearly as its rank allows."),
                _drawn(),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        base_model: Any,
        keep: str,
        rank: int,
        energy: float,
        clip: Any = None,
        base_clip: Any = None,
    ) -> io.NodeOutput:
        from ...trainers.errors import SettingsError
        from ...trainers.methods.adapters.extract import extract
        from ...trainers.runs.metadata import extracted_metadata
        from ..host.memory import fp64_device
        from ..host.models.adapters.differences import differences
        from ..host.models.support import record_of

        if (clip is None) != (base_clip is None):
            missing, there = ("clip", "base_clip") if clip is None else ("base_clip", "clip")
            raise SettingsError((f"{there} is wired and {missing} is not; allowed: both or none",))
        found = differences(model, base_model, clip, base_clip)
        result = extract(found, _keep(keep, rank, energy), fp64_device())
        ranks = [layer.rank for layer in result.layers if layer.rank]
        made = _output(result, extracted_metadata(record_of(model), ranks), ())
        return io.NodeOutput(*made, _plot(result))


class ResizeLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonalizeResizeLora",
            display_name="Resize LoRA",
            category="personalize/adapters",
            description=(
                "Makes a LoRA smaller: to a rank, or to what holds a share of each layer. Says "
                "and draws how much is lost."
            ),
            search_aliases=["shrink lora", "lora rank", "reduce lora", "smaller lora"],
            inputs=[io.LoraModel.Input("lora", tooltip=LORA), *_keep_inputs(8)],
            outputs=[*_outputs("The smaller LoRA."), _drawn()],
        )

    @classmethod
    def execute(cls, lora: Any, keep: str, rank: int, energy: float) -> io.NodeOutput:
        from ...trainers.methods.adapters.merge import resize
        from ..host.memory import fp64_device
        from ..host.status import counted

        result = resize(lora, _keep(keep, rank, energy), fp64_device(), counted)
        return io.NodeOutput(*_made_of([lora], result), _plot(result))


def _keep(by: str, rank: int, energy: float) -> Any:
    from ...trainers.methods.adapters.low_rank import Keep

    return Keep(rank=rank) if by == BY_RANK else Keep(energy=energy)


def _metadata(lora: Any) -> Mapping[str, str]:
    metadata: Mapping[str, str] = getattr(lora, "metadata", {})  # core's LORA_MODELs have none
    return metadata


def _made_of(loras: Sequence[Any], result: Any) -> tuple[Any, str]:
    """A LoRA that is made of others, and the report."""
    from ...trainers.runs.metadata import merged_metadata, needs_metadata

    needs = {e.fingerprint(): e for lora in loras for e in getattr(lora, "needs", ())}
    ranks = [layer.rank for layer in result.layers if layer.rank]
    metadata = merged_metadata([_metadata(lora) for lora in loras], ranks)
    return _output(result, metadata | needs_metadata(needs.values()), tuple(needs.values()))


def _output(result: Any, metadata: Mapping[str, str], needs: tuple[Any, ...]) -> tuple[Any, str]:
    """A LoRA, and its report, which is shown as well."""
    from ...trainers.methods.adapters.report import report
    from ...trainers.methods.results import Adapter
    from ..host.status import running_node, show_text

    text = report(result.layers)
    show_text(text, running_node())
    return Adapter(result.tensors, metadata, needs), text


def _plot(result: Any) -> Any:
    from ...trainers.runs.pictures.layer_plot import draw_layers
    from ..host.pictures.overview import image_of

    return image_of(draw_layers(result.layers))
