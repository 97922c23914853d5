"""Intervals and paired tests of transfer scores: over examples and seeds at once, since both were drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, permutation_test

from xmod_lab.tasks.metrics import Metric

# K slots, S seeds, N examples, D counts of an example, B resamples

ARMS = {  # of a test in a language
    "target": "through its own slot",
    "source": "through the slot of the language that was trained on",
    "none": "through no slot",
    "wrong": "through the slots of other languages, mean",
    "majority": "one answer to all",
    "upper": "fine-tuned on the language itself",
}
AGAINST = ("source", "none", "wrong")  # what the target slot is compared with
LEVEL = 0.95
RESAMPLES = 1000
PERMUTATIONS = 4999
_BATCH = 250  # resamples at a time, which bounds the memory


def interval_text(low: float | None, high: float | None, *, sign: str = "", digits: int = 3) -> str:
    """``[0.120, 0.340]``, or a dash where there is none; ``sign``: ``+`` for a difference."""
    return "–" if low is None or high is None else f"[{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


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


@dataclass(frozen=True)
class Estimate:
    """A mean with the ends of its interval; ``p`` of a difference. ``low`` and ``high`` are ``None`` for one example."""

    mean: float
    low: float | None
    high: float | None
    p: float | None = None


def estimate(counts: np.ndarray, metric: Metric, *, seed: int) -> Estimate:
    """Mean over slots and seeds of ``counts`` (K, S, N, D), and its percentile bootstrap interval: examples and, where
    there are several, seeds are drawn anew, crossed (Owen 2007)."""
    return _estimate(lambda sums: metric.reduce(sums).mean(0), counts, seed)


def difference(a: np.ndarray, b: np.ndarray, metric: Metric, *, seed: int) -> Estimate:
    """``a`` minus ``b``, two arms (K, S, N, D) on the same examples and seeds, with the interval of the difference, and ``p``
    of a permutation test in which each example's predictions are swapped or not (approximate randomisation)."""
    pair = np.stack(np.broadcast_arrays(a, b))  # (2, K, S, N, D)

    def minus(sums: np.ndarray) -> np.ndarray:
        scores = metric.reduce(sums).mean(1)  # (2, S, ...)
        return scores[0] - scores[1]

    found = _estimate(minus, pair, seed)
    p = _swap_test(pair, lambda sums: minus(sums).mean(0), seed)
    return Estimate(found.mean, found.low, found.high, p)


def _estimate(score: Callable[[np.ndarray], np.ndarray], counts: np.ndarray, seed: int) -> Estimate:
    """``counts`` (..., S, N, D); ``score``: sums (..., S, B, D) -> (S, B)."""
    examples, seeds = counts.shape[-2], counts.shape[-3]

    def of(weights: np.ndarray) -> np.ndarray:  # (B, N) -> (S, B)
        return score(np.einsum("...nd,bn->...bd", counts, weights, optimize=True))

    mean = float(of(np.ones((1, examples))).mean())
    if examples < 2:
        return Estimate(mean, None, None)

    def statistic(drawn: np.ndarray, drawn_seeds: np.ndarray | None = None, axis: int = -1) -> np.ndarray:
        scores = of(_multiplicities(drawn.reshape(-1, examples), examples))  # (S, B)
        if drawn_seeds is None:
            return scores.mean(0).reshape(drawn.shape[:-1])
        shares = _multiplicities(drawn_seeds.reshape(-1, seeds), seeds) / seeds  # (B, S)
        return np.einsum("sb,bs->b", scores, shares).reshape(drawn.shape[:-1])

    sample = (np.arange(examples), np.arange(seeds)) if seeds > 1 else (np.arange(examples),)
    result = bootstrap(sample, statistic, n_resamples=RESAMPLES, batch=_BATCH, vectorized=True, confidence_level=LEVEL,
                       method="percentile", rng=np.random.default_rng(seed))  # fmt: skip
    return Estimate(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))


def _multiplicities(drawn: np.ndarray, size: int) -> np.ndarray:
    """(B, N) indices -> (B, ``size``): how often each was drawn."""
    rows = np.arange(len(drawn))[:, None] * size
    return np.bincount((drawn + rows).ravel(), minlength=len(drawn) * size).reshape(len(drawn), size).astype(float)


def _swap_test(pair: np.ndarray, minus: Callable[[np.ndarray], np.ndarray], seed: int) -> float | None:
    """p of the hypothesis that it is of no consequence which of the two arms an example's predictions come from."""
    examples = pair.shape[-2]
    if examples < 2:
        return None
    total, gap = pair.sum(-2), pair[0] - pair[1]  # (2, K, S, D), (K, S, N, D)

    def statistic(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
        swapped = (first.reshape(-1, examples) >= examples).astype(float)  # (B, N)
        moved = np.einsum("ksnd,bn->ksbd", gap, swapped, optimize=True)
        return minus(np.stack([total[0][:, :, None] - moved, total[1][:, :, None] + moved])).reshape(first.shape[:-1])

    samples = (np.arange(examples), np.arange(examples, 2 * examples))
    result = permutation_test(samples, statistic, permutation_type="samples", n_resamples=PERMUTATIONS, batch=_BATCH,
                              vectorized=True, rng=np.random.default_rng(seed))  # fmt: skip
    return float(result.pvalue)
