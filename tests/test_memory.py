"""What a step holds is told on fake tensors as it is found on real ones."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import assert_equal, examples, job, parts, run_config, trainable_state, trained
from trainers.contracts import Parts
from trainers.loop import Training
from trainers.models.memory import Alive, Kind, Pretence, StepMemory, step_memory
from trainers.settings.run import RunConfig

CPU = torch.device("cpu")
CHECKPOINTED = {"gradient_checkpointing": True}
SMALL = {"weights": "bf16", "fused_backward": True, "optimizer": "adafactor", **CHECKPOINTED}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("lora", {}),
    ("lora", CHECKPOINTED),
    ("lora", {"weights_in": "RAM", "train_text_encoder": True, "activations_in": "RAM"}),
    ("lora", {"train_text_encoder": True, "optimizer": "prodigy"}),
    ("lora", {"initialization": "pissa", "gradient_accumulation": 2}),
    ("lora", {"adapter_weights": "bf16"}),
    ("lora", {"optimizer": "muon"}),
    ("dreambooth", {}),
    ("dreambooth", {"ema_decay": 0.9, **CHECKPOINTED}),
    ("dreambooth", {"ema_decay": 0.9, "ema_on_cpu": True, "ema_update_step_interval": 1}),
    ("dreambooth", SMALL),
    ("textual_inversion", {}),
    ("textual_inversion", CHECKPOINTED),
]
every_case = pytest.mark.parametrize(("method", "settings"), CASES)


def watched(config: RunConfig, base: Parts, alive: Alive, apart: bool = True) -> StepMemory:
    pictures = examples(counts=(2,))  # of one size, so that any batch is like any other
    made = job(config, base, pictures)
    modules = made.parts.modules.values()
    return step_memory(alive, modules, made.trainable.parameters, lambda: Training(made), apart)


def planned(config: RunConfig, base: Parts, apart: bool = True) -> StepMemory:
    """The same of a base whose weights are taken away."""
    pretence = Pretence(CPU)
    for module in base.modules.values():
        for layer in module.modules():
            for name, weight in list(layer.named_parameters(recurse=False)):
                setattr(layer, name, pretence.like(weight))
    with pretence.watched() as alive:
        return watched(config, base, alive, apart)


@every_case
def test_plan_is_what_a_real_step_holds(method: str, settings: dict[str, Any]) -> None:
    # Samples of Textual Inversion draw different prompts, of which there is one in a plan.
    batch_size = 1 if method == "textual_inversion" else 2
    config = run_config(method, batch_size=batch_size, **settings)
    told = planned(config, parts())
    base = parts()
    with Alive(CPU) as alive:
        found = watched(config, base, alive)
    assert told.peak == pytest.approx(found.peak, rel=0.05)
    assert told.trained == found.trained > 0
    assert told.flops == found.flops > 0


def test_checkpointing_takes_less_for_activations_and_more_arithmetic() -> None:
    without, with_it = (
        planned(run_config("lora", **settings), parts()) for settings in ({}, CHECKPOINTED)
    )
    assert with_it.activations < without.activations
    assert with_it.flops > without.flops
    assert with_it.frozen == without.frozen


def test_weights_in_ram_save_what_another_device_has_not_to_hold() -> None:
    all_of_it, in_ram = (
        run_config("lora", checkpointing="all", weights_in=place) for place in ("device", "RAM")
    )
    frozen = planned(all_of_it, parts()).frozen
    assert planned(in_ram, parts()).frozen < frozen
    # On a CPU they lie in the same memory, beside the buffers for two blocks.
    assert planned(in_ram, parts(), apart=False).frozen > frozen
    assert planned(all_of_it, parts(), apart=False).frozen == frozen


def test_adamw_has_two_states_for_each_weight() -> None:
    told = planned(run_config("dreambooth"), parts())
    assert told.states == pytest.approx(2 * told.trained, rel=0.03)  # and what is told of pictures
    fused = planned(run_config("dreambooth", fused_backward=True), parts())
    assert fused.gradients < told.trained / 2


def test_a_run_is_the_same_after_its_plan() -> None:
    config = run_config("lora", dropout=0.1)
    made, before = trained(config)
    state = torch.get_rng_state()
    planned(config, parts())
    assert torch.equal(torch.get_rng_state(), state)
    again, after = trained(config)
    assert [one.loss for one in after] == [one.loss for one in before]
    assert_equal(trainable_state(again), trainable_state(made))


def test_storages_are_counted_once_and_no_longer_than_they_live() -> None:
    there, mine = torch.zeros(1000), torch.zeros(100)
    with Alive(CPU) as alive:
        alive.count(there, Kind.BEFORE)
        alive.count(mine, Kind.FROZEN)
        view = mine[:10]
        alive.count(view, Kind.FROZEN)
        made = there + 1
        del made
        alive.call_the_rest(Kind.STATE)
        assert alive.peak == [400, 0, 0, 0, 4000]
        alive.count(there, Kind.FROZEN)
        kept = mine * 2  # noqa: F841
        alive.call_the_rest(Kind.STATE)
        twice = there * 2  # noqa: F841
    gc.collect()
    assert alive.shared == 4000
    assert alive.peak == [4400, 0, 0, 400, 4000]


def test_shared_keys_and_products_are_counted() -> None:
    with Pretence(CPU).watched() as alive:
        query, key = torch.zeros(1, 4, 8, 16), torch.zeros(1, 2, 8, 16)
        nn.functional.scaled_dot_product_attention(query, key, key, enable_gqa=True)
        of_attention = alive.flops
        torch.zeros(3, 5) @ torch.zeros(5, 7)
    assert of_attention == 2 * 4 * 8 * 8 * (16 + 16)
    assert alive.flops - of_attention == 2 * 3 * 5 * 7
