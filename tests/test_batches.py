"""The order of pictures: complete, one shape a batch, a function of seed and place alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from trainers.data.batches import BatchPlan

Shape = tuple[int, int, int]
SQUARE, WIDE, TALL = (4, 8, 8), (4, 8, 12), (4, 12, 8)

# shapes, repeats, batch size -> batches an epoch
CASES = {
    "one picture": ((SQUARE,), (1,), 1, 1),
    "one picture, larger batch": ((SQUARE,), (1,), 4, 1),
    "one shape": ((SQUARE,) * 6, (1,) * 6, 2, 3),
    "rest": ((SQUARE,) * 7, (1,) * 7, 3, 3),
    "two shapes": ((SQUARE, WIDE, SQUARE, WIDE, WIDE), (1,) * 5, 2, 3),
    "each its own shape": ((SQUARE, WIDE, TALL), (1,) * 3, 4, 3),
    "repeats": ((SQUARE, WIDE, SQUARE), (3, 2, 5), 4, 3),
}
cases = pytest.mark.parametrize(("shapes", "repeats", "size", "num"), CASES.values(), ids=CASES)


@cases
def test_epoch_sees_every_picture_as_often_as_it_repeats(
    shapes: tuple[Shape, ...], repeats: tuple[int, ...], size: int, num: int
) -> None:
    plan = BatchPlan(shapes, repeats, size, seed=0)
    assert plan.batches_per_epoch == num
    for epoch in range(3):
        batches = [plan.batch(epoch * num + place) for place in range(num)]
        seen = Counter(picture for batch in batches for picture in batch)
        assert seen == dict(enumerate(repeats))


@cases
def test_batch_has_one_shape_and_at_most_its_size(
    shapes: tuple[Shape, ...], repeats: tuple[int, ...], size: int, num: int
) -> None:
    plan = BatchPlan(shapes, repeats, size, seed=0)
    for batch in (plan.batch(index) for index in range(2 * num)):
        assert 1 <= len(batch) <= size
        assert len({shapes[picture] for picture in batch}) == 1


def plan(seed: int = 0, count: int = 12, size: int = 2) -> BatchPlan:
    return BatchPlan((SQUARE,) * count, (1,) * count, size, seed)


def test_batch_depends_on_its_index_alone() -> None:
    forward = [plan().batch(index) for index in range(30)]
    same = plan()
    backward = [same.batch(index) for index in reversed(range(30))]
    assert forward == backward[::-1]


def test_batch_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    plan().batch(17)
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_have_different_orders() -> None:
    orders = {str([plan().batch(6 * epoch + place) for place in range(6)]) for epoch in range(5)}
    assert len(orders) == 5


def test_seeds_have_different_orders() -> None:
    orders = {str([plan(seed).batch(place) for place in range(6)]) for seed in range(5)}
    assert len(orders) == 5


def test_batches_of_different_shapes_alternate() -> None:
    mixed = BatchPlan((SQUARE,) * 20 + (WIDE,) * 20, (1,) * 40, 1, seed=0)
    wide = [mixed.batch(index)[0] >= 20 for index in range(40)]
    assert sum(a != b for a, b in zip(wide, wide[1:], strict=False)) > 8


@pytest.mark.parametrize("accumulation", [1, 2, 5])
def test_step_covers_consecutive_batches(accumulation: int) -> None:
    steps = [plan().step(step, accumulation) for step in range(4)]
    covered = [batch for step in steps for batch in step]
    assert covered == [plan().batch(index) for index in range(4 * accumulation)]
