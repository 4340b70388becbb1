"""What the evidence page concludes from numbers, and that it asks only for what is measured."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from demo import report
from demo.claims import CLAIMS, Claim, Expectation, Verdict, judge
from demo.evidence import Laboratory, Result, Task, told_of
from demo.panel import Scores
from demo.recipes import BASE, EXTRACTED, PLAIN, sockets
from demo.report import COLUMNS, METHODS, groups
from tests.graphs import Graph


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.3, 0.4, 0.2], Verdict.AGREES),
        ([-0.3, -0.4, -0.2], Verdict.DISAGREES),
        ([0.3, -0.4, 0.2], Verdict.OPEN),
        ([0.0, 0.0, 0.0], Verdict.OPEN),
        ([0.0031, 0.0030, 0.0032], Verdict.OPEN),  # 0.00 on the page
    ],
)
def test_two_standard_errors_decide(differences: list[float], verdict: Verdict) -> None:
    assert judge(differences)[0] == verdict


def test_judge_gives_mean_and_its_standard_error() -> None:
    _, mean, error = judge([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert error == pytest.approx(1 / 3**0.5)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.says)
def test_claim_compares_its_own_recipes_by_columns_of_the_table(claim: Claim) -> None:
    labels = {recipe.label for recipe in claim.recipes}
    for expectation in claim.expects:
        assert {expectation.higher, expectation.lower} <= labels
        assert expectation.metric in COLUMNS


def test_every_subject_and_seed_of_the_tables_is_measured() -> None:
    asked = {(task.recipe.label, task.subject, task.seed) for group in groups() for task in group}
    labels = {recipe.label for claim in CLAIMS for recipe in claim.recipes}
    labels |= {recipe.label for recipe in METHODS}
    wanted = {(n, s, seed) for n in labels for s in report.SUBJECTS for seed in report.SEEDS}
    assert wanted <= asked
    assert len(report.SUBJECTS) >= 3
    assert len(report.SEEDS) >= 2


def test_recipes_that_train_differently_have_different_keys() -> None:
    recipes = {repr(recipe) for claim in CLAIMS for recipe in claim.recipes}
    keys = {recipe.key("star", 0) for claim in CLAIMS for recipe in claim.recipes}
    assert len(keys) == len(recipes)


def test_hosts_are_prepared_one_after_another(tmp_path: Path) -> None:
    copying, overlaps = threading.Semaphore(1), []

    class Copying:
        def add_input(self, folder: Path, name: str) -> None:
            alone = copying.acquire(blocking=False)
            overlaps.append(not alone)
            time.sleep(0.002)
            if alone:
                copying.release()

    laboratory = Laboratory(tmp_path, None)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(laboratory.prepare, [Copying(), Copying()]))
    assert overlaps
    assert not any(overlaps)


def test_claim_counts_what_all_of_its_recipes_were_measured_for(tmp_path: Path) -> None:
    done = {("LoRA", "star", 0), ("LoRA", "star", 1), ("LoRA", "heart", 0), ("base", "star", 0)}
    done |= {("base", "heart", 0), ("base", "square", 1)}

    class Some(Laboratory):
        def has(self, task: Task) -> bool:
            return (task.recipe.label, task.subject, task.seed) in done

    page = report.Report(Some(tmp_path, None))
    assert page.pairs([PLAIN]) == [("star", 0), ("star", 1), ("heart", 0)]
    assert page.pairs([PLAIN, BASE]) == [("star", 0), ("heart", 0)]
    done.remove(("base", "star", 0))
    assert page.pairs([PLAIN, BASE]) == []  # there would be no pictures


def test_what_was_measured_once_has_no_error() -> None:
    one, two = (Result(Task(PLAIN, "star", 0), scores(f), (), 1.0) for f in (0.5, 0.3))
    wanted = Expectation("fidelity", "a", "b")
    found = {"a": [one], "b": [two]}
    assert report._expectation(wanted, found).endswith("*a* above *b*? +0.20, measured once")
    found = {"a": [one, one, two], "b": [two, two, one]}
    assert report._expectation(wanted, found).endswith("+0.07 ± 0.13: no difference seen")
    assert report._mean([one.scores], "fidelity") == "0.50"
    assert report._mean([one.scores, two.scores], "fidelity") == "0.40 ± 0.10"


def scores(fidelity: float) -> Scores:
    return Scores(fidelity, 1.0, 1.0, 0.0, 70.0, 1.0)


def test_merged_and_extracted_loras_are_told_of(tmp_path: Path) -> None:
    graph = Graph()
    sockets(graph, EXTRACTED, "star", 0)
    file = tmp_path / "made.safetensors"
    file.write_bytes(bytes(2_600_000))
    texts = {"PreviewAny": "3 layers, rank 8; nothing is lost", "PersonalizeSaveLora": str(file)}
    shown = {
        i: {"text": [texts[n["class_type"]]]} for i, n in graph.items() if n["class_type"] in texts
    }
    assert told_of(graph, {"outputs": shown}) == (
        "2.6 MB in fp16; 3 layers, rank 8; nothing is lost"
    )
    plain = Graph()
    sockets(plain, PLAIN, "star", 0)
    assert told_of(plain, {"outputs": {}}) == ""
