"""Intervals and paired tests of transfer scores, over clusters of examples and seeds at once, since both were drawn.

A cluster is what was drawn independently: examples of one template, document or source sentence are one cluster, since a model
gets most of such examples all right or all wrong. Where nothing joins examples, each is a cluster.

The method: the score of each seed is made linear in its clusters (their jackknife pseudo-values), which gives a table of seeds ×
clusters. The variance of its mean has a part of the clusters, a part of the seeds and a part of each pair (two-way analysis of
variance; both factors are random). The reference is Student's t with Satterthwaite's degrees of freedom. A percentile bootstrap
of the same table covers less: with three seeds that differ as much as clusters, 0.86 where 0.95 is promised, and this 0.93.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

from xmod_lab.tasks.metrics import Metric

# K slots, S seeds, N examples, C clusters, D counts of an example

ARMS = {  # of a test in a language
    "target": "through its own slot",
    "source": "through the slot of the language that was trained on",
    "none": "through no slot",
    "wrong": "through the slots of other languages, mean",
    "ngrams": "a linear classifier on character n-grams, trained on the same examples and on nothing else",
    "majority": "one answer to all",
    "upper": "fine-tuned on the language itself",
}
AGAINST = ("ngrams", "source", "none", "wrong")  # what the target slot is compared with
LEVEL = 0.95
AT_LEAST = 10  # clusters for an interval: of fewer, too little is known of how they scatter


def tested_text(examples: int, clusters: int) -> str:
    """``161 in 38``: of which examples stand together in how many clusters."""
    return f"{examples:,}" + (f" in {clusters:,}" if clusters < examples else "")


def p_text(p: float | None) -> str:
    """Three digits, of which a small p has none that counts."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def holm(p: Sequence[float | None]) -> list[float | None]:
    """The p-values of one family of tests, corrected for their number (Holm 1979), in the order given; ``None`` is no test.

    Of N, the k-th smallest is multiplied by N - k + 1, and none is less than a smaller one before it, nor more than 1. Where
    those of 0.05 or less are rejected, the chance that any true null is among them is at most 0.05, however the tests depend.
    """
    tests = sorted((value, i) for i, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    least = 0.0
    for rank, (value, i) in enumerate(tests):
        least = corrected[i] = max(least, min(1.0, value * (len(tests) - rank)))
    return corrected


def clusters_of(groups: Sequence[str | None]) -> np.ndarray | None:
    """(N,) of each example the number of its cluster, from 0 on, by its group; one without a group is a cluster by itself.
    ``None`` where none has a group."""
    if all(group is None for group in groups):
        return None
    names = [i if group is None else group for i, group in enumerate(groups)]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])


@dataclass(frozen=True)
class Estimate:
    """A mean with the ends of its interval; ``p`` of a difference. They are ``None`` for fewer than AT_LEAST clusters."""

    mean: float
    low: float | None
    high: float | None
    p: float | None = None

    def figures(self, name: str) -> dict[str, float]:
        """As in metrics.json: the mean as ``name``, and ``…/low``, ``…/high`` and ``…/p`` where they exist."""
        ends = {"low": self.low, "high": self.high, "p": self.p}
        found = {f"{name}/{end}": value for end, value in ends.items() if value is not None}
        return {name: self.mean, **found}


def share_of(right: float, number: int) -> Estimate:
    """``right / number`` of independent units, with the Wilson interval, which also covers near 0 and 1, where the normal one
    does not (Brown, Cai & DasGupta 2001). ``right`` may be fractional (ties count in part)."""
    share = right / number
    if number < AT_LEAST:
        return Estimate(share, None, None)
    z = float(ndtri((1 + LEVEL) / 2))
    center = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    reach = z / (1 + z**2 / number) * np.sqrt(share * (1 - share) / number + (z / number) ** 2 / 4)
    return Estimate(share, max(0.0, center - float(reach)), min(1.0, center + float(reach)))


def mean_share(right: Sequence[float], numbers: Sequence[int]) -> Estimate:
    """The mean of shares ``right / numbers`` of independent samples, each with the same weight.

    The interval is made of the Wilson intervals of the shares: the squares of their reaches below add up, and of those above
    (square-and-add, Zou & Donner 2008). There is none where any sample has fewer than AT_LEAST units.
    """
    parts = [share_of(r, n) for r, n in zip(right, numbers, strict=True)]
    mean = float(np.mean([part.mean for part in parts]))
    if any(part.low is None for part in parts):
        return Estimate(mean, None, None)
    below = np.sqrt(sum((part.mean - part.low) ** 2 for part in parts)) / len(parts)
    above = np.sqrt(sum((part.high - part.mean) ** 2 for part in parts)) / len(parts)
    return Estimate(mean, mean - float(below), mean + float(above))


def estimate(counts: np.ndarray, metric: Metric, clusters: np.ndarray | None = None) -> Estimate:
    """Mean over slots and seeds of ``counts`` (K, S, N, D), and its interval at LEVEL, within 0 to 1 as all metrics are.

    Args:
        clusters: (N,) the number of each example's cluster, from 0 on; ``None``: each example is one.
    """
    found = _estimate(*_by_cluster(counts, metric, clusters))
    ends = (None if end is None else min(1.0, max(0.0, end)) for end in (found.low, found.high))
    return Estimate(found.mean, *ends)


def difference(
    a: np.ndarray, b: np.ndarray, metric: Metric, clusters: np.ndarray | None = None
) -> Estimate:
    """``a`` minus ``b``, two arms (K, S, N, D) on the same examples and seeds (paired by both), with the interval of the
    difference, and ``p`` of the hypothesis that there is none, of other examples and seeds too. ``clusters``: see :func:`estimate`."""
    (first, table), (second, other) = (_by_cluster(arm, metric, clusters) for arm in (a, b))
    return _estimate(first - second, table - other)


def _by_cluster(
    counts: np.ndarray, metric: Metric, clusters: np.ndarray | None
) -> tuple[float, np.ndarray]:
    """The mean score, and the pseudo-values (S, C) of seeds and clusters, whose mean it is but for the metric's bias."""
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
    if (
        error < 1e-12
    ):  # no cluster differs from another: so many alike are had from one that differs 2.5 % of the time
        reach = 1 - ((1 - LEVEL) / 2) ** (1 / clusters)
        return Estimate(
            mean, mean - reach, mean + reach, 1.0 if abs(mean) < 1e-12 else 2.0 ** (1 - clusters)
        )
    reach = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Estimate(mean, mean - reach, mean + reach, 2 * float(stdtr(freedom, -abs(mean) / error)))


def _error(table: np.ndarray) -> tuple[float, float]:
    """Standard error of the mean of ``table`` (S, C), and its degrees of freedom. Of one seed, given this seed.

    The part of the seeds counts where they differ by more than their disagreement over clusters makes them: with few seeds it
    would else cost most degrees of freedom where seeds are alike.
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
