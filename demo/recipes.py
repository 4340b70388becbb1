"""Ways to train the demo base on a subject and to use the result, as graphs of nodes."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from tests.graphs import Graph, Link

from . import world
from .checkpoint import DEMO_CHECKPOINT
from .panel import SAMPLING
from .transformer import files as sd3

IDENTIFIER = "sks"  # the articles' custom: a word the base gives no meaning to
TOKEN = "<mine>"
EXACT = {"precision": "fp32", "batch_size": 1}
# Higher rates than for a real base, and all layers: this one has a thirtieth of the weights, so
# each has to change more for the same difference.
LORA = EXACT | {
    "steps": 400, "learning_rate": 1e-3, "rank": 16, "alpha": 16.0, "train_text_encoder": False,
    "targets": "all with convolutions",
}  # fmt: skip
DREAMBOOTH = EXACT | {
    "steps": 400, "learning_rate": 1e-4, "train_text_encoder": False, "prior_weight": 1.0,
}  # fmt: skip
# The demo base's table has rows of deviation 1 instead of a real one's 0.014: hence the rate.
# What a picture shows is settled while there is much noise. Over all timesteps the loss is mostly
# about details under little noise: it falls by an eighth, and no picture looks like the subject.
INVERSION = EXACT | {
    "steps": 250, "learning_rate": 0.04, "lr_schedule": "cosine", "timestep_min": 500,
    "vectors": 4, "templates": "captions only",
}  # fmt: skip
SHARED = {"lora": LORA, "dreambooth": DREAMBOOTH, "inversion": INVERSION, "none": {}}
NUM_CLASS_IMAGES = 20


@dataclass(frozen=True)
class Recipe:
    """One way to train and to use the result.

    Attributes:
        method: "none" (the base as it is), "lora", "dreambooth", "inversion".
        settings: of the training node, where they are not the method's above.
        called: what prompts call the subject: "identifier", "class" (by its shape alone), "token"
            (a word that Textual Inversion learns before).
        prior: with class images, which the base makes.
        strength: of the LoRA, and of the second one, when sampling.
        second: another subject, which is asked for as well.
        together: how the second subject's LoRA, trained in the same way, comes to the first one:
            None not at all, {} as one Apply LoRA behind the other, else inputs of Merge LoRAs.
        extracted: inputs of Extract LoRA, which makes a LoRA of a DreamBooth for the base.
        transformer: on demo.transformer instead of on the demo base, which has a UNet.
    """

    label: str
    method: str = "lora"
    settings: dict[str, Any] = field(default_factory=dict)
    called: str = "identifier"
    prior: bool = False
    strength: float = 1.0
    second: str = ""
    together: dict[str, Any] | None = None
    extracted: dict[str, Any] | None = None
    transformer: bool = False

    def key(self, subject: str, seed: int) -> str:
        """Names a measurement: the same words, the same result."""
        shared = [SHARED[self.method], INVERSION if self.called == "token" else {}]
        facts = dataclasses.asdict(self) | {"label": "", "shared": shared}
        if not self.transformer:
            del facts["transformer"]  # came later than most measurements
        told = json.dumps([facts, subject, seed if self.method != "none" else 0], sort_keys=True)
        return f"{subject}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


BASE = Recipe("base", method="none")
CLASS_ALONE = Recipe("base, asked for the class", method="none", called="class")
PLAIN = Recipe("LoRA")
DREAM = Recipe("DreamBooth", method="dreambooth")
PRESERVED = Recipe("DreamBooth with class images", method="dreambooth", prior=True)
INVERTED = Recipe("Textual Inversion", method="inversion", called="token")
TOKEN_THEN_DREAM = Recipe("Textual Inversion, then DreamBooth", method="dreambooth", called="token")
HALF = Recipe("DreamBooth in bf16", method="dreambooth", settings={"weights": "bf16"})
TOKEN_AND_LORA = Recipe("LoRA with a learned token", called="token")
BY_ENERGY, BY_RANK = ({"keep": k, "rank": 16, "energy": 0.99} for k in ("energy", "rank"))
EXTRACTED = Recipe("extracted, 99 % energy", method="dreambooth", extracted=BY_ENERGY)
EXTRACTED_SMALL = Recipe("extracted, rank 16", method="dreambooth", extracted=BY_RANK)
SECOND = "cross"
FIRST_ALONE = Recipe("LoRA", second=SECOND)
STACKED = Recipe("a second LoRA on top", second=SECOND, together={})
HALVED = Recipe("both at strength 0.6", strength=0.6, second=SECOND, together={})
# At a rank that cuts nothing off, so that what is seen is the method's own doing.
MERGES = tuple(
    Recipe(label, second=SECOND, together={"method": method, "density": density, "rank": 1024})
    for label, method, density in (
        ("ties", "ties", 0.5),
        ("dare_ties", "dare_ties", 0.5),
        ("magnitude_prune", "magnitude_prune", 0.3),
    )
)
FLOW_BASE = Recipe("transformer", method="none", transformer=True)
FLOW_LORA = Recipe("LoRA of the transformer", transformer=True)
SKIPPING = {"tread_selection_ratio": 0.5}
FLOW_SKIPPING = Recipe("with TREAD", settings=SKIPPING, transformer=True)
# As many as its speed buys where a model is large: Z-Image's step has 0.59 of the operations.
FLOW_SKIPPING_LONGER = Recipe(
    "with TREAD, 680 steps", settings={**SKIPPING, "steps": 680}, transformer=True
)


def name_in_prompts(subject: str, called: str) -> str:
    """What prompts and captions say in the place of the subject."""
    shape = world.SUBJECTS[subject].shape
    return {"identifier": f"{IDENTIFIER} {shape}", "class": shape, "token": TOKEN}[called]


def folder_name(subject: str, called: str) -> str:
    """The folder of the host's input/ with the subject's pictures and captions."""
    return f"{subject}_{called}"


def sockets(graph: Graph, recipe: Recipe, subject: str, seed: int) -> list[Link]:
    """Add a recipe's nodes; the MODEL, CLIP and VAE to sample with."""
    model, clip, vae = sd3.load(graph) if recipe.transformer else graph.load(DEMO_CHECKPOINT)
    if recipe.called == "token":
        clip = _inverted(graph, [model, clip, vae], subject, seed)
    return [*_METHODS[recipe.method](graph, [model, clip, vae], recipe, subject, seed), vae]


def _inverted(graph: Graph, base: list[Link], subject: str, seed: int) -> Link:
    dataset = graph.dataset(folder_name(subject, "token"))
    start = {"token": TOKEN, "initializer": world.SUBJECTS[subject].shape}
    return graph.invert(*base, dataset, **{**INVERSION, **start, "seed": seed})[0]


def _as_it_is(
    graph: Graph, base: list[Link], recipe: Recipe, subject: str, seed: int
) -> list[Link]:
    return base[:2]


def _lora(graph: Graph, base: list[Link], recipe: Recipe, subject: str, seed: int) -> list[Link]:
    model, clip, lora = _trained_lora(graph, base, recipe, subject, seed)
    if recipe.together:
        return _applied(graph, base, _merged(graph, base, recipe, lora, seed), 1.0)
    if recipe.strength != 1:
        model, clip = _applied(graph, base, lora, recipe.strength)
    if recipe.together is not None:
        second = _trained_lora(graph, base, recipe, recipe.second, seed)[2]
        model, clip = _applied(graph, [model, clip], second, recipe.strength)
    return [model, clip]


def _merged(graph: Graph, base: list[Link], recipe: Recipe, first: Link, seed: int) -> Link:
    wired = {"lora_1": first, "lora_2": _trained_lora(graph, base, recipe, recipe.second, seed)[2]}
    strengths = {"strength_1": recipe.strength, "strength_2": recipe.strength}
    made = graph.add("PersonalizeMergeLoras", 2, **wired, **strengths, **(recipe.together or {}))
    return _told(graph, made)


def _trained_lora(
    graph: Graph, base: list[Link], recipe: Recipe, subject: str, seed: int
) -> list[Link]:
    dataset = graph.dataset(folder_name(subject, recipe.called))
    prior = _class_images(graph, base, recipe, subject)
    settings = {**LORA, **prior, **recipe.settings, "seed": seed}
    model, clip, lora, losses, _ = graph.train(*base, dataset, **settings)
    if recipe.transformer:
        graph.add("PreviewAny", source=losses)
    return [model, clip, lora]


def _dreambooth(
    graph: Graph, base: list[Link], recipe: Recipe, subject: str, seed: int
) -> list[Link]:
    dataset = graph.dataset(folder_name(subject, recipe.called))
    prior = _class_images(graph, base, recipe, subject)
    settings = {**DREAMBOOTH, **prior, **recipe.settings, "seed": seed}
    model, clip = graph.dreambooth(*base, dataset, **settings)[:2]
    if recipe.extracted is None:
        return [model, clip]
    wired = {"model": model, "base_model": base[0], "clip": clip, "base_clip": base[1]}
    made = graph.add("PersonalizeExtractLora", 2, **wired, **recipe.extracted)
    return _applied(graph, base, _told(graph, made), 1.0)


def _told(graph: Graph, made: list[Link]) -> Link:
    """A LoRA, after nodes that hand out what is told of it, and save it; see told_of."""
    lora, report = made
    graph.add("PreviewAny", source=report)
    graph.add("PersonalizeSaveLora", lora=lora, filename_prefix="loras/made", format="kohya fp16")
    return lora


def _class_images(graph: Graph, base: list[Link], recipe: Recipe, subject: str) -> dict[str, Link]:
    if not recipe.prior:
        return {}
    wired = dict(zip(("model", "clip", "vae"), base, strict=True))
    made = graph.add(
        "PersonalizeClassImages", **wired, **{k: v for k, v in SAMPLING.items() if k != "denoise"},
        prompt=world.caption(world.SUBJECTS[subject].shape), negative_prompt="", seed=0,
        count=NUM_CLASS_IMAGES, width=world.SIZE_PX, height=world.SIZE_PX,
    )  # fmt: skip
    return {"class_dataset": made[0]}


def _applied(graph: Graph, onto: list[Link], lora: Link, strength: float) -> list[Link]:
    wired = {"model": onto[0], "clip": onto[1], "lora": lora}
    strengths = {"strength_model": strength, "strength_clip": strength}
    return graph.add("PersonalizeApplyLora", 2, **wired, **strengths)


_METHODS = {
    "none": _as_it_is,
    "inversion": _as_it_is,  # the clip that knows the token is all there is
    "lora": _lora,
    "dreambooth": _dreambooth,
}
