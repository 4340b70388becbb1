"""What is sampled from a model to judge it, through a host's stock nodes, and the scores of that.

For one subject: pictures of the subject before every background, of its class in general, and of
the other classes, which training should leave alone.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tests.graphs import Graph, Link
from tests.host import Host

from . import meters, world
from .autoencoder import to_tensor

SAMPLING = {
    "steps": 20,
    "cfg": 3.0,  # follows the prompt; 5 drives cream to white and teal to cyan
    "sampler_name": "euler",
    "scheduler": "normal",
    "denoise": 1.0,
}
NUM_OTHERS = 10


@dataclass(frozen=True)
class Shot:
    """Pictures of one prompt, from one seed on.

    Attributes:
        group: "subject", "class", "others" or "second", which is another subject.
        asked: what the prompt asks for; a subject has no colour.
    """

    group: str
    text: str
    seed: int
    count: int
    asked: world.Triple


def shots(name: str, called: str) -> list[Shot]:
    """10 pictures of the subject, 6 of its class, 10 of other classes.

    Args:
        called: what prompts say for the subject, such as "sks star".
    """
    shape = world.SUBJECTS[name].shape
    subject = [
        Shot("subject", world.caption(called, "", b), 100 + i, 2, world.Triple(shape, "", b))
        for i, b in enumerate(world.BACKGROUNDS)
    ]
    plain = [Shot("class", world.caption(shape), 200, 6, world.Triple(shape, "", ""))]
    asked = [t for t in world.HELD_OUT_TRIPLES if t.shape != shape]
    chosen = asked[:: max(1, len(asked) // NUM_OTHERS)][:NUM_OTHERS]
    others = [
        Shot("others", world.caption(t.shape, t.colour, t.background), 300 + i, 1, t)
        for i, t in enumerate(chosen)
    ]
    return subject + plain + others


def second_shots(name: str, called: str) -> list[Shot]:
    """The 10 pictures of a second subject; see `shots`."""
    of_subject = [shot for shot in shots(name, called) if shot.group == "subject"]
    return [dataclasses.replace(shot, group="second") for shot in of_subject]


def add_shots(graph: Graph, model: Link, clip: Link, vae: Link, wanted: list[Shot]) -> None:
    """Add the nodes that sample `wanted` and save the pictures."""
    empty = graph.add("CLIPTextEncode", clip=clip, text="")[0]
    for place, shot in enumerate(wanted):
        size = {"width": world.SIZE_PX, "height": world.SIZE_PX, "batch_size": shot.count}
        blank = graph.add("EmptyLatentImage", **size)[0]
        text = graph.add("CLIPTextEncode", clip=clip, text=shot.text)[0]
        sockets = {"model": model, "positive": text, "negative": empty, "latent_image": blank}
        latents = graph.add("KSampler", **sockets, seed=shot.seed, **SAMPLING)[0]
        pixels = graph.add("VAEDecode", samples=latents, vae=vae)[0]
        # A prefix of its own: the host runs the nodes in an order of its own.
        graph.add("SaveImage", images=pixels, filename_prefix=f"shot_{place:03d}")


def run_shots(host: Host, graph: Graph, wanted: list[Shot]) -> list[Image.Image]:
    """Run a graph with `wanted` in it; their pictures in order, all of one shot together."""
    return pictures_of(host, host.run(graph, timeout=3600), wanted)


def pictures_of(host: Host, entry: dict[str, Any], wanted: list[Shot]) -> list[Image.Image]:
    """The pictures of a finished run of a graph with `wanted` in it, as run_shots gives them."""
    paths = [p for p in host.images(entry) if p.name.startswith("shot_")]
    pictures = [_opened(path) for path in sorted(paths, key=lambda path: path.name)]
    assert len(pictures) == sum(shot.count for shot in wanted), len(pictures)
    return pictures


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def of_group(pictures: list[Image.Image], wanted: list[Shot], group: str) -> list[Image.Image]:
    """The pictures of one group of shots."""
    groups = [shot.group for shot in wanted for _ in range(shot.count)]
    return [p for p, own in zip(pictures, groups, strict=True) if own == group]


@dataclass(frozen=True)
class Scores:
    """What the meters say of one model for one subject; shares and fidelities from 0 to 1.

    Attributes:
        fidelity: mean subject fidelity of the subject's pictures.
        background: share of the subject's pictures before the background asked for.
        shape: share of the subject's pictures that show its shape.
        class_fidelity: mean subject fidelity of the plain class's pictures; its rise over the
            base's is class drift.
        diversity: of the plain class's pictures, in levels.
        others: share of other classes' pictures in which shape, colour and background are right.
        second: mean fidelity of the second subject's pictures to that one; None without them.
    """

    fidelity: float
    background: float
    shape: float
    class_fidelity: float
    diversity: float
    others: float
    second: float | None = None

    @property
    def weaker(self) -> float | None:
        """The fidelity of the subject that has less of it, the first or the second."""
        return None if self.second is None else min(self.fidelity, self.second)


def score(
    name: str,
    reader: meters.Reader,
    pictures: list[Image.Image],
    wanted: list[Shot],
    second: str = "",
) -> Scores:
    """Measure the pictures of all shots of a subject, and of a second one if there is one."""
    meter = meters.SubjectMeter(name)
    levels = {g: to_tensor(of_group(pictures, wanted, g)) for g in ("subject", "class", "others")}
    asked = {g: [s.asked for s in wanted if s.group == g for _ in range(s.count)] for g in levels}
    subject = meters.prompt_following(reader, levels["subject"], asked["subject"])
    return Scores(
        fidelity=_mean(meter.fidelity(levels["subject"])),
        background=subject.background,
        shape=subject.shape,
        class_fidelity=_mean(meter.fidelity(levels["class"])),
        diversity=meters.diversity(levels["class"]),
        others=meters.all_right(reader, levels["others"], asked["others"]),
        second=_second_fidelity(second, pictures, wanted) if second else None,
    )


def _second_fidelity(name: str, pictures: list[Image.Image], wanted: list[Shot]) -> float:
    levels = to_tensor(of_group(pictures, wanted, "second"))
    return _mean(meters.SubjectMeter(name).fidelity(levels))


def _mean(values: Tensor) -> float:
    return torch.as_tensor(values).mean().item()
