"""Two processes that have but parts of the denoiser's weights are one that has all of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests import sharded, tiny, together
from tests.test_processes import assert_near, assert_repeated_alike, far
from trainers.errors import UnavailableError
from trainers.models.checkpointing import blocks
from trainers.optimizers.processes import Processes
from trainers.optimizers.sharded import check_sharding


@pytest.fixture(scope="module", autouse=True)
def _cases() -> None:
    sharded.choose()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes with batches of one came to."""
    states = {case: f"sharded {case}" for case in sharded.GO_ON}
    return together.outcomes(tmp_path_factory.mktemp("sharded"), states, "tests.sharded")


@pytest.mark.parametrize("case", sharded.CASES)
@pytest.mark.usefixtures("damped_adamw")
def test_two_with_parts_equal_one_with_all(case: str, outcomes: list[dict[str, Any]]) -> None:
    made, job = together.training(f"sharded {case}", batch_size=2)
    before = together.learned(job)
    alone = together.finished(made, job)
    assert far(before, alone["learned"]) > 1e-3
    for own in outcomes:
        assert_near(own[case], alone)
    assert len(outcomes[0][case]["state"]) == pytest.approx(len(alone["state"]), rel=0.01)
    best, expected = outcomes[0][case]["best"], alone["best"]
    assert best == (expected and (expected[0], pytest.approx(expected[1])))


def test_each_has_half_of_the_blocks(outcomes: list[dict[str, Any]]) -> None:
    denoiser = tiny.parts().denoiser
    in_blocks = sum(p.numel() for block in blocks(denoiser) for p in block.parameters())
    others = sum(p.numel() for p in denoiser.parameters()) - in_blocks
    assert in_blocks > others
    assert [own["held"][1] for own in outcomes] == [others, others]
    assert sum(own["held"][0] for own in outcomes) == in_blocks
    for own in outcomes:
        assert own["held"][0] == pytest.approx(in_blocks / 2, rel=0.02)


@pytest.mark.parametrize("case", sharded.GO_ON)
@pytest.mark.usefixtures("damped_adamw")
def test_a_state_of_two_goes_on_in_one(case: str, outcomes: list[dict[str, Any]]) -> None:
    rest = together.resumed(f"sharded {case}", outcomes[0]["half"][case])
    whole = outcomes[0][case]
    assert_near(rest, {**whole, "rows": whole["rows"][together.HALF :]})


@pytest.mark.parametrize("case", sharded.GO_ON)
def test_a_state_of_one_goes_on_in_two(case: str, outcomes: list[dict[str, Any]]) -> None:
    whole = outcomes[0][case]
    rest = outcomes[0]["resumed"][case]
    assert_near(rest, {**whole, "rows": whole["rows"][together.HALF :]})


@pytest.mark.usefixtures("damped_adamw")
def test_an_overflow_in_the_part_of_one_is_one_in_all(outcomes: list[dict[str, Any]]) -> None:
    alone = together.overflowing("sharded checkpointed", batch_size=2)
    assert_repeated_alike([own["overflowing"] for own in outcomes], alone)


def test_one_that_is_lost_ends_the_others(outcomes: list[dict[str, Any]]) -> None:
    message, seconds = outcomes[0]["lost"]
    assert message.startswith("Several processes: another process ended or cannot be reached")
    assert seconds < 10


@pytest.mark.parametrize(
    ("method", "settings", "named"),
    [
        ("textual_inversion", {}, "for LoRA and DreamBooth"),
        ("dreambooth", {"weights": "bf16"}, "a DreamBooth with weights bf16"),
        ("dreambooth", {"weights": "fp32", "fused_backward": True}, "with fused_backward"),
        (
            "dreambooth",
            {"weights": "fp32", "optimizer": "adafactor"},
            "with optimizer adafactor.\nIt trains with weights fp32",
        ),
    ],
)
def test_what_cannot_be_shared_out_is_refused(
    method: str, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnavailableError, match=named):
        check_sharding(tiny.run_config(method, **settings))


def test_one_process_has_all() -> None:
    assert Processes(0, 1, shard=True).own(3) == {0, 1, 2}


def test_where_weights_are_shared_out_all_do_as_many_passes() -> None:
    own = [Processes(rank, 3, shard=True).own(4) for rank in range(3)]
    assert own == [{0, 3}, {0, 1}, {0, 2}]
    assert [Processes(rank, 3).own(4) for rank in range(3)] == [{0, 3}, {1}, {2}]
