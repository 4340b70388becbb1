"""3x3 convolutions that stay fast on a CPU where the map is small.

On maps of a few dozen positions a convolution of the deep levels is all weights: (2560 -> 1280) on
4 x 4 multiplies 29 M weights by 16 positions. oneDNN spends most of its time there on reordering
the weights; as one matrix product over the unfolded map the same numbers come two to seven times
sooner, forward and backward, in fp32 and bf16 (benchmarks/lora_step.py: a tenth of a whole step of
SD1.5 at 256 px and more). Larger maps and GPUs keep the library's own convolution.
"""

from __future__ import annotations

from torch import Tensor, nn

MOST_POSITIONS = 64  # of a whole batch: from 16 x 16 on, oneDNN is as fast or faster
PLAIN = ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


class SmallMapConv2d(nn.Conv2d):
    """nn.Conv2d, computed as a matrix product where the map is small; same weights, same result."""

    # Not forward, since adapters run a layer with other weights than its own.
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        batch, _, height, width = input.shape
        small = batch * height * width <= MOST_POSITIONS
        if not (small and self._is_plain and input.device.type == "cpu"):
            made: Tensor = super()._conv_forward(input, weight, bias)
            return made
        # (B, C*9, h*w) -> (C*9, B*h*w), so that the weights are read once for the whole batch
        unfolded = nn.functional.unfold(input, 3, padding=1)
        columns = unfolded.transpose(0, 1).reshape(unfolded.shape[1], -1)
        output = (weight.flatten(1) @ columns).view(-1, batch, height, width).transpose(0, 1)
        return output if bias is None else output + bias.to(output)[:, None, None]

    @property
    def _is_plain(self) -> bool:
        # peft makes its own layers of the class it adapts, also 1x1 and strided ones.
        shape = (self.kernel_size, self.stride, self.padding, self.dilation)
        return (*shape, self.groups, self.padding_mode) == PLAIN


def use_small_map_convolutions(module: nn.Module) -> None:
    """Make every Conv2d of `module`, torch's or the host's, a SmallMapConv2d, in place.

    The subclass has no state of its own, so parameters and their names stay as they are.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and type(layer).__name__ == nn.Conv2d.__name__:
            layer.__class__ = SmallMapConv2d
