"""Losses of given logits, and what a batch adds to the loss of an optimiser step.

For a large vocabulary, :mod:`xmod_lab.model.fast.loss` computes a loss without holding all logits.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from xmod_lab.labels import IGNORE

# N positions, V classes or subwords; B pairs, H hard negatives, D vector


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


def contrastive_loss(
    texts: Tensor,
    pairs: Tensor,
    groups: Tensor,
    *,
    temperature: float,
    negatives: Tensor | None = None,
) -> Tensor:
    """InfoNCE with in-batch negatives, the mean of both directions.

    Text i is to find pair i among all pairs of the batch and all hard negatives, and pair i is to
    find text i among all texts. The logits are cosines divided by ``temperature``, in float32 or
    the type of the vectors if that is wider. What has the number of text i in ``groups`` means the
    same, so it is no negative of it: its logit is -inf, and it gets no gradient.

    Args:
        texts, pairs: (B, D).
        groups: (B + H,) int64, of the pairs and then of the hard negatives.
        negatives: (H, D).
    Returns:
        A scalar, in nats.
    """
    count = len(texts)
    with torch.autocast(texts.device.type, enabled=False):
        wide = torch.promote_types(texts.dtype, torch.float32)
        others = pairs if negatives is None else torch.cat([pairs, negatives])
        texts, others = (normalize(x.to(wide), dim=1) for x in (texts, others))
        logits = texts @ others.T / temperature  # (B, B + H)
        same = groups[:count, None] == groups[None]
        same.diagonal().fill_(False)
        logits = logits.masked_fill(same, -torch.inf)
        own = torch.arange(count, device=logits.device)
        return (cross_entropy(logits, own) + cross_entropy(logits[:, :count].T, own)) / 2


def _beside(items: int | Tensor, x: Tensor) -> int | Tensor:
    """``items`` on the device of ``x``."""
    return items.to(x.device) if isinstance(items, Tensor) else items
