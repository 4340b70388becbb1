"""The loss, per sample.

    sample_losses   l_i = mean over C, h, w of (prediction - target)^2; over the mask where given
    batch_loss      sum_i w_i l_i / number of instance samples

With class samples in the batch at weight lambda, the second line is L_instance + lambda L_prior
(DreamBooth, arXiv 2208.12242, eq. 2). Nothing is ever split into halves.
"""

from __future__ import annotations

from torch import Tensor


def sample_losses(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample, (B,) fp32.

    Args:
        prediction: (B, C, ...) in any dtype.
        target: (B, C, ...).
        mask: (B, 1, ...) in 0..1, or None. The mean is taken over the mask's area, so that a
            small subject counts as much as a large one. A mask must not be empty.
    """
    squared = (prediction.float() - target.float()).square()
    if mask is None:
        return squared.flatten(1).mean(1)
    mask = mask.expand_as(squared)
    return (squared * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)


def batch_loss(losses: Tensor, weights: Tensor, num_instances: int) -> Tensor:
    """The scalar to differentiate: (weights * losses).sum() / num_instances.

    Args:
        losses: (B,) from sample_losses.
        weights: (B,): prior weight x min-SNR x whatever else applies.
        num_instances: instance samples of the whole optimizer step, over all its micro-batches;
            so accumulated gradients equal those of one large batch.
    """
    return (weights * losses).sum() / num_instances
