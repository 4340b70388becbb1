"""What the articles say that the drawn world can speak to, and which measurements answer it.

A claim expects a metric to be higher for one recipe than for another. Differences are taken pair
by pair (same subject, same seed); two standard errors of their mean decide.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .recipes import BASE, Recipe


class Verdict(Enum):
    """What the measurement says of one expectation."""

    AGREES = "agrees"
    DISAGREES = "disagrees"
    OPEN = "no difference seen"


@dataclass(frozen=True)
class Expectation:
    """`metric` (a field of Scores) is higher for the recipe labelled `higher` than for `lower`."""

    metric: str
    higher: str
    lower: str


@dataclass(frozen=True)
class Claim:
    """A sentence of the articles and what it makes us expect here.

    Attributes:
        says: the claim, in our words.
        recipes: what is trained to look into it.
        expects: what should then be seen.
        discussion: what we make of it.
    """

    says: str
    recipes: tuple[Recipe, ...]
    expects: tuple[Expectation, ...]
    discussion: str = ""


def judge(differences: Sequence[float]) -> tuple[Verdict, float, float]:
    """Verdict, mean and standard error of pairwise differences (higher minus lower)."""
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    if abs(mean) <= 2 * error or mean == 0:
        return Verdict.OPEN, mean, error
    return (Verdict.AGREES if mean > 0 else Verdict.DISAGREES), mean, error


PLAIN = Recipe("LoRA")
CLAIMS = (
    Claim(
        "A high learning rate overfits; the low one keeps the class and everything else.",
        (
            Recipe("rate 1e-4", settings={"learning_rate": 1e-4}),
            PLAIN,
            Recipe("rate 4e-3", settings={"learning_rate": 4e-3}),
        ),
        (
            Expectation("fidelity", "LoRA", "rate 1e-4"),
            Expectation("others", "LoRA", "rate 4e-3"),
            Expectation("class_fidelity", "rate 4e-3", "rate 1e-4"),
        ),
    ),
    Claim(
        "Training the text encoder as well gives the best likeness and follows prompts best.",
        (PLAIN, Recipe("with text encoder", settings={"train_text_encoder": True})),
        (
            Expectation("fidelity", "with text encoder", "LoRA"),
            Expectation("background", "with text encoder", "LoRA"),
        ),
    ),
    Claim(
        "More steps (400, 800, 1200) bring more likeness, then overfitting.",
        (
            PLAIN,
            *(Recipe(f"{num} steps", settings={"steps": num}) for num in (400, 800, 1200)),
        ),
        (
            Expectation("fidelity", "400 steps", "LoRA"),
            Expectation("fidelity", "1200 steps", "400 steps"),
            Expectation("others", "400 steps", "1200 steps"),
            Expectation("class_fidelity", "1200 steps", "400 steps"),
        ),
    ),
    Claim(
        "A higher rank learns more detail.",
        (
            Recipe("rank 2", settings={"rank": 2, "alpha": 2.0}),
            PLAIN,
            Recipe("rank 64", settings={"rank": 64, "alpha": 64.0}),
        ),
        (
            Expectation("fidelity", "LoRA", "rank 2"),
            Expectation("fidelity", "rank 64", "LoRA"),
        ),
    ),
    Claim(
        "The strength of a LoRA is set when sampling: less of it, less of the subject.",
        (
            Recipe("strength 0.4", strength=0.4),
            Recipe("strength 0.7", strength=0.7),
            PLAIN,
            Recipe("strength 1.3", strength=1.3),
        ),
        (
            Expectation("fidelity", "strength 0.7", "strength 0.4"),
            Expectation("fidelity", "LoRA", "strength 0.7"),
        ),
    ),
    Claim(
        "Several LoRAs work at once, each with its own subject.",
        (BASE, PLAIN, Recipe("a second LoRA on top", beside="cross")),
        (Expectation("fidelity", "a second LoRA on top", "base"),),
    ),
)
