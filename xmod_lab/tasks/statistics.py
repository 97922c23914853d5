"""Intervals and paired tests of transfer scores, over clusters of examples and seeds at once.

A cluster is what was drawn independently: examples of one template, document or source sentence are
one cluster, since a model gets most of such examples all right or all wrong. Where nothing joins
examples, each is a cluster.

The method: the score of each seed is made linear in its clusters (their jackknife pseudo-values),
which gives a table of seeds × clusters. The variance of its mean has a part of the clusters, a part
of the seeds and a part of each pair (two-way analysis of variance; both factors are random). The
reference is Student's t with Satterthwaite's degrees of freedom. A percentile bootstrap of the same
table covers less: with three seeds that differ as much as clusters, a 95 % interval of the
bootstrap covers 86 %, and one of this method 93 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

from xmod_lab.metrics import AT_LEAST, LEVEL
from xmod_lab.tasks.sources import ALL
from xmod_lab.tasks.task_metrics import Metric

# K slots, S seeds, N examples, C clusters, D counts of an example

ARMS = {  # of a test in a language
    "target": "through its own slot",
    "auto": "through the slot of the language that its spelling or the lowest loss tells",
    "source": "through the slot of the language that was trained on",
    "none": "through no slot",
    "wrong": "through the slots of other languages, mean",
    "untrained": "the base before it was fine-tuned, through its own slot",
    "ngrams": "a linear classifier on character n-grams, trained on the same examples and on "
    "nothing else (of sentence vectors: cosines of character n-grams)",
    "majority": "one answer to all",
    "upper": "fine-tuned on the language itself",
}
# what the target slot is compared with
AGAINST = ("untrained", "ngrams", "auto", "source", "none", "wrong")


def trained_on(source: str) -> str:
    """What a task was learnt from, for titles. ``source``: as ``task.source``."""
    return "all languages of the data" if source == ALL else f"{source} alone"


def tested_text(examples: int, clusters: int) -> str:
    """``161 in 38``: the number of examples, and of clusters if examples share them."""
    return f"{examples:,}" + (f" in {clusters:,}" if clusters < examples else "")


def p_text(p: float | None) -> str:
    """Three digits; "< 0.001" for a smaller p, and "–" for ``None``."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def holm(p: Sequence[float | None]) -> list[float | None]:
    """The p-values of one family of tests, corrected for their number (Holm 1979), in order.

    ``None`` is no test. The k-th smallest of N is multiplied by N - k + 1; each is then raised to
    the one before it, and cut at 1. If values of 0.05 or less are rejected, the probability that
    any true null is among them is at most 0.05, however the tests depend on each other.
    """
    tests = sorted((value, i) for i, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    least = 0.0
    for rank, (value, i) in enumerate(tests):
        least = corrected[i] = max(least, min(1.0, value * (len(tests) - rank)))
    return corrected


def clusters_of(groups: Sequence[str | None]) -> np.ndarray | None:
    """(N,) the number of each example's cluster, from 0 on, by its group.

    An example without a group is a cluster by itself; ``None`` if no example has a group.
    """
    if all(group is None for group in groups):
        return None
    names = [i if group is None else group for i, group in enumerate(groups)]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])


@dataclass(frozen=True)
class Estimate:
    """A mean with the ends of its interval, and ``p`` of a difference.

    All but the mean are ``None`` for fewer than AT_LEAST clusters.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None = None

    def figures(self, name: str) -> dict[str, float]:
        """As in metrics.json: the mean as ``name``, and ``…/low``, ``…/high``, ``…/p`` if known."""
        ends = {"low": self.low, "high": self.high, "p": self.p}
        found = {f"{name}/{end}": value for end, value in ends.items() if value is not None}
        return {name: self.mean, **found}


def share_of(right: float, number: int) -> Estimate:
    """``right / number`` of independent units, with the Wilson interval.

    It also covers near 0 and 1, where the normal interval does not (Brown, Cai & DasGupta 2001).
    ``right`` may be fractional (ties count in part).
    """
    share = right / number
    if number < AT_LEAST:
        return Estimate(share, None, None)
    z = float(ndtri((1 + LEVEL) / 2))
    center = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    reach = z / (1 + z**2 / number) * np.sqrt(share * (1 - share) / number + (z / number) ** 2 / 4)
    return Estimate(share, max(0.0, center - float(reach)), min(1.0, center + float(reach)))


def mean_share(right: Sequence[float], numbers: Sequence[int]) -> Estimate:
    """The mean of shares ``right / numbers`` of independent samples, each with the same weight.

    The interval is made of the Wilson intervals of the shares: the squares of their distances below
    the means add up, and so do those above (square-and-add, Zou & Donner 2008). A sample of fewer
    than AT_LEAST units gives no interval.
    """
    parts = [share_of(r, n) for r, n in zip(right, numbers, strict=True)]
    mean = float(np.mean([part.mean for part in parts]))
    if any(part.low is None for part in parts):
        return Estimate(mean, None, None)
    below = np.sqrt(sum((part.mean - part.low) ** 2 for part in parts)) / len(parts)
    above = np.sqrt(sum((part.high - part.mean) ** 2 for part in parts)) / len(parts)
    return Estimate(mean, mean - float(below), mean + float(above))


def estimate(counts: np.ndarray, metric: Metric, clusters: np.ndarray | None = None) -> Estimate:
    """Mean over slots and seeds of ``counts`` (K, S, N, D), and its interval at LEVEL, in 0 to 1.

    Args:
        clusters: (N,) the number of each example's cluster, from 0 on; ``None``: each is one.
    """
    found = _estimate(*_by_cluster(counts, metric, clusters))
    ends = (None if end is None else min(1.0, max(0.0, end)) for end in (found.low, found.high))
    return Estimate(found.mean, *ends)


def difference(
    a: np.ndarray, b: np.ndarray, metric: Metric, clusters: np.ndarray | None = None
) -> Estimate:
    """``a`` minus ``b``, two arms (K, S, N, D) on the same examples and seeds, paired by both.

    With the interval of the difference, and ``p`` of the hypothesis that it is 0 over all examples
    and seeds that could have been drawn. ``clusters``: see :func:`estimate`.
    """
    (first, table), (second, other) = (_by_cluster(arm, metric, clusters) for arm in (a, b))
    return _estimate(first - second, table - other)


def _by_cluster(
    counts: np.ndarray, metric: Metric, clusters: np.ndarray | None
) -> tuple[float, np.ndarray]:
    """The mean score, and the pseudo-values (S, C) of seeds and clusters.

    Their mean is the score, except for the bias of the metric.
    """
    if clusters is None:
        sums = counts
    else:
        order = np.argsort(clusters, kind="stable")
        firsts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
        sums = np.add.reduceat(counts[:, :, order], firsts, axis=2)  # (K, S, C, D)
    total, number = sums.sum(2, keepdims=True), sums.shape[2]
    score = metric.reduce(total).mean(0)  # (S, 1)
    if number < AT_LEAST:
        return float(score.mean()), np.zeros((len(score), number))
    without = metric.reduce(total - sums).mean(0)  # (S, C): the score without that cluster
    return float(score.mean()), number * score - (number - 1) * without


def _estimate(mean: float, table: np.ndarray) -> Estimate:
    """``table``: (S, C), see :func:`_by_cluster`."""
    seeds, clusters = table.shape
    if clusters < AT_LEAST:
        return Estimate(mean, None, None)
    error, freedom = _error(table)
    if error < 1e-12:
        # no cluster differs: if a share ``reach`` of all did, this would happen 2.5 % of the time
        reach = 1 - ((1 - LEVEL) / 2) ** (1 / clusters)
        return Estimate(
            mean, mean - reach, mean + reach, 1.0 if abs(mean) < 1e-12 else 2.0 ** (1 - clusters)
        )
    reach = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Estimate(mean, mean - reach, mean + reach, 2 * float(stdtr(freedom, -abs(mean) / error)))


def _error(table: np.ndarray) -> tuple[float, float]:
    """Standard error of the mean of ``table`` (S, C), and its degrees of freedom.

    With one seed, both are given this seed. The part of the seeds counts only if seeds differ by
    more than their disagreement over clusters explains. Otherwise a few similar seeds would cost
    most degrees of freedom.
    """
    seeds, clusters = table.shape
    of_clusters = seeds * table.mean(0).var(ddof=1)  # mean squares
    if seeds == 1:
        return float(np.sqrt(of_clusters / clusters)), clusters - 1
    of_seeds = clusters * table.mean(1).var(ddof=1)
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    of_pairs = (rest**2).sum() / ((seeds - 1) * (clusters - 1))
    variance = max(of_clusters, of_pairs)
    scatter = variance**2 / (clusters - 1)
    if of_seeds > of_pairs:
        variance += of_seeds - of_pairs
        scatter += of_seeds**2 / (seeds - 1) + of_pairs**2 / ((seeds - 1) * (clusters - 1))
    return float(np.sqrt(variance / (seeds * clusters))), variance**2 / max(scatter, 1e-300)
