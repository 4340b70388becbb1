"""Small-map convolutions against torch's own: outputs, gradients, names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainers.models.convolution import SmallMapConv2d, use_small_map_convolutions


def pair() -> tuple[nn.Module, nn.Module]:
    """The same layer as torch computes it and as we do."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1))
    ours = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1))
    ours.load_state_dict(plain.state_dict())
    use_small_map_convolutions(ours)
    return plain, ours


def outputs_and_gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_(True)
    y = module(x)
    (y * torch.arange(y.numel()).view_as(y)).sum().backward()
    return [y, x.grad, *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize("shape", [(1, 6, 4, 4), (2, 6, 4, 6), (1, 6, 8, 8), (3, 6, 2, 3)])
def test_small_map_equals_the_library(shape: tuple[int, ...]) -> None:
    plain, ours = pair()
    x = torch.randn(shape)
    for expected, got in zip(
        outputs_and_gradients(plain, x), outputs_and_gradients(ours, x), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_large_map_is_the_library() -> None:
    plain, ours = pair()
    x = torch.randn(1, 6, 9, 8)
    assert torch.equal(plain(x), ours(x))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    ],
    ids=["strided", "pointwise", "grouped", "unpadded", "circular"],
)
def test_other_convolutions_are_the_library(layer: nn.Module) -> None:
    x = torch.randn(1, 4, 4, 4)
    expected, names = layer(x), list(layer.state_dict())
    use_small_map_convolutions(layer)
    assert type(layer) is SmallMapConv2d
    assert torch.equal(layer(x), expected)
    assert list(layer.state_dict()) == names
