"""What a step has a GPU wait for, counted where there is none: on a device without numbers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from trainers.contracts import Size, Text
from trainers.loop import Training
from trainers.step import losses_and_weights

META = torch.device("meta")


class Sent(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts tensors that are sent to the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.count += made.device == META != args[0].device
        return made


@pytest.mark.parametrize("settings", [{}, {"prior": "class images", "min_snr_gamma": 0.0}], ids=str)
def test_nothing_is_sent_to_the_device_after_the_denoiser_has_run(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *args: contextlib.nullcontext())  # knows no meta
    made = tiny.job(tiny.run_config(batch_size=2, **settings), pictures=tiny.examples(masked=True))
    for module in made.parts.modules.values():
        module.to(META)
    predict, sent = made.parts.predict, Sent()
    before = []

    def watched(
        noisy: Tensor, timesteps: Tensor, texts: Sequence[Text], sizes: Sequence[Size]
    ) -> Tensor:
        assert noisy.device == timesteps.device == META
        told = [{"hidden": text["hidden"].to(META)} for text in texts]  # type: ignore[union-attr]
        predicted = predict(noisy, timesteps, told, sizes)
        before.append(sent.count)
        return predicted

    parts = dataclasses.replace(made.parts, predict=watched, device=META)
    with sent:
        losses, weights = losses_and_weights(dataclasses.replace(made, parts=parts), [0, 1], 0, 0)
    assert losses.device == weights.device == META
    assert before == [sent.count]
    assert sent.count >= 5  # latents, noise, timesteps, mask, weights


class Asked(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what of the loss and the gradients is asked for as a number."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_loss_and_gradients_are_asked_for_at_once(method: str) -> None:
    training = Training(tiny.job(tiny.run_config(method)))
    with Asked() as asked:
        training.step()
    names = asked.names
    numbers = [place for place, name in enumerate(names) if name.startswith("_local_scalar")]
    # What is drawn is asked for on the CPU, before the first layer runs.
    assert all(place < names.index("convolution.default") for place in numbers)
    # Both are put together once, and that before the update.
    (update,) = (place for place, name in enumerate(names) if name.startswith("_fused_adamw"))
    assert "stack.default" in names[names.index("convolution_backward.default") : update]
