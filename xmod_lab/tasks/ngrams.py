"""What spelling alone gives on a labelled task: a linear classifier on character n-grams, with no pre-training.

Trained on the same source examples as a model, chosen by the same development split, tested on the same examples. A model that
is not better has shown nothing that shared letters, names and numbers do not give. n-grams are hashed, and read block by block,
so memory does not grow with the examples: a pass over 390,000 pairs (XNLI) takes some minutes, embedded tasks a second or two.
"""

import unicodedata
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

LONGEST = 4  # characters of an n-gram
_STRENGTHS = (1e-4, 1e-5)  # of the L2 penalty; the development split chooses
_PASSES, _READ = (
    10,
    30_000,
)  # at most so many passes, and no further one when so many examples were read
_BLOCK, _KEPT = (
    2048,
    16,
)  # examples that are hashed at once, and blocks of a split that stay in memory

# U units: what gets an answer of its own (a text, a word, a choice); C outcomes; F columns


@dataclass(frozen=True)
class Spelling:
    """What the classifier of one seed has answered. ``dev``, ``loss``: of the chosen weights, on the source's development split;
    ``strength``, ``passes``: of these; ``predictions``: language -> examples."""

    dev: float
    loss: float
    strength: float
    passes: int
    predictions: dict[str, list]


def ngrams(text: str, longest: int = LONGEST) -> list[str]:
    """Every run of 1 to ``longest`` characters of ``text``, composed (NFC), as often as it is there."""
    text = unicodedata.normalize("NFC", text)
    return [text[i : i + n] for n in range(1, longest + 1) for i in range(len(text) - n + 1)]


def spelling(
    kind,
    rows: dict[str, Sequence[Row]],
    gold: dict[str, list],
    tests: dict[str, Sequence[Row]],
    score: Callable[[list, list], float],
    *,
    seeds: Sequence[int],
) -> list[Spelling]:
    """For each seed train on ``rows["train"]``, choose strength and pass on ``rows["dev"]`` (by ``score``, of equals by the loss),
    and answer ``tests``. Empty where a kind of task has no such baseline.

    Args:
        kind: gives the texts of each unit (``spelt``), their outcomes (``outcomes``, ``targets``), and the prediction of an example
            from the probabilities of its units (``read_off``).
        gold: of the two splits, as the kind numbers it.
        seeds: of the order in which a classifier reads.
    """
    if kind.outcomes is None:
        return []
    order = np.random.default_rng(seeds[0]).permutation(
        len(rows["train"])
    )  # files may be sorted by label
    train, dev = _Hashed(kind, [rows["train"][i] for i in order]), _Hashed(kind, rows["dev"])
    wanted = [kind.targets(gold["train"][i]) for i in order]
    columns = np.flatnonzero(
        sum(train.block(first)[0].getnnz(0) for first in train.firsts[:_KEPT])
    )  # that have n-grams
    passes = max(1, min(_PASSES, _READ // len(order)))
    models = [(seed, _classifier(strength, seed)) for seed, strength in product(seeds, _STRENGTHS)]
    best: dict[int, tuple] = {}  # seed -> dev, -loss, the weights, after which pass
    for number, first in tqdm(
        list(product(range(1, passes + 1), train.firsts)), "n-grams", leave=False, disable=None
    ):
        x, y = train.block(first)[0][:, columns], np.concatenate(wanted[first : first + _BLOCK])
        for seed, model in models:
            model.partial_fit(x, y, classes=np.arange(kind.outcomes))
            if first == train.firsts[-1]:  # the end of a pass
                said, loss = _answers(kind, model, columns, dev, gold["dev"])
                rank = score(gold["dev"], said), -loss
                if seed not in best or rank > best[seed][:2]:
                    best[seed] = (*rank, deepcopy(model), number)
    hashed = {code: _Hashed(kind, test) for code, test in tests.items()}
    return [
        Spelling(
            dev_score,
            -loss,
            model.alpha,
            number,
            {code: _answers(kind, model, columns, test)[0] for code, test in hashed.items()},
        )
        for dev_score, loss, model, number in (best[seed] for seed in seeds)
    ]


def _classifier(strength: float, seed: int) -> SGDClassifier:
    return SGDClassifier(loss="log_loss", alpha=strength, average=True, random_state=seed)


class _Hashed:
    """Examples as hashed n-grams. ``firsts``: where blocks begin; ``block``: of one of them the units (U, F), each of length 1,
    and the unit behind each example's last."""

    def __init__(self, kind, rows: Sequence[Row]):
        self.kind, self.rows, self.firsts = kind, rows, range(0, len(rows), _BLOCK)
        self.block = lru_cache(maxsize=_KEPT)(self._block)

    def _block(self, first: int) -> tuple[csr_matrix, np.ndarray]:
        spelt = [self.kind.spelt(row) for row in self.rows[first : first + _BLOCK]]
        return _HASHED.transform(chain.from_iterable(spelt)), np.cumsum(
            [len(units) for units in spelt]
        )


def _answers(
    kind, model, columns: np.ndarray, examples: _Hashed, gold: list | None = None
) -> tuple[list, float]:
    """Predictions of examples, and the mean negative log-probability of the right outcomes of their units."""
    said, nats = [], []
    for first in examples.firsts:
        x, ends = examples.block(first)
        probabilities = model.predict_proba(x[:, columns])  # (U, C)
        said += [kind.read_off(part) for part in np.split(probabilities, ends[:-1])]
        if gold is not None:
            wanted = np.concatenate([kind.targets(one) for one in gold[first : first + _BLOCK]])
            nats.append(-np.log(np.maximum(probabilities[np.arange(len(wanted)), wanted], 1e-12)))
    return said, float(np.concatenate(nats).mean()) if nats else 0.0


def _features(texts: tuple[str, ...]) -> Iterator[str]:
    """n-grams of each text of a unit, told apart by its place; of a pair also those that both have."""
    found = [ngrams(text) for text in texts]
    for place, part in enumerate(found):
        yield from (f"{place}{gram}" for gram in part)
    if len(found) == 2:
        yield from (f"={gram}" for gram in set(found[0]) & set(found[1]))


_HASHED = HashingVectorizer(analyzer=_features, n_features=2**18, alternate_sign=False)
