"""How well sentence vectors find the pair of a text: its translation, or what belongs to it.

The pairs of two languages are a table: every text looks for its pair among all pairs of the table,
by cosine, and every pair for its text. What means the same as the right one (same id, or same text)
is no candidate. A language is scored by its items, a sentence and its pairs: the mean over the
tables with the language, and over both directions. The arms differ in the slot that the sentences
of the language go through; those of the other languages go through their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from xmod_lab.languages.sentence_encoding import vectors_of
from xmod_lab.model import XmodForSentenceVectors
from xmod_lab.model.loss import contrastive_loss
from xmod_lab.scoring.retrieval import cosines_of, top1_and_mrr
from xmod_lab.scoring.transfer import slots_of
from xmod_lab.tasks.sentences import PairSet
from xmod_lab.text.recognition import ngrams

Score = tuple[float, float]  # top-1 and reciprocal rank
Cosines = Callable[[np.ndarray, np.ndarray], np.ndarray]  # numbers (N,), (N,) -> (N, N)

# M sentences, N pairs of a table, D model


@dataclass(frozen=True)
class Items:
    """What a language is tested by. ``gold``: the group of each item."""

    gold: list[int]

    def __len__(self) -> int:
        return len(self.gold)


class PairTest:
    """The pairs of one split, with their token ids.

    Args:
        ids: (M,) the token ids of each sentence.
    """

    def __init__(self, pairs: PairSet, ids: list[list[int]]):
        self.pairs, self.ids = pairs, ids
        self.tables = pairs.tables()
        self.codes = [code for code, _ in pairs.cells]

    @cached_property
    def items(self) -> dict[str, Items]:
        """Code -> its items."""
        found: dict[str, set[int]] = {}
        for codes, table in self.tables.items():
            for code in codes:
                found.setdefault(code, set()).update(self._groups(table).tolist())
        return {code: Items(sorted(groups)) for code, groups in found.items()}

    def vectors(self, model: XmodForSentenceVectors) -> Tensor:
        """(M, D), each sentence through its own slot; zeros for those in no table."""
        wanted = np.unique(np.concatenate([t.ravel() for t in self.tables.values()] or [[]]))
        found = torch.zeros(len(self.ids), model.config.hidden_size)
        places = wanted.astype(int).tolist()
        found[places] = vectors_of(
            model, [self.ids[i] for i in places], [self.codes[i] for i in places]
        )
        return found

    def answers(
        self, model: XmodForSentenceVectors, *, arms: Sequence[str] | None = None
    ) -> dict[str, dict[str, list[list[Score]]]]:
        """Language -> arm -> for each slot of the arm the score of each item.

        ``arms``: only these; default: all.
        """
        own = self.vectors(model)
        found: dict[str, dict[str, list[list[Score]]]] = {}
        for code, items in self.items.items():
            mine = [i for i, other in enumerate(self.codes) if other == code]
            found[code] = {}
            ways = slots_of(model.config, code, code)
            for arm, slots in ways.items():
                if arms is not None and arm not in arms:
                    continue
                for slot in slots:
                    vectors = own
                    if arm != "target":
                        vectors = own.clone()
                        ids = [self.ids[i] for i in mine]
                        vectors[mine] = vectors_of(model, ids, code, slot)
                    scores = self._scores(code, items, _by_cosine(vectors))
                    found[code].setdefault(arm, []).append(scores)
        return found

    def baselines(self, prefixes: Sequence[str] = ()) -> dict[str, dict[str, list[Score]]]:
        """Arm -> language -> the score of each item: of n-grams, and of one answer to all.

        ``prefixes``: of the sentences; n-grams do not read them.
        """
        texts = [text for _, text in self.pairs.cells]
        for prefix in sorted(prefixes, key=len):
            texts = [text.removeprefix(prefix) for text in texts]
        vectors = TfidfVectorizer(analyzer=ngrams, sublinear_tf=True).fit_transform(texts)

        def spelt(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
            return (vectors[rows] @ vectors[others].T).toarray()

        def alike(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
            return np.zeros((len(rows), len(others)))

        arms = {"ngrams": spelt, "majority": alike}
        return {
            arm: {code: self._scores(code, items, by) for code, items in self.items.items()}
            for arm, by in arms.items()
        }

    def mean_and_loss(
        self, model: XmodForSentenceVectors, metric: int, temperature: float
    ) -> tuple[float, float]:
        """A score, and the contrastive loss, both the mean over the tables.

        Args:
            metric: its place in a score.
        """
        vectors = self.vectors(model)
        scores, losses = [], []
        for table in self.tables.values():
            both = self._both_ways(table, _by_cosine(vectors))
            scores.append(both[metric].mean())
            texts, pairs = (vectors[torch.from_numpy(side)] for side in table.T)
            groups = torch.from_numpy(self._groups(table))
            losses.append(float(contrastive_loss(texts, pairs, groups, temperature=temperature)))
        return float(np.mean(scores)), float(np.mean(losses))

    def by_pair(self, model: XmodForSentenceVectors) -> dict[tuple[str, str], tuple[int, Score]]:
        """Languages of a table -> how many pairs, and their mean score over both directions."""
        vectors = self.vectors(model)
        return {
            codes: (len(table), tuple(self._both_ways(table, _by_cosine(vectors)).mean(1)))
            for codes, table in self.tables.items()
        }

    def _scores(self, code: str, items: Items, cosines: Cosines) -> list[Score]:
        """The score of each item of a language."""
        place = {group: i for i, group in enumerate(items.gold)}
        sums, counts = np.zeros((2, len(items))), np.zeros(len(items))
        for codes, table in self.tables.items():
            if code not in codes:
                continue
            where = [place[group] for group in self._groups(table).tolist()]
            np.add.at(sums, (slice(None), where), self._both_ways(table, cosines))
            np.add.at(counts, where, 1)
        return [tuple(map(float, score)) for score in (sums / counts).T]

    def _both_ways(self, table: np.ndarray, cosines: Cosines) -> np.ndarray:
        """(2, N) top-1 and reciprocal rank of each pair, the mean of both directions."""
        groups = self._groups(table)
        found = cosines(table[:, 0], table[:, 1])
        same = groups[:, None] == groups[None]
        np.fill_diagonal(same, False)
        found = np.where(same, -np.inf, found)
        return (np.stack(top1_and_mrr(found)) + np.stack(top1_and_mrr(found.T))) / 2

    def _groups(self, table: np.ndarray) -> np.ndarray:
        """(N,) the groups of a table's pairs."""
        return self.pairs.groups[table[:, 0]]


def _by_cosine(vectors: Tensor) -> Cosines:
    """Cosines of the vectors (M, D) with these numbers."""
    return lambda rows, others: cosines_of(vectors[rows.tolist()], vectors[others.tolist()])
