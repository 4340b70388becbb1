"""What a picture of the drawn world shows: class and colours, and how much of a subject.

Pictures are bytes (B, 3, 64, 64). All meters are means over pictures; with n pictures a share p
has a standard error of sqrt(p (1 - p) / n), 0.02 for p = 0.9 and n = 200.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import world
from .autoencoder import Codec, to_pixels, to_tensor
from .fit import Batch, Plan, fit

PARTS = (tuple(world.SHAPES), tuple(world.COLOURS), tuple(world.BACKGROUNDS))
PLAN = Plan(steps=400, batch_size=64, lr=2e-3, save_every=200)  # about a minute on two cores
POOL_SIZE, ROUND_TRIPS = 4000, 300  # so many of the pool have been through the autoencoder
UNKNOWN = -100  # cross entropy's own mark for a label to leave out


class Reader(nn.Module):
    """A small convolutional classifier with one head a part: shape, colour, background."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        layers: list[nn.Module] = []
        for narrow, wide in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(narrow, wide, 3, 2, 1), nn.GroupNorm(8, wide), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.heads = nn.ModuleList(nn.Linear(128 * 16, len(names)) for names in PARTS)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Pixels (B, 3, 64, 64) in -1..1 to one table of logits a part."""
        features = self.trunk(pixels)
        return [head(features) for head in self.heads]


def load_reader(cache: Path, codec: Codec) -> Reader:
    """The trained classifier, from `cache` or trained now (about a minute on two cores).

    It was right in every part of 240 drawn pictures it never saw, before and after a round trip
    through the autoencoder; a test holds it to 97 %.
    """
    pool = functools.cache(_training_pool)  # made only where there is something left to train
    torch.manual_seed(0)

    def draw(generator: torch.Generator, count: int) -> Batch:
        levels, labels = pool(codec)
        picked = torch.randint(len(labels), (count,), generator=generator)
        return levels[picked], labels[picked]

    return fit(Reader(), draw, _reader_loss, PLAN, cache).eval()


def _training_pool(codec: Codec) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(5)
    drawn, labels = [], []
    for i in range(POOL_SIZE):
        triple = world.ALL_TRIPLES[rng.integers(len(world.ALL_TRIPLES))]
        ranks = [
            names.index(name)
            for names, name in zip(
                PARTS, (triple.shape, triple.colour, triple.background), strict=True
            )
        ]
        picture = world.draw_triple(triple, rng)
        if i % 4 == 3:  # a patterned object has a shape and a background but no one colour
            look, place = world.random_look(rng), world.random_placement(rng)
            background = world.BACKGROUNDS[triple.background]
            picture, ranks[1] = world.draw(triple.shape, look, background, place), UNKNOWN
        drawn.append(picture)
        labels.append(ranks)
    levels = to_tensor(drawn)
    levels[:ROUND_TRIPS] = round_trip(codec, levels[:ROUND_TRIPS])
    return levels, torch.tensor(labels)


def round_trip(codec: Codec, levels: Tensor) -> Tensor:
    """What the autoencoder makes of pictures."""
    rebuilt = torch.cat([codec.decode(codec.encode(part)) for part in levels.split(64)])
    return rebuilt.add(1).mul(127.5).round().to(torch.uint8)


def _reader_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    levels, labels = batch
    # Noise of up to a sixth of the range: generated pictures are never as clean as drawn ones.
    size = torch.rand((len(levels), 1, 1, 1), generator=generator) * 0.3
    pixels = to_pixels(levels)
    noise = torch.randn(pixels.shape, generator=generator)
    logits = model(pixels + (size * noise).to(pixels))
    losses = [
        nn.functional.cross_entropy(table.float(), labels[:, i], reduction="none")
        for i, table in enumerate(logits)
    ]
    return torch.stack(losses).sum(0)


@torch.no_grad()
def read(reader: Reader, levels: Tensor) -> list[world.Triple]:
    """The most likely shape, colour and background of each picture."""
    tables = reader(to_pixels(levels))
    ranks = torch.stack([table.argmax(1) for table in tables], 1).tolist()
    return [world.Triple(*(n[r] for n, r in zip(PARTS, row, strict=True))) for row in ranks]


@dataclass(frozen=True)
class Following:
    """Shares of pictures whose shape, colour and background are the ones asked for."""

    shape: float
    colour: float
    background: float
    count: int


def prompt_following(reader: Reader, levels: Tensor, asked: list[world.Triple]) -> Following:
    """Compare what each picture shows with what its prompt asked for.

    The classifier itself errs in less than 3 of 100 pictures; the shares' standard error is that
    of a share (see above).
    """
    seen = read(reader, levels)
    hits = [
        [getattr(s, part) == getattr(a, part) for s, a in zip(seen, asked, strict=True)]
        for part in ("shape", "colour", "background")
    ]
    return Following(*(sum(h) / len(h) for h in hits), len(seen))


def all_right(reader: Reader, levels: Tensor, asked: list[world.Triple]) -> float:
    """Share of pictures whose shape, colour and background are all the ones asked for."""
    seen = read(reader, levels)
    return sum(s == a for s, a in zip(seen, asked, strict=True)) / len(asked)


def reader_accuracy(reader: Reader, codec: Codec, count: int = 240) -> tuple[Following, Following]:
    """How often the classifier is right on new drawings: as drawn, and after a round trip."""
    rng = np.random.default_rng(7)
    triples = [world.ALL_TRIPLES[i % len(world.ALL_TRIPLES)] for i in range(count)]
    levels = to_tensor([world.draw_triple(triple, rng) for triple in triples])
    return (
        prompt_following(reader, levels, triples),
        prompt_following(reader, round_trip(codec, levels), triples),
    )


class SubjectMeter:
    """Subject fidelity: how near a picture is to a drawing of the subject.

    The picture is compared with 400 drawings at placements that no training picture has, before
    the picture's own background (the median of its border). The smallest mean absolute
    difference counts, scaled so that plain objects of the class score 0 on average and drawings
    of the subject 1. The autoencoder's blur costs a perfect picture 0.13 to 0.30. Pictures of the
    base's plain class spread by 0.1 to 0.4 and drawings of the subject by 0.05, so a mean over 20
    pictures is known to 0.1 at worst.
    """

    def __init__(self, name: str, seed: int = 6) -> None:
        self.name = name
        subject = world.SUBJECTS[name]
        rng = np.random.default_rng([seed, list(world.SUBJECTS).index(name)])
        places = [world.random_placement(rng) for _ in range(400)]
        dark, light = (0, 0, 0), (255, 255, 255)
        on_dark, on_light = (
            to_tensor([world.draw(subject.shape, subject.look, b, p) for p in places]).float()
            for b in (dark, light)
        )
        self.cover = 1 - (on_light - on_dark).mean(1, keepdim=True) / 255
        self.drawn = on_dark
        triples = [t for t in world.ALL_TRIPLES if t.shape == subject.shape]
        plain = to_tensor([world.draw_triple(t, rng) for t in triples])
        own = to_tensor([world.draw_subject(name, b, rng) for b in world.BACKGROUNDS for _ in "ab"])
        self.far, self.near = self.distance(plain).mean(), self.distance(own).mean()

    def distance(self, levels: Tensor) -> Tensor:
        """Levels between each picture (B, 3, 64, 64) and the nearest drawing (B,)."""
        return torch.stack([self._nearest(picture) for picture in levels.float()])

    def _nearest(self, picture: Tensor) -> Tensor:
        border = torch.cat([picture[:, 0], picture[:, -1], picture[:, :, 0], picture[:, :, -1]], 1)
        background = border.median(1).values.view(3, 1, 1)
        drawings = self.drawn + (1 - self.cover) * background
        return (drawings - picture).abs().mean((1, 2, 3)).min()

    def fidelity(self, levels: Tensor) -> Tensor:
        """One number a picture (B,): 1 for the subject, about 0 for others of its class."""
        return (self.far - self.distance(levels)) / (self.far - self.near)


def rise(meter: SubjectMeter, before: Tensor, after: Tensor) -> tuple[float, float]:
    """How far pictures moved towards the subject, and the standard error of that.

    The mean difference of fidelity of pictures made before and after training from the same
    prompts and seeds. For the subject's prompts it is what was learned; for the plain class's it
    is class drift: 0 none, 1 wholly. With 20 pairs the standard error is about 0.05.
    """
    differences = meter.fidelity(after) - meter.fidelity(before)
    return differences.mean().item(), differences.std().item() / len(differences) ** 0.5


def diversity(levels: Tensor) -> float:
    """Mean absolute difference, in levels, of all pairs among pictures of one prompt.

    Drawn pictures of one full caption give about 9; 0 means one and the same picture. With 10
    pictures the standard error is about a tenth of the value.
    """
    flat = levels.flatten(1).float()
    distances = torch.pdist(flat, p=1) / flat.shape[1]
    return distances.mean().item()
