"""Writes docs/evidence.md: `python dev.py evidence`.

Tables and picture grids of all recipes, and one section for each claim of demo.claims.
"""

import argparse
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file

from tests.before_after import has_gpu
from tests.host import ROOT, Host

from . import meters, world
from .autoencoder import Codec
from .checkpoint import BASE_FILES, DEMO_CHECKPOINT, compose
from .claims import CLAIMS, Claim, Expectation, Verdict, judge
from .evidence import Laboratory, Result, Task
from .panel import SAMPLING, Scores
from .recipes import (
    BASE,
    CLASS_ALONE,
    DREAM,
    INVERTED,
    PLAIN,
    PRESERVED,
    SHARED,
    TOKEN_AND_LORA,
    TOKEN_THEN_DREAM,
    Recipe,
)
from .transformer import files as sd3
from .transformer.make import made

PAGE = ROOT / "docs" / "evidence.md"
PICTURES = ROOT / "docs" / "images" / "evidence"
SUBJECTS = ("star", "heart", "square")
SEEDS = (0, 1)
Pair = tuple[str, int]
PAIRS: Sequence[Pair] = tuple(product(SUBJECTS, SEEDS))
METHODS = (BASE, PLAIN, DREAM, PRESERVED, INVERTED)
COLUMNS = {
    "fidelity": "subject fidelity",
    "background": "background right",
    "shape": "shape right",
    "class_fidelity": "class fidelity",
    "diversity": "class diversity",
    "others": "other classes right",
    "second": "second's fidelity",
    "weaker": "the weaker of both",
}
INTRODUCTION = """# Evidence

Measured by `python dev.py evidence` in a real ComfyUI, through the pack's nodes, on the demo base:
a Stable Diffusion 1.5 as far as ComfyUI is concerned, but with 26 million weights in its UNet and
trained on nothing but {kinds} kinds of drawn pictures. It shows what a method does to a model; how
good pictures of a dog or a face get it cannot show.

The base by itself, sampled by ComfyUI's KSampler, has shape, colour and background right in 200 of
200 pictures of prompts that it never saw (`python -m demo.evaluate`). Trained a second time from
nothing on the same kind of CPU (two cores with AVX2, 76 minutes, 21 November 2026), it came out the
same, byte for byte.

Each recipe trains on 5 drawn pictures of a subject that the base never saw, for the subjects
{subjects} and the seeds {seeds}; then 26 pictures are sampled
({sampler}, {steps} steps, cfg {cfg}).

| column | what it is |
|---|---|
{columns}

"±" is the standard error over subjects and seeds."""
EXPLAINED = {
    "fidelity": "of the subject's pictures. 0: like any object of its class; 1: a drawing of the "
    "subject. The base's autoencoder blurs, so the best possible is 0.70 to 0.87 (demo/meters.py)",
    "background": "share of the subject's pictures in which a classifier sees the background that "
    "was asked for",
    "shape": "share of the subject's pictures in which it sees the subject's shape",
    "class_fidelity": 'subject fidelity of pictures of the plain class ("a photo of a star"); '
    "its rise over the base's is class drift",
    "diversity": "mean difference of those pictures among each other, in levels of 255",
    "others": "share of pictures of other classes in which shape, colour and background are all "
    "as asked",
    "second": "where two LoRAs are used at once: the same as subject fidelity, of the second "
    "subject when its own prompt is asked for",
    "weaker": "the lower of these two in each training",
}


class Report:
    """Markdown, and the measurements it is made of."""

    def __init__(self, laboratory: Laboratory) -> None:
        self.laboratory = laboratory
        self.lines: list[str] = []

    def results(self, recipe: Recipe, pairs: Sequence[Pair] = PAIRS) -> list[Result]:
        """One for each subject and seed, in this order."""
        return [self.laboratory.result(Task(recipe, *pair)) for pair in pairs]

    def pairs(self, recipes: Sequence[Recipe]) -> list[Pair]:
        """The subjects and seeds for which all of them were measured.

        Empty without the first of all, whose pictures are shown.
        """
        measured = [
            pair for pair in PAIRS if all(self.laboratory.has(Task(r, *pair)) for r in recipes)
        ]
        return measured if PAIRS[0] in measured else []

    def add(self, *lines: str) -> None:
        self.lines += [*lines, ""]

    def table(self, recipes: Sequence[Recipe]) -> None:
        """A row for each recipe, over what all of them were measured for."""
        pairs = self.pairs(recipes)
        # What is the same for every seed, as the base is, counts once.
        results = [self.results(recipe, pairs) for recipe in recipes]
        measured = [list({r.task.key: r.scores for r in row}.values()) for row in results]
        shown = [n for n in COLUMNS if all(getattr(s[0], n) is not None for s in measured)]
        head = " | ".join(["", *(COLUMNS[name] for name in shown)])
        rows = [f"|{head} |", "|---" * (1 + len(shown)) + "|"]
        for recipe, scores in zip(recipes, measured, strict=True):
            cells = [_mean(scores, name) for name in shown]
            rows.append(f"| {recipe.label} | {' | '.join(cells)} |")
        self.add(*rows)

    def claim(self, number: int, claim: Claim) -> None:
        """The claim, its table, what each expectation came to, pictures."""
        self.add(f"## {number}. {claim.says}")
        pairs = self.pairs(claim.recipes)
        if len(pairs) < len(PAIRS):
            told = ", ".join(f"{subject} with seed {seed}" for subject, seed in pairs)
            self.add(f"Measured so far: {told}.")
        self.table(claim.recipes)
        found = {recipe.label: self.results(recipe, pairs) for recipe in claim.recipes}
        self.add(*(_expectation(wanted, found) for wanted in claim.expects))
        self._told(claim)
        if claim.discussion:
            self.add(claim.discussion)
        self._claim_picture(number, claim)

    def _told(self, claim: Claim) -> None:
        """What the nodes said of the LoRAs that they made."""
        made = [self.laboratory.result(Task(r, SUBJECTS[0], SEEDS[0])) for r in claim.recipes]
        if told := [f"- *{r.task.recipe.label}*: {r.told}." for r in made if r.told]:
            self.add(f"The LoRAs of the {SUBJECTS[0]}, as their nodes say:", "", *told)

    def _claim_picture(self, number: int, claim: Claim) -> None:
        rows = [self.laboratory.result(Task(r, SUBJECTS[0], SEEDS[0])) for r in claim.recipes]
        name = f"claim_{number}.png"
        _strip(rows).save(PICTURES / name)
        labels = ", ".join(recipe.label for recipe in claim.recipes)
        others = "two of its plain class, then two of other classes"
        if second := _common_second(rows):
            others = f"the {second} before the same"
        self.add(
            f"![Rows: {labels}](images/evidence/{name})",
            "",
            f"Rows from the top: {labels}. Columns: the {SUBJECTS[0]} before five backgrounds, "
            f"then {others}.",
        )

    def rises(self, recipe: Recipe) -> None:
        """For each subject by itself: what one training changes, pair by pair of pictures."""
        rows = ["| subject | rise of fidelity | class drift | others right, after / before |"]
        rows.append("|---|---|---|---|")
        for subject in world.SUBJECTS:
            before, after = (
                self.laboratory.result(Task(r, subject, SEEDS[0])) for r in (BASE, recipe)
            )
            meter = meters.SubjectMeter(subject)
            learned, drift = (
                "{:+.2f} ± {:.2f}".format(
                    *meters.rise(meter, before.levels(group), after.levels(group))
                )
                for group in ("subject", "class")
            )
            kept = f"{after.scores.others:.2f} / {before.scores.others:.2f}"
            rows.append(f"| {subject} | {learned} | {drift} | {kept} |")
        self.add(*rows)

    def methods(self, recipes: Sequence[Recipe]) -> None:
        """Each subject: its pictures, the base's, each method's."""
        for subject in SUBJECTS:
            rows = [self.laboratory.result(Task(r, subject, SEEDS[0])) for r in recipes]
            _with_instances(rows, subject).save(PICTURES / f"{subject}.png")
            labels = ", ".join(["training pictures", *(r.label for r in recipes)])
            self.add(
                f"![{subject}: {labels}](images/evidence/{subject}.png)",
                "",
                f"The {subject}. Rows from the top: {labels}; the same prompts and seeds.",
            )


def _expectation(wanted: Expectation, found: Mapping[str, Sequence[Result]]) -> str:
    """What became of an expectation; the results are those of each label."""
    higher, lower = (
        [getattr(result.scores, wanted.metric) for result in found[label]]
        for label in (wanted.higher, wanted.lower)
    )
    differences = [a - b for a, b in zip(higher, lower, strict=True)]
    asked = f"- {COLUMNS[wanted.metric]}: *{wanted.higher}* above *{wanted.lower}*? "
    if len(differences) == 1:
        return f"{asked}{differences[0]:+.2f}, measured once"
    verdict, mean, error = judge(differences)
    mark = {Verdict.AGREES: "**agrees**", Verdict.DISAGREES: "**disagrees**"}
    return f"{asked}{mean:+.2f} ± {error:.2f}: {mark.get(verdict, verdict.value)}"


def _mean(scores: Sequence[Scores], name: str) -> str:
    values = [getattr(s, name) for s in scores]
    digits = 1 if name == "diversity" else 2
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.{digits}f} ± {error:.{digits}f}"


def _common_second(rows: Sequence[Result]) -> str:
    """The second subject, if all of the rows have pictures of one."""
    seconds = {result.task.recipe.second for result in rows}
    return seconds.pop() if len(seconds) == 1 else ""


def _shown(result: Result, second: str = "") -> list[Image.Image]:
    """One picture of each of the subject's prompts; then of the second subject's, if that is
    asked for, else two of its class and two of others."""
    starts: dict[str, list[int]] = {"subject": [], "class": [], "others": [], "second": []}
    place = 0
    for shot in result.task.shots:
        starts[shot.group] += [place] if shot.group != "class" else [place, place + 1]
        place += shot.count
    rest = starts["second"] if second else starts["class"] + starts["others"][::7][:3]
    chosen = starts["subject"] + rest
    return [Image.open(result.pictures[i]).convert("RGB") for i in chosen]


def _strip(rows: Sequence[Result]) -> Image.Image:
    second = _common_second(rows)
    pictures = [picture for result in rows for picture in _shown(result, second)]
    return world.grid(pictures, len(pictures) // len(rows))


def _with_instances(rows: Sequence[Result], subject: str) -> Image.Image:
    pictures = [picture for picture, _ in world.instance_pictures(subject)]
    for result in rows:
        pictures += _shown(result)[: world.INSTANCE_COUNT]
    return world.grid(pictures, world.INSTANCE_COUNT)


def groups() -> Iterator[list[Task]]:
    """All that the page needs, what matters most first; a group shares subject and seed."""
    pairs = list(PAIRS)
    for recipes, wanted in (
        ((BASE, CLASS_ALONE, PLAIN), pairs),
        ((DREAM, PRESERVED), pairs),
        ((INVERTED, TOKEN_THEN_DREAM, TOKEN_AND_LORA), pairs),
        ((BASE, PLAIN), [(subject, SEEDS[0]) for subject in world.SUBJECTS]),
        *((claim.recipes, pairs) for claim in CLAIMS),
    ):
        yield from ([Task(recipe, *pair) for recipe in recipes] for pair in wanted)


def write(laboratory: Laboratory) -> None:
    """Write the page and its pictures from what was measured."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    report = Report(laboratory)
    report.add(
        INTRODUCTION.format(
            kinds=len(world.TRAIN_TRIPLES),
            subjects=", ".join(SUBJECTS),
            seeds=" and ".join(map(str, SEEDS)),
            sampler=SAMPLING["sampler_name"],
            steps=SAMPLING["steps"],
            cfg=SAMPLING["cfg"],
            columns="\n".join(f"| {COLUMNS[n]} | {text} |" for n, text in EXPLAINED.items()),
        )
    )
    report.add("## Before and after, by method")
    for method, title in (
        ("lora", "LoRA"), ("dreambooth", "DreamBooth"), ("inversion", "Textual Inversion"),
    ):  # fmt: skip
        settings = ", ".join(f"{name} {value}" for name, value in SHARED[method].items())
        report.add(f"*{title}*: {settings}.")
    methods = [recipe for recipe in METHODS if report.pairs([recipe])]
    report.table(methods)
    report.add("One training of each subject, seed 0; ± is the standard error over pictures:")
    report.rises(PLAIN)
    report.methods(methods)
    measured = [claim for claim in CLAIMS if report.pairs(claim.recipes)]
    for number, claim in enumerate(measured, start=1):
        report.claim(number, claim)
    for claim in CLAIMS:
        if claim not in measured:
            print(f"not measured yet: {claim.says}")
    PAGE.write_text("\n".join(report.lines).rstrip() + "\n", encoding="utf-8")
    print(f"wrote {PAGE}")


def main() -> None:
    """Measure in as many hosts as this machine feeds, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"))
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--write-only", action="store_true", help="of what is measured already")
    asked = parser.parse_args()
    checkpoints = {DEMO_CHECKPOINT: compose(asked.work / DEMO_CHECKPOINT)}
    codec = Codec.from_host(load_file(BASE_FILES / "vae.safetensors"))
    reader = meters.load_reader(asked.work / "reader.pt", codec)
    laboratory = Laboratory(asked.work, reader)
    if has_gpu():
        num_hosts, arguments = 1, ()
    else:  # maps this small gain more from a host a core than from two cores a host
        num_hosts = os.cpu_count() or 1
        arguments = ("--cpu", "--use-pytorch-cross-attention")  # a third faster there
        os.environ["OMP_NUM_THREADS"] = "1"
    if not asked.write_only:
        files = made(asked.work / "transformer", asked.comfyui)

        def make_host() -> Host:
            host = Host(asked.comfyui, checkpoints=checkpoints, args=arguments)
            sd3.offer(host, files)
            return host

        laboratory.measure_all(groups(), make_host, num_hosts)
    write(laboratory)


if __name__ == "__main__":
    main()
