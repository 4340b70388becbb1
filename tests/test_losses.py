"""Per-sample losses against loops over single numbers, and their sum against the paper's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.objective.losses import batch_loss, sample_losses

SHAPES = [(3, 4, 5, 6), (1, 4, 2, 2), (2, 16, 3, 4, 5), (3, 7)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def soft_mask(shape: tuple[int, ...]) -> Tensor:
    return draw(shape[0], 1, *shape[2:], seed=2).sigmoid()


@pytest.mark.parametrize("shape", SHAPES)
def test_sample_losses_without_mask(shape: tuple[int, ...]) -> None:
    prediction, target = draw(*shape), draw(*shape, seed=1)
    losses = sample_losses(prediction, target)
    assert losses.shape == (shape[0],)
    for i, ours in enumerate(losses.tolist()):
        differences = (prediction[i] - target[i]).numpy().astype(np.float64)
        expected = sum(d * d for d in differences.flat) / differences.size
        assert ours == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_sample_losses_with_mask(shape: tuple[int, ...]) -> None:
    prediction, target, mask = draw(*shape), draw(*shape, seed=1), soft_mask(shape)
    for i, ours in enumerate(sample_losses(prediction, target, mask).tolist()):
        differences = (prediction[i] - target[i]).numpy().astype(np.float64)
        weights = np.broadcast_to(mask[i].numpy(), differences.shape).astype(np.float64)
        total = sum(w * d * d for w, d in zip(weights.flat, differences.flat, strict=True))
        assert ours == pytest.approx(total / sum(weights.flat), rel=1e-5)


def test_sample_losses_whole_mask_is_no_mask() -> None:
    prediction, target = draw(3, 4, 5, 6), draw(3, 4, 5, 6, seed=1)
    masked = sample_losses(prediction, target, torch.ones(3, 1, 5, 6))
    torch.testing.assert_close(masked, sample_losses(prediction, target))


def test_sample_losses_fainter_mask_same_loss() -> None:
    prediction, target, mask = draw(3, 4, 5, 6), draw(3, 4, 5, 6, seed=1), soft_mask((3, 4, 5, 6))
    full, faint = (sample_losses(prediction, target, mask * scale) for scale in (1.0, 0.01))
    torch.testing.assert_close(full, faint)


def test_sample_losses_outside_the_mask_do_not_count() -> None:
    prediction, target = draw(2, 4, 5, 6).requires_grad_(), draw(2, 4, 5, 6, seed=1)
    mask = torch.zeros(2, 1, 5, 6)
    mask[..., :2] = 1
    sample_losses(prediction, target, mask).sum().backward()
    assert prediction.grad is not None
    assert prediction.grad[..., :2].abs().min() > 0
    assert not prediction.grad[..., 2:].any()


def test_sample_losses_each_sees_its_own_sample() -> None:
    prediction, target = draw(3, 4, 5, 6).requires_grad_(), draw(3, 4, 5, 6, seed=1)
    sample_losses(prediction, target)[1].backward()
    assert prediction.grad is not None
    assert prediction.grad.flatten(1).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sample_losses_half_precision_prediction(dtype: torch.dtype) -> None:
    prediction, target = draw(2, 4, 5, 6).to(dtype), draw(2, 4, 5, 6, seed=1)
    losses = sample_losses(prediction, target)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, sample_losses(prediction.float(), target))


def test_batch_loss_is_dreambooths_equation_2() -> None:
    # Two instance and two class samples: L_instance + lambda L_prior, each a mean over its own.
    instance, prior, prior_weight = [0.3, 0.5], [0.7, 0.2], 0.6
    weights = torch.tensor([1, 1, prior_weight, prior_weight])
    loss = batch_loss(torch.tensor([*instance, *prior]), weights, num_instances=2)
    expected = sum(instance) / 2 + prior_weight * sum(prior) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_batch_loss_micro_batches_add_up_to_one_batch() -> None:
    layer, inputs, target = torch.nn.Linear(6, 6), draw(3, 6), draw(3, 6, seed=1)
    weights = torch.tensor([0.2, 1.0, 0.7])

    def gradient(*micro_batches: slice) -> Tensor:
        layer.zero_grad()
        for part in micro_batches:
            losses = sample_losses(layer(inputs[part]), target[part])
            batch_loss(losses, weights[part], num_instances=3).backward()
        assert layer.weight.grad is not None
        return layer.weight.grad.clone()

    torch.testing.assert_close(gradient(slice(0, 2), slice(2, 3)), gradient(slice(0, 3)))
