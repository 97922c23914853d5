"""Metrics as functions of sums over examples, so that resampled examples are scored without counting again."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# N examples, C classes, D counts of an example


@dataclass(frozen=True)
class Metric:
    """``counts``: gold, predicted -> (N, D), what each example adds; ``reduce``: sums (..., D) -> figures (...)."""

    counts: Callable[[list, list], np.ndarray]
    reduce: Callable[[np.ndarray], np.ndarray]

    def score(self, gold: list, predicted: list) -> float:
        """The figure of one set of predictions."""
        return float(self.reduce(self.counts(gold, predicted).sum(0)))


def share(sums: np.ndarray) -> np.ndarray:
    """(..., 2), points and how many could be had -> (...)."""
    return sums[..., 0] / sums[..., 1]


def accuracy() -> Metric:
    """Share of examples whose prediction is the gold one."""
    return Metric(
        lambda gold, predicted: np.array(
            [(g == p, 1) for g, p in zip(gold, predicted, strict=True)], float
        ),
        share,
    )


def macro_f1(classes: int) -> Metric:
    """Unweighted mean of the classes' F1, over classes that are in gold or predictions (as scikit-learn has it)."""

    def counts(gold: list, predicted: list) -> np.ndarray:
        one_of = np.eye(classes)
        g, p = one_of[np.asarray(gold, int)], one_of[np.asarray(predicted, int)]
        return np.concatenate([g * p, g + p], axis=1)  # (N, 2C): hits; gold and predicted

    def reduce(sums: np.ndarray) -> np.ndarray:
        hits, both = np.split(sums, 2, axis=-1)
        f1 = 2 * hits / np.maximum(both, 1)
        return f1.sum(-1) / np.maximum((both > 0).sum(-1), 1)

    return Metric(counts, reduce)


def span_fault() -> str | None:
    """Why spans cannot be scored here, or ``None``."""
    if importlib.util.find_spec("seqeval") is None:
        return "the F1 of spans needs seqeval; pip install 'xmod_lab[tagging]'"
    return None


def span_f1(labels: list[str]) -> Metric:
    """F1 of spans with their type, over all examples together, by seqeval (CoNLL 2000)."""
    from seqeval.metrics.sequence_labeling import get_entities

    def spans(tags: list[int]) -> set:
        return set(get_entities([labels[tag] for tag in tags]))

    def counts(gold: list, predicted: list) -> np.ndarray:
        pairs = [(spans(g), spans(p)) for g, p in zip(gold, predicted, strict=True)]
        return np.array([(len(g & p), len(g) + len(p)) for g, p in pairs], float)

    return Metric(counts, lambda sums: 2 * sums[..., 0] / np.maximum(sums[..., 1], 1))
