"""Two processes that train together are one process with batches of twice the size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import together
from trainers.data.batches import BatchPlan
from trainers.errors import DatasetError
from trainers.optimizers.processes import Processes

NEAR = 1e-5


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes with batches of one came to, and what the first said last."""
    folder = tmp_path_factory.mktemp("processes")
    made = together.outcomes(folder, {"lora": "lora", "fused": "fused"})
    made[0]["class images"] = folder / "class images"
    return made


def assert_near(ours: Mapping[str, Any], alone: Mapping[str, Any]) -> None:
    """The same losses, lengths of gradients, rates, and weights, but for the order of sums."""
    assert len(ours["rows"]) == len(alone["rows"])
    for row, other in zip(ours["rows"], alone["rows"], strict=True):
        assert row == pytest.approx(other, rel=NEAR)
    assert far(ours["learned"], alone["learned"]) < NEAR


def far(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest difference of any tensor, as a share of its length."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[k] - theirs[k]).norm() / theirs[k].norm()) for k in ours)


def assert_repeated_alike(ours: list[dict[str, Any]], alone: Mapping[str, Any]) -> None:
    """Both, and one by itself, did the step in the middle again with half of the scale."""
    for own in ours:
        scales = [row["scale"] for row in own["rows"]]
        assert scales == [2.0**16] * together.HALF + [2.0**15] * together.HALF
        assert all(math.isfinite(row["grad_norm"]) for row in own["rows"])
        assert_near(own, alone)
    first, second = (own["learned"] for own in ours)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", together.CASES)
@pytest.mark.usefixtures("damped_adamw")
def test_two_processes_equal_one_with_twice_the_batch(
    case: str, outcomes: list[dict[str, Any]]
) -> None:
    made, job = together.training(case, batch_size=2)
    before = together.learned(job)
    alone = together.finished(made, job)
    assert len(alone["rows"]) > 5
    assert far(before, alone["learned"]) > 100 * NEAR
    for rank in range(2):
        assert_near(outcomes[rank][case], alone)
    first, second = (outcomes[rank][case]["learned"] for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert outcomes[0][case]["best"] == outcomes[1][case]["best"]


@pytest.mark.parametrize("case", ["lora", "fused"])
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.usefixtures("damped_adamw")
def test_a_run_of_two_goes_on_in_one(
    case: str, batch_size: int, outcomes: list[dict[str, Any]]
) -> None:
    rest = together.resumed(case, outcomes[0]["half"][case], batch_size=batch_size)
    whole = outcomes[0][case]
    assert_near(rest, {**whole, "rows": whole["rows"][together.HALF :]})


@pytest.mark.parametrize("case", ["lora", "fused"])
def test_a_run_of_one_goes_on_in_two(case: str, outcomes: list[dict[str, Any]]) -> None:
    whole = outcomes[0][case]
    rest = outcomes[0]["resumed"][case]
    assert_near(rest, {**whole, "rows": whole["rows"][together.HALF :]})


def test_one_that_is_lost_ends_the_others(outcomes: list[dict[str, Any]]) -> None:
    message, seconds = outcomes[0]["lost"]
    assert message.startswith("Several processes: another process ended or cannot be reached")
    assert "goes on from its last state" in message
    assert seconds < 10


def test_processes_that_begin_unlike_are_refused(outcomes: list[dict[str, Any]]) -> None:
    for own in outcomes:
        assert own["unlike"].startswith("Several processes: they do not begin alike. This one is")


@pytest.mark.usefixtures("damped_adamw")
def test_an_overflow_in_one_is_an_overflow_in_all(outcomes: list[dict[str, Any]]) -> None:
    alone = together.overflowing("lora", batch_size=2)
    assert_repeated_alike([own["overflowing"] for own in outcomes], alone)


def test_each_makes_its_share_of_the_class_images(
    outcomes: list[dict[str, Any]], tmp_path: Path
) -> None:
    alone = together.painted(tmp_path)
    assert alone == [[3, 4], [5, 6], [7, 8], [9, 10], [11, 12]]
    first, second = (own["painted"] for own in outcomes)
    assert first == alone[::2]
    assert second == alone[1::2]
    ours, theirs = (
        {file.name: file.read_bytes() for file in folder.glob("*/*")}
        for folder in (outcomes[0]["class images"], tmp_path)
    )
    assert len(ours) == 11
    assert ours == theirs


def test_class_images_in_a_folder_that_not_all_see_are_refused(
    outcomes: list[dict[str, Any]],
) -> None:
    told = [own["not shared"] for own in outcomes]
    for message, num in zip(told, (4, 6), strict=True):
        assert f"here, {num} of 10.\nAll of them must see the same files" in message


def test_each_asks_the_teacher_for_its_share(outcomes: list[dict[str, Any]]) -> None:
    alone = together.taught()
    assert alone["asked"] == 5
    assert [own["taught"]["asked"] for own in outcomes] == [3, 2]
    for own in outcomes:
        made = own["taught"]
        assert made["timesteps"] == alone["timesteps"]
        assert [t.tolist() for t in made["targets"]] == [t.tolist() for t in alone["targets"]]


def test_the_first_says_how_many_pictures_an_update_sees(outcomes: list[dict[str, Any]]) -> None:
    sentence = "2 process(es) train; an update sees 4 pictures (2 a batch over all of them"
    assert sentence in outcomes[0]["said"]
    assert "an update sees" not in outcomes[1]["said"]


def test_more_processes_than_pictures_of_one_shape_are_refused() -> None:
    with pytest.raises(DatasetError, match="4 of them train, but no batch has more than 3"):
        together.training("lora", Processes(0, 4))


@pytest.mark.parametrize(("size", "count"), [(1, 1), (1, 2), (2, 2), (2, 3), (4, 2), (1, 5)])
def test_shares_are_all_of_a_batch_and_balanced(size: int, count: int) -> None:
    plan = BatchPlan(("square",) * 5, (1,) * 5, 4, seed=0, class_repeats=(1, 1))
    for pictures in map(plan.batch, range(4)):
        shares = [plan.shares(pictures, size, rank, count) for rank in range(count)]
        places = [share.places for own in shares for share in own]
        assert sorted(place for some in places for place in some) == list(range(len(pictures)))
        num = plan.num_instances(pictures)
        instances = [sum(place < num for place in some) for some in places]
        assert [2 * own for own in instances] == [len(some) for some in places]
        assert max(instances) <= size
        assert max(instances) - min(instances) <= 1
