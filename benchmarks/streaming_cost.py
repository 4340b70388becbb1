"""What a step costs while weights or activations wait in RAM, or blocks compute them again.

    python -m benchmarks.streaming_cost [--size PX] [--rounds N]

SD1.5's UNet in its full size with random weights in bf16, a LoRA of rank 16, one picture. All
contenders stand on the same weights, in one process of one thread, and take their steps in turn;
told is the median of their CPU seconds. On a CPU a block's weights are copied from RAM to RAM by
the thread that computes, so the share of copies is what they cost where nothing is beside them.
Exit code 1 if weights or activations in RAM change a loss by a bit.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.jobs import one_picture
from tests.checkpoints import SD15_UNET
from trainers.contracts import Size, Text
from trainers.loop import Training
from trainers.models.architectures import SD15
from trainers.settings.run import run_config

BF16 = torch.bfloat16
CONTENDERS: dict[str, Mapping[str, Any]] = {
    "on the device, none checkpointed": {"checkpointing": "none"},
    "half": {"checkpointing": "half"},
    "all": {"checkpointing": "all"},
    "all, activations in RAM": {"checkpointing": "all", "activations_in": "RAM"},
    "all, weights in RAM": {"weights_in": "RAM"},
}


def random_unet() -> nn.Module:
    """The UNet with small random weights, frozen."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15_UNET)
    unet.to_empty(device="cpu").to(BF16).requires_grad_(False)
    for name, weight in unet.named_parameters():
        is_scale = "norm" in name and name.endswith("weight")
        weight.fill_(1) if is_scale else weight.normal_(0, 0.02)
    return unet


def training(weights: nn.Module, settings: Mapping[str, Any], size_px: int) -> Training:
    """A training on the same weights as any other."""
    unet: Any = copy.deepcopy(weights, {id(w): w for w in weights.parameters()})

    def predict(
        noisy: Tensor, timesteps: Tensor, texts: Sequence[Text], sizes: Sequence[Size]
    ) -> Tensor:
        hidden: Any = texts[0]["hidden"]
        predicted: Tensor = unet(noisy.to(BF16), timesteps, encoder_hidden_states=hidden).sample
        return predicted.float()

    shared = {"steps": 1000, "rank": 16, "precision": "bf16", "memory_plan": "off"}
    config = run_config("lora", {**shared, **settings})
    told = {"hidden": torch.zeros(1, 77, 768, dtype=BF16)}
    torch.manual_seed(0)  # for the picture
    return Training(one_picture(unet, predict, SD15, BF16, told, size_px, config))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    weights = random_unet()
    trainings = {name: training(weights, how, asked.size) for name, how in CONTENDERS.items()}
    taken: dict[str, list[float]] = {name: [] for name in trainings}
    losses: dict[str, list[float]] = {name: [] for name in trainings}
    for _ in range(asked.rounds + 1):
        for name, one in trainings.items():
            began = time.process_time()
            losses[name].append(one.step().loss)
            taken[name].append(time.process_time() - began)
    seconds = {name: statistics.median(all_of[1:]) for name, all_of in taken.items()}
    first = next(iter(seconds.values()))
    print(f"{'CPU seconds a step':40}{'s':>7}{'x none':>9}{'x all':>9}")
    for name, one in seconds.items():
        print(f"{name:40}{one:7.2f}{one / first:9.2f}{one / seconds['all']:9.2f}")
    # In bf16 a checkpointed block's gradients are summed in another order than a plain one's.
    same = len({tuple(one) for name, one in losses.items() if name.startswith("all")}) == 1
    print(f"losses of 'all' are {'the same' if same else 'NOT the same'} to the bit")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
