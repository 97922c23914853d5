"""A baseline of labelled tasks without pre-training: a linear classifier on character n-grams.

It is trained on the same source examples as a model, chosen by the same development split, and
tested on the same examples. A model that is not better has shown nothing beyond shared letters,
names and numbers. n-grams are hashed and read in blocks, so memory does not grow with the examples:
a pass over 390,000 pairs (XNLI) takes some minutes, an embedded task a second or two.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, product

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import SGDClassifier
from tqdm import tqdm

from xmod_lab.tasks.sources import Row
from xmod_lab.tasks.task import Task
from xmod_lab.text.recognition import ngrams

_STRENGTHS = (1e-4, 1e-5)  # of the L2 penalty; the development split chooses
_PASSES = 10  # at most
_READ = 30_000  # examples; after so many, there is no further pass
_BLOCK = 2048  # examples that are hashed at once
_KEPT = 16  # blocks of a split that stay in memory

# U units: what gets a class of its own (a text, a word, a choice); C classes; F columns


@dataclass(frozen=True)
class NgramAnswers:
    """The answers of the classifier of one seed.

    Args:
        dev, loss: score and loss of the chosen weights on the source's development split.
        strength, passes: of the chosen weights.
        predictions: language -> a prediction for each test example.
    """

    dev: float
    loss: float
    strength: float
    passes: int
    predictions: dict[str, list]


def ngram_answers(
    kind: Task,
    rows: dict[str, Sequence[Row]],
    gold: dict[str, list],
    tests: dict[str, Sequence[Row]],
    score: Callable[[list, list], float],
    *,
    seeds: Sequence[int],
) -> list[NgramAnswers]:
    """Train a classifier for each seed, and answer the tests. Empty if the kind has no baseline.

    Args:
        kind: see its attribute ``ngram_classes`` and its methods ``ngram_…``.
        rows: the splits ``train`` and ``dev`` of the source language.
        gold: the gold answers of these.
        tests: language -> test rows.
        score: gold answers and predictions -> the score that chooses strength and pass on ``dev``;
            of equal scores the lower loss wins.
        seeds: of the order in which a classifier reads.
    """
    if kind.ngram_classes is None:
        return []
    # files may be sorted by label
    order = np.random.default_rng(seeds[0]).permutation(len(rows["train"]))
    train, dev = _Hashed(kind, [rows["train"][i] for i in order]), _Hashed(kind, rows["dev"])
    labels = [kind.ngram_labels(gold["train"][i]) for i in order]
    # the columns that have n-grams
    columns = np.flatnonzero(sum(train.block(first)[0].getnnz(0) for first in train.firsts[:_KEPT]))
    passes = max(1, min(_PASSES, _READ // len(order)))
    models = [
        (seed, SGDClassifier(loss="log_loss", alpha=strength, average=True, random_state=seed))
        for seed, strength in product(seeds, _STRENGTHS)
    ]
    best: dict[int, tuple] = {}  # seed -> dev score, -loss, the weights, the pass
    for number, first in tqdm(
        list(product(range(1, passes + 1), train.firsts)), "n-grams", leave=False, disable=None
    ):
        x, y = train.block(first)[0][:, columns], np.concatenate(labels[first : first + _BLOCK])
        for seed, model in models:
            model.partial_fit(x, y, classes=np.arange(kind.ngram_classes))
            if first == train.firsts[-1]:  # the end of a pass
                said, loss = _answers(kind, model, columns, dev, gold["dev"])
                rank = score(gold["dev"], said), -loss
                if seed not in best or rank > best[seed][:2]:
                    best[seed] = (*rank, deepcopy(model), number)
    hashed = {code: _Hashed(kind, test) for code, test in tests.items()}
    return [
        NgramAnswers(
            dev_score,
            -loss,
            model.alpha,
            number,
            {code: _answers(kind, model, columns, test)[0] for code, test in hashed.items()},
        )
        for dev_score, loss, model, number in (best[seed] for seed in seeds)
    ]


class _Hashed:
    """Examples as hashed n-grams, in blocks.

    ``firsts``: the first example of each block. ``block``: first example -> the units of the block
    (U, F), each of length 1, and for each example the end of its units.
    """

    def __init__(self, kind: Task, rows: Sequence[Row]):
        self.kind, self.rows, self.firsts = kind, rows, range(0, len(rows), _BLOCK)
        self.block = lru_cache(maxsize=_KEPT)(self._block)

    def _block(self, first: int) -> tuple[csr_matrix, np.ndarray]:
        units = [self.kind.ngram_texts(row) for row in self.rows[first : first + _BLOCK]]
        hashed = _HASHING.transform(chain.from_iterable(units))
        return hashed, np.cumsum([len(one) for one in units])


def _answers(
    kind: Task,
    model: SGDClassifier,
    columns: np.ndarray,
    examples: _Hashed,
    gold: list | None = None,
) -> tuple[list, float]:
    """Predictions of examples, and the mean cross-entropy of their units, 0 without ``gold``."""
    said, nats = [], []
    for first in examples.firsts:
        x, ends = examples.block(first)
        probabilities = model.predict_proba(x[:, columns])  # (U, C)
        said += [kind.ngram_prediction(part) for part in np.split(probabilities, ends[:-1])]
        if gold is not None:
            labels = [kind.ngram_labels(one) for one in gold[first : first + _BLOCK]]
            right = probabilities[np.arange(len(probabilities)), np.concatenate(labels)]
            nats.append(-np.log(np.maximum(right, 1e-12)))
    return said, float(np.concatenate(nats).mean()) if nats else 0.0


def _features(texts: tuple[str, ...]) -> Iterator[str]:
    """The n-grams of each text of a unit, with its number; for a pair also the shared ones."""
    found = [ngrams(text) for text in texts]
    for place, part in enumerate(found):
        yield from (f"{place}{gram}" for gram in part)
    if len(found) == 2:
        yield from (f"={gram}" for gram in set(found[0]) & set(found[1]))


_HASHING = HashingVectorizer(analyzer=_features, n_features=2**18, alternate_sign=False)
