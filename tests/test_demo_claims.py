"""What the evidence page concludes from numbers, and that it asks only for what is measured."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from demo import report
from demo.claims import CLAIMS, Claim, Verdict, judge
from demo.evidence import Laboratory
from demo.report import COLUMNS, METHODS, groups


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.3, 0.4, 0.2], Verdict.AGREES),
        ([-0.3, -0.4, -0.2], Verdict.DISAGREES),
        ([0.3, -0.4, 0.2], Verdict.OPEN),
        ([0.0, 0.0, 0.0], Verdict.OPEN),
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
