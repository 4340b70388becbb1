"""What the articles say that the drawn world can speak to, and which measurements answer it.

A claim expects a metric to be higher for one recipe than for another. Differences are taken pair
by pair (same subject, same seed); two standard errors of their mean decide.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .recipes import (
    BASE,
    CLASS_ALONE,
    DREAM,
    EXTRACTED,
    EXTRACTED_SMALL,
    FIRST_ALONE,
    FLOW_BASE,
    FLOW_LORA,
    FLOW_SKIPPING,
    FLOW_SKIPPING_LONGER,
    HALF,
    HALVED,
    INVERTED,
    MERGES,
    PLAIN,
    PRESERVED,
    STACKED,
    TOKEN_AND_LORA,
    TOKEN_THEN_DREAM,
    Recipe,
)  # fmt: skip


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


SHOWN = 0.005  # less than that is 0.00 on the page


def judge(differences: Sequence[float]) -> tuple[Verdict, float, float]:
    """Verdict, mean and standard error of pairwise differences (higher minus lower)."""
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    if abs(mean) <= 2 * error or abs(mean) < SHOWN:
        return Verdict.OPEN, mean, error
    return (Verdict.AGREES if mean > 0 else Verdict.DISAGREES), mean, error


CLAIMS = (
    Claim(
        "Prior preservation keeps the class: without it, every star becomes the subject.",
        (BASE, DREAM, PRESERVED),
        (
            Expectation("class_fidelity", "DreamBooth", "DreamBooth with class images"),
            Expectation("diversity", "DreamBooth with class images", "DreamBooth"),
            Expectation("fidelity", "DreamBooth", "DreamBooth with class images"),
        ),
        "With class images the plain class is even less like the subject than in the base. They "
        "are made with guidance, so they are plainer than what the bare prompt gives, and the "
        "model learns that too. Drift is the distance from the base in either direction; it is a "
        "third of what it is without them. The subject itself loses nothing that could be seen.",
    ),
    Claim(
        "DreamBooth, which trains the whole model, gets at least LoRA's likeness.",
        (BASE, PLAIN, DREAM),
        (
            Expectation("fidelity", "DreamBooth", "LoRA"),
            Expectation("others", "LoRA", "DreamBooth"),
        ),
    ),
    Claim(
        "A few learned vectors are enough to call up a subject, and change nothing else.",
        (CLASS_ALONE, INVERTED, PLAIN),
        (
            Expectation("fidelity", "Textual Inversion", "base, asked for the class"),
            Expectation("fidelity", "LoRA", "Textual Inversion"),
        ),
        "The token settles on one colour between the subject's three, always the same, where the "
        "class alone gives any colour. More it cannot do here: it only asks for what the base can "
        "draw, and the base has never drawn an object of two colours. All else stays as it was: "
        "without the token in the prompt the model is the base.",
    ),
    Claim(
        "Textual Inversion first, then DreamBooth, is better than either alone.",
        (INVERTED, DREAM, TOKEN_THEN_DREAM),
        (
            Expectation("fidelity", "Textual Inversion, then DreamBooth", "Textual Inversion"),
            Expectation("fidelity", "Textual Inversion, then DreamBooth", "DreamBooth"),
        ),
        "DreamBooth learns these subjects with a word of no meaning as well as with a learned "
        "one. What the learned token spares is the class: its fidelity rises less.",
    ),
    Claim(
        "A learned token and a LoRA work together.",
        (INVERTED, PLAIN, TOKEN_AND_LORA),
        (
            Expectation("fidelity", "LoRA with a learned token", "Textual Inversion"),
            Expectation("fidelity", "LoRA with a learned token", "LoRA"),
        ),
    ),
    Claim(
        "Weights in bf16, rounded at random, learn as well as weights in fp32.",
        (DREAM, HALF),
        (Expectation("fidelity", "DreamBooth", "DreamBooth in bf16"),),
        "Here no difference is what one hopes for.",
    ),
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
        "Forty times the low rate does not overfit here, it breaks the model: neither the subject "
        "nor its class nor anything else is drawn any more, so the class cannot have drifted "
        "towards the subject. Between the two lower rates it does: 0.26 at 1e-3, less at 1e-4.",
    ),
    Claim(
        "A higher rank learns more detail.",
        (
            Recipe("rank 2", settings={"rank": 2, "alpha": 2.0}),
            PLAIN,
        ),
        (Expectation("fidelity", "LoRA", "rank 2"),),
        "A striped shape in two colours has little detail: rank 2 learns nearly all of it.",
    ),
    Claim(
        "The strength of a LoRA is set when sampling: less of it, less of the subject.",
        (
            Recipe("strength 0.4", strength=0.4),
            Recipe("strength 0.7", strength=0.7),
            PLAIN,
        ),
        (
            Expectation("fidelity", "strength 0.7", "strength 0.4"),
            Expectation("fidelity", "LoRA", "strength 0.7"),
        ),
    ),
    Claim(
        "Several LoRAs work at once, each with its own subject.",
        (
            BASE,
            PLAIN,
            STACKED,
            HALVED,
        ),
        (
            Expectation("fidelity", "a second LoRA on top", "base"),
            Expectation("fidelity", "both at strength 0.6", "base"),
            Expectation("others", "both at strength 0.6", "a second LoRA on top"),
        ),
        "At full strength the second LoRA, of the cross, takes away most of what the first one "
        "gives, 0.25 instead of 0.47, and other classes suffer. Both were trained apart, on all "
        "layers and at a rate that changes this small model a lot, and their changes add up. At "
        "0.6 for both, other classes are whole again and the subject is not: it is as faint as "
        "one LoRA alone at 0.4 leaves it. Neither of the two gives the first one its subject.",
    ),
    Claim(
        "More steps (400, 800, 1200) bring more likeness, then overfitting.",
        (
            PLAIN,
            Recipe("800 steps", settings={"steps": 800}),
            Recipe("1200 steps", settings={"steps": 1200}),
        ),
        (
            Expectation("fidelity", "800 steps", "LoRA"),
            Expectation("fidelity", "1200 steps", "800 steps"),
            Expectation("others", "LoRA", "1200 steps"),
            Expectation("class_fidelity", "1200 steps", "LoRA"),
        ),
        "Likeness ends at 800 steps. What comes after shows in the plain class, which turns into "
        "the subject (0.26, 0.55, 0.59) and becomes uniform (a diversity of 70, 53, 49). Other "
        "classes begin to fail at 1200 steps, 0.95 instead of 1.00, which six trainings do not "
        "tell from chance.",
    ),
    Claim(
        "Training the text encoder as well gives the best likeness and follows prompts best.",
        (
            PLAIN,
            Recipe("with text encoder", settings={"train_text_encoder": True}),
            Recipe(
                "with text encoder at 5e-4",
                settings={"train_text_encoder": True, "text_encoder_learning_rate": 5e-4},
            ),
        ),
        (
            Expectation("fidelity", "with text encoder", "LoRA"),
            Expectation("fidelity", "with text encoder at 5e-4", "LoRA"),
            Expectation("background", "with text encoder", "LoRA"),
            Expectation("background", "with text encoder at 5e-4", "LoRA"),
        ),
        "At the node's default of 1e-5, a hundredth of the UNet's rate, it makes no difference "
        "here. At 5e-4, half the UNet's, it does harm: a little less likeness, a plain class that "
        "becomes uniform (a diversity of 70 and 47), and a quarter of the other classes' pictures "
        "wrong. The demo base's text encoder has random weights, made so that different words lie "
        "far apart: there is no meaning in it to build on, so every change of it reaches all "
        "words. Prompts are followed without fail before. A real text encoder may gain where this "
        "one cannot.",
    ),
    Claim(
        "Merge methods keep two LoRAs from washing each other out.",
        (
            FIRST_ALONE,
            STACKED,
            HALVED,
            *MERGES,
        ),
        (
            *(Expectation("weaker", recipe.label, STACKED.label) for recipe in MERGES),
            *(Expectation("weaker", recipe.label, HALVED.label) for recipe in MERGES),
        ),
        "Alone, its own LoRA gives the star 0.51, the heart 0.56 and the cross about 0.55. Used "
        "together, each keeps about half of that, whichever way they are put together. ties, "
        "dare_ties and magnitude_prune keep a little more of the weaker one than stacking, 0.27 to "
        "0.29 instead of 0.24, and than both at 0.6; two trainings are few to tell that from "
        "chance. And they leave other classes whole, as 0.6 does, where stacking at full strength "
        "costs a tenth of them. At strength 0.5, not in the table, the star has 0.22. Merge LoRAs' "
        "sum has no row, since it is stacking, to a hundred thousandth. The merged LoRAs have all "
        "the rank there is, so that nothing of the method is cut off.",
    ),
    Claim(
        "A LoRA can be extracted from a DreamBooth and does what the DreamBooth does.",
        (DREAM, EXTRACTED, EXTRACTED_SMALL),
        (
            Expectation("fidelity", DREAM.label, EXTRACTED.label),
            Expectation("fidelity", DREAM.label, EXTRACTED_SMALL.label),
        ),
        "The scores are the DreamBooth's own, and to the eye so are the pictures. But DreamBooth "
        "changes every direction of its layers a little: 99 % of the energy takes ranks of up to "
        "239 and half of the UNet's 52 MB. Rank 16 needs 3 MB and loses half of the change, and "
        "most of what it loses is not the subject: it costs the star 0.05, the heart nothing. Text "
        "encoders are not trained in these recipes.",
    ),
    Claim(
        "A LoRA of a transformer, trained by flow matching, learns a subject.",
        (FLOW_BASE, FLOW_LORA),
        (Expectation("fidelity", FLOW_LORA.label, FLOW_BASE.label),),
        "The base is a Stable Diffusion 3 as far as ComfyUI is concerned, whose own loaders read "
        "it, but with 4 million weights in its transformer and the demo base's CLIP-L alone for "
        "texts. `python -m demo.transformer.make` trains it from nothing on the demo base's "
        "pictures: 51,200 of them in nine minutes of one core. Its loss falls from 2.08 to 0.16; "
        "shape, colour and background are right in 200 of 200 pictures of prompts that it never "
        "saw (`python -m demo.evaluate --transformer`). Its edges are rougher than the UNet's, and "
        "where a prompt names no colour it mixes several. The one measured here had been stopped "
        "after 400 of its 800 steps and gone on. A LoRA trains on it with the UNet's settings, for "
        "about a minute; other classes then take on a little of the subject, too.",
    ),
    Claim(
        "TREAD: while half of a picture's tokens skip blocks, a LoRA learns a little less in as "
        "many steps; more of them cost other classes.",
        (FLOW_LORA, FLOW_SKIPPING, FLOW_SKIPPING_LONGER),
        (
            Expectation("fidelity", FLOW_LORA.label, FLOW_SKIPPING.label),
            Expectation("fidelity", FLOW_SKIPPING_LONGER.label, FLOW_LORA.label),
            Expectation("others", FLOW_LORA.label, FLOW_SKIPPING_LONGER.label),
        ),
        "Expected was that it learns as well. The demo transformer has 16 tokens for a picture "
        "beside 77 for its text, and one of its 3 blocks is skipped, so a step takes 0.99 of the "
        "time: equal steps are equal time. On a large model it takes 0.53 to 0.59 of the "
        "operations (Performance); as many more steps, 680, bring the likeness back, but they cost "
        "other classes and let the plain class drift more. "
        "Those who sample see all tokens, which these LoRAs never trained with in that block. "
        "TREAD was made for training from nothing; what it does to a LoRA of a large model is not "
        "measured.",
    ),
)
