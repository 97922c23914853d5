"""Losses of given logits, and what a batch adds to the loss of an optimiser step.

For a large vocabulary, :mod:`xmod_lab.model.fast.loss` computes a loss without holding all logits.
"""

from torch import Tensor
from torch.nn.functional import cross_entropy

from xmod_lab.labels import IGNORE

# N positions, V classes or subwords


def labelled_cross_entropy(
    scores: Tensor, labels: Tensor, items: int | Tensor | None = None
) -> Tensor:
    """Cross-entropy at the labels that are not -100: the mean, or the sum divided by ``items``.

    Args:
        scores: (N, V) logits.
        labels: (N,) int64 in [0, V), or -100.
        items: see :func:`share_of_step`.
    Returns:
        A scalar, in nats.
    """
    if items is None:
        return cross_entropy(scores, labels, ignore_index=IGNORE)
    return cross_entropy(scores, labels, ignore_index=IGNORE, reduction="sum") / _beside(
        items, scores
    )


def share_of_step(mean: Tensor, labels: Tensor, items: int | Tensor | None) -> Tensor:
    """The part of the ``mean`` over these ``labels`` in the mean over a whole optimiser step.

    Args:
        items: the number of labels that are not -100 in all batches of the step. ``None``: the step
            has only this batch.
    """
    return mean if items is None else mean * (labels != IGNORE).sum() / _beside(items, mean)


def _beside(items: int | Tensor, x: Tensor) -> int | Tensor:
    """``items`` on the device of ``x``."""
    return items.to(x.device) if isinstance(items, Tensor) else items
