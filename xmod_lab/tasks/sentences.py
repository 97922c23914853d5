"""Sentence vectors: pairs of texts that mean the same, or belong together, without labels.

A row of the data is one of:

    a pair          columns ``text`` and ``pair``, and ``negative`` if there are hard negatives; the
                    languages are ``language`` and ``pair_language`` (columns, settings, or marks
                    in the path); without the latter both texts are in one language
    translations    a column for each of two languages or more, named by their codes; an empty cell
                    says that a language lacks the sentence

What has one ``id``, or one text in one language, means the same. ``columns.group`` names what rows
share that were not drawn independently, as in labelled data.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np

from xmod_lab.codes import resolve
from xmod_lab.errors import UnknownLanguageError, UserError
from xmod_lab.tasks.sources import GROUP, SPLITS, LabelledSource
from xmod_lab.tasks.task import Kind
from xmod_lab.tasks.task_metrics import Metric, share
from xmod_lab.tasks.values import read_group, read_text

log = logging.getLogger(__name__)
_METRICS = ("top1", "mrr")
_NO_LANGUAGE = ("id", "split", "language", "pair_language")  # columns of a table of translations

_Texts = list[tuple[str, str]]  # code and text of each sentence of a row

# P pairs, M sentences, G groups, N items of a test


class Sentences(Kind):
    """Sentence vectors. ``settings``: see :class:`xmod_lab.model.sentence_vectors.VectorSettings`.

    The prediction of an item (a sentence and its translations) is its top-1 and reciprocal rank,
    means over the languages it is looked for in, and over both directions.
    """

    roles = {
        "text": read_text,
        "pair": read_text,
        "negative": read_text,
        "pair_language": read_text,
        "id": read_group,
    }
    metrics = _METRICS
    head = "XmodForSentenceVectors"
    pipeline = "sentence-similarity"
    inputs = 'tokenizer("a text", return_tensors="pt")'

    def __init__(self, settings: Mapping[str, object]):
        self.settings = dict(settings)

    def configuration(self) -> dict[str, Any]:
        """What makes a vector of a text."""
        return {"sentence_vectors": self.settings}

    def metric(self, name: str, code: str = "") -> Metric:
        """``top1`` or ``mrr``, the mean over items."""
        place = _METRICS.index(name)

        def counts(gold: list, predicted: list) -> np.ndarray:
            return np.array([(said[place], 1) for said in predicted], float)

        return Metric(counts, share)


@dataclass(frozen=True)
class PairSet:
    """The pairs of one split.

    Args:
        cells: (M,) code and text, with its prefix, of each different sentence.
        pairs: (P, 3) int, the numbers of text, pair and hard negative; -1: it has none.
        groups: (M,) int; sentences with one number mean the same. It is the number of one of them.
        clusters: (M,) the name of the cluster that each sentence was drawn in.
        either: (P,) bool, whether the two may change places: translations.
    """

    cells: list[tuple[str, str]]
    pairs: np.ndarray
    groups: np.ndarray
    clusters: list[str]
    either: np.ndarray

    def __len__(self) -> int:
        return len(self.pairs)

    def within(self, codes: Sequence[str]) -> "PairSet":
        """The pairs with both texts in one of these languages."""
        inside = np.array([code in codes for code, _ in self.cells], bool)
        kept = inside[self.pairs[:, :2]].all(1)
        return replace(self, pairs=self.pairs[kept], either=self.either[kept])

    def languages(self) -> list[str]:
        """The codes of the languages that the pairs are in, in the order of their first pair."""
        return list(dict.fromkeys(self.cells[i][0] for i in self.pairs[:, :2].ravel()))

    def meanings(self) -> int:
        """How many groups the pairs are in."""
        return len(np.unique(self.groups[self.pairs[:, 0]]))

    def tables(self) -> dict[tuple[str, str], np.ndarray]:
        """By the languages of both sides, the pairs (N, 2) among which a text finds its pair.

        Tables with a single meaning are left out: there is nothing to be mistaken for.
        """
        by_codes: dict[tuple[str, str], list[np.ndarray]] = {}
        for pair in self.pairs[:, :2]:
            by_codes.setdefault(tuple(self.cells[i][0] for i in pair), []).append(pair)
        stacked = {codes: np.unique(np.stack(rows), axis=0) for codes, rows in by_codes.items()}
        return {c: t for c, t in stacked.items() if len(np.unique(self.groups[t[:, 0]])) > 1}


class _Builder:
    """Collects the pairs of a split."""

    def __init__(self, prefixes: tuple[str, str]):
        self.prefixes = prefixes
        self.cells: dict[tuple[str, str], int] = {}
        self.pairs: list[tuple[int, int, int]] = []
        self.either: list[bool] = []
        self.first: dict[str, int] = {}  # name of a group -> one of its cells
        self.parents: list[int] = []
        self.clusters: list[str] = []

    def add(self, texts: _Texts, meaning: str, cluster: str, *, either: bool = False) -> None:
        """Add a pair, or a pair and its hard negative: code and text of each."""
        sides = (*self.prefixes, self.prefixes[1])
        numbers = [
            self._cell(code, prefix + text, cluster)
            for (code, text), prefix in zip(texts, sides, strict=False)
        ]
        self.pairs.append((*numbers, -1)[:3])
        self.either.append(either)
        self._join(self.first.setdefault(meaning, numbers[0]), numbers[0])
        self._join(numbers[0], numbers[1])

    def translations(self, texts: _Texts, meaning: str, cluster: str) -> None:
        """Add every pair of languages, in both orders if the two sides have other prefixes."""
        same = self.prefixes[0] == self.prefixes[1]
        for one, other in combinations(texts, 2):
            self.add([one, other], meaning, cluster, either=same)
            if not same:
                self.add([other, one], meaning, cluster)

    def built(self) -> PairSet:
        roots = [self._root(cell) for cell in range(len(self.cells))]
        pairs = np.array(self.pairs, int).reshape(-1, 3)
        groups, either = np.array(roots, int), np.array(self.either, bool)
        return PairSet(list(self.cells), pairs, groups, self.clusters, either)

    def _cell(self, code: str, text: str, cluster: str) -> int:
        number = self.cells.setdefault((code, text), len(self.cells))
        if number == len(self.parents):
            self.parents.append(number)
            self.clusters.append(cluster)
        return number

    def _root(self, cell: int) -> int:
        while self.parents[cell] != cell:
            self.parents[cell] = cell = self.parents[self.parents[cell]]
        return cell

    def _join(self, one: int, other: int) -> None:
        self.parents[self._root(other)] = self._root(one)


def read_pairs(
    sources: Sequence[LabelledSource], prefixes: tuple[str, str], known: Sequence[str]
) -> dict[str, PairSet]:
    """The pairs of each split: train, dev and test. Some may be empty.

    Rows of ``task.data`` that name no split are training rows, those of ``task.tests`` test rows.
    Languages that are not ``known`` are left out, with a warning.

    Args:
        prefixes: of the texts, and of their pairs and hard negatives.
        known: the language codes of the model.
    Raises:
        UserError: a file cannot be read, a row lacks a column, or one side of a pair is empty.
    """
    builders = {split: _Builder(prefixes) for split in SPLITS}
    unknown: dict[str, str] = {}
    keys = ("task.data", "task.tests")
    for key, source, usual in zip(keys, sources, ("train", "test"), strict=False):
        for split, texts, negative, names in _rows(source, key, usual, known, unknown):
            if negative is None:
                builders[split].translations(texts, *names)
            else:
                builders[split].add([*texts, *negative], *names)
    for language, why in unknown.items():
        log.warning("text in '%s' is left out: the base has no slot for it. %s", language, why)
    return {split: builder.built() for split, builder in builders.items()}


def _rows(
    source: LabelledSource, key: str, usual: str, known: Sequence[str], unknown: dict[str, str]
) -> Iterator[tuple[str, _Texts, _Texts | None, tuple[str, str]]]:
    """Of each row its split, sentences, hard negatives (``None``: they are translations), and the
    names of its meaning and of its cluster."""
    named = {name: split for split, name in source.splits.items()}
    columns: dict[str, str] | None = None
    for said, rows in source.parts(key):
        for where, values in rows:
            name = said.get("split") or values.get(source.columns.get("split", "split"))
            split = usual if name is None else named.get(str(name), str(name))
            if split not in SPLITS:
                continue
            if any(source.columns.get(role, role) in values for role in ("text", "pair")):
                texts, negative = _pair(source, key, said, where, values, known, unknown)
            else:
                if columns is None:
                    columns = _languages(source, key, where, values, known, unknown)
                texts, negative = _translations(columns, where, values), None
            if len(texts) < 2:
                continue
            column = source.columns.get("id", "id")
            meaning = values.get(column, where)
            meaning = read_group(meaning, f"{where}, column '{column}'")
            cluster = source.group({}, dict(values), where, key).get(GROUP, meaning)
            split = source.part_of(split, {GROUP: cluster}, where, key)
            yield split, texts, negative, (meaning, cluster)


def _pair(
    source: LabelledSource,
    key: str,
    said: Mapping[str, str],
    where: str,
    values: Mapping,
    known: Sequence[str],
    unknown: dict[str, str],
) -> tuple[_Texts, _Texts]:
    """The two sentences of a row, and its hard negative; nothing if a language is not known."""
    language = (
        said.get("language")
        or source.language
        or source.value("language", read_text, values, where, key)
    )
    column = source.columns.get("pair_language", "pair_language")
    other = said.get("pair_language") or source.pair_language or values.get(column) or language
    codes = [_known(name, known, unknown) for name in (language, other)]
    if None in codes:
        return [], []
    texts = [source.value(role, read_text, values, where, key).strip() for role in ("text", "pair")]
    for role, text in zip(("text", "pair"), texts, strict=True):
        if not text:
            raise UserError(
                f"{where}: fill it, or leave that row out; column "
                f"'{source.columns.get(role, role)}' is empty, so the pair has one side"
            )
    negative = values.get(source.columns.get("negative", "negative")) or ""
    negative = read_text(negative, f"{where}, column 'negative'").strip()
    found = list(zip(codes, texts, strict=True))
    return found, [(codes[1], negative)] if negative else []


def _languages(
    source: LabelledSource,
    key: str,
    where: str,
    values: Mapping,
    known: Sequence[str],
    unknown: dict[str, str],
) -> dict[str, str]:
    """Column -> code of each known language of a table of translations.

    Raises:
        UserError: fewer than two columns are known languages, or two columns mean one.
    """
    named = {*_NO_LANGUAGE, *source.columns.values()}
    found: dict[str, str] = {}
    for column in values:
        code = None if column in named else _known(column, known, unknown)
        if code in found.values():
            raise UserError(f"leave one out: {where}: two columns are {code}, one is '{column}'")
        if code is not None:
            found[column] = code
    if len(found) < 2:
        raise UserError(
            f"name the columns of both texts with ++{key}.columns.text=<column> "
            f"++{key}.columns.pair=<column>, or give a column for each of two languages of the "
            f"base or more ({', '.join(known)}): {where}: the columns are {', '.join(values)}"
        )
    return found


def _translations(columns: Mapping[str, str], where: str, values: Mapping) -> _Texts:
    cells = ((code, values.get(column) or "", column) for column, code in columns.items())
    texts = [(c, read_text(text, f"{where}, column '{n}'").strip()) for c, text, n in cells]
    return [(code, text) for code, text in texts if text]


def _known(name: object, known: Sequence[str], unknown: dict[str, str]) -> str | None:
    """The known code that a language's name means; ``None``, and in ``unknown``, if none does."""
    if str(name) in unknown:
        return None
    try:
        return resolve(str(name), list(known))
    except UnknownLanguageError as error:
        unknown[str(name)] = str(error)
        return None


class PairStream:
    """The batches of a training, for torch's DataLoader. Entry i is that of step i.

    A pass takes every meaning once, in an order of its own, and one of the pairs of each. So the
    pairs of a batch mean different things, except where two passes meet.

    Args:
        pairs: of the training split.
        batch: numbers of sentences, text by text, pair by pair and hard negative by hard negative
            -> the arguments of the model but ``labels``.
    """

    def __init__(
        self,
        pairs: PairSet,
        batch: Callable[[np.ndarray], dict[str, np.ndarray]],
        *,
        seed: int,
        steps: int,
        rows_per_step: int,
    ):
        self.pairs, self.batch, self.seed = pairs, batch, seed
        self.steps, self.rows = steps, rows_per_step
        meanings = pairs.groups[pairs.pairs[:, 0]]
        self._sorted = np.argsort(meanings, kind="stable")
        _, self._firsts, self._counts = np.unique(
            meanings[self._sorted], return_index=True, return_counts=True
        )
        self._drawn = lru_cache(maxsize=2)(self._draw)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        size = len(self._firsts)
        places = range(step * self.rows, (step + 1) * self.rows)
        rows = np.stack([self._drawn(place // size)[place % size] for place in places])
        negatives = rows[rows[:, 2] >= 0, 2]
        labels = self.pairs.groups[np.concatenate([rows[:, 0], negatives])]
        return {**self.batch(np.concatenate([rows[:, 0], rows[:, 1], negatives])), "labels": labels}

    def _draw(self, number: int) -> np.ndarray:
        """(G, 3) the pairs of a pass, in its order."""
        random = np.random.default_rng([self.seed, number])
        order = random.permutation(len(self._firsts))
        chosen = self._firsts + (random.random(len(order)) * self._counts).astype(int)
        picked = self._sorted[chosen[order]]
        rows = self.pairs.pairs[picked].copy()
        turned = self.pairs.either[picked] & (random.random(len(order)) < 0.5)
        rows[turned, :2] = rows[turned, 1::-1]
        return rows
