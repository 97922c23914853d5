"""Inputs and labels of a row: masked tokens (BERT), or the next token at every position.

Both classes have the same three methods. ``at(share)``: what masks after this share of the run,
which changes with :class:`InPhases`. ``counts(rows)``: how many labels each row gets.
``mask(row, key)``: inputs and labels of one row, a function of the row and the key alone.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from xmod_lab.labels import IGNORE
from xmod_lab.text.stretches import borders

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# R rows, T positions of a row, N maskable tokens of a row, V vocabulary

_SPACES = ("▁", "Ġ")  # how vocabularies write the space before a word
_INSIDE = "##"  # WordPiece marks tokens that continue a word instead


@dataclass(frozen=True)
class NextToken:
    """Every token of a passage is predicted from those before it, the first one from ``<s>``, and
    so is the end of the passage."""

    pad_id: int
    bos_id: int

    def at(self, share: float) -> "NextToken":
        return self

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """(R,) labels of each of ``rows`` (R, T)."""
        return ((rows != self.pad_id) & (rows != self.bos_id)).sum(1)

    def mask(
        self, row: np.ndarray, key: list[int], *, count: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, labels) of ``row`` (T,), both (T,) int64. The inputs are the row; the model
        shifts the labels. ``key`` and ``count`` have no effect."""
        inputs = row.astype(np.int64)
        return inputs, np.where((inputs == self.pad_id) | (inputs == self.bos_id), IGNORE, inputs)


@dataclass(frozen=True)
class Masker:
    """Masks an exact number of tokens in every row. A subclass that masks other groups of tokens
    overrides :meth:`order`.

    Args:
        rate: share of the row's ordinary tokens that become labels; special tokens never do.
        policy: ``80-10-10`` (BERT): 80 % become ``<mask>``, 10 % a random token, 10 % stay;
            ``all-mask``: all become ``<mask>``.
        vocab_size: V, the size of the vocabulary.
        specials: ids below V, ascending, without repetition, that are never masked or drawn.
        unit: what is masked together. ``piece``: one token; ``word``: all tokens of a word (the
            last word only from the token where the number is right); ``word_end``: of each word
            a random token and those after it, as bits per byte mask words
            (:mod:`xmod_lab.scoring.passages`). Words are the stretches of
            :mod:`xmod_lab.text.stretches`, as far as tokens show them.
        words: (V,) whether a token begins a word by itself, and twice (V,) the kinds of its first
            and last character, between which a word may begin. Units other than ``piece`` need it.
    """

    rate: float
    policy: str
    mask_id: int
    vocab_size: int
    specials: tuple[int, ...]
    unit: str = "piece"
    words: tuple[np.ndarray, np.ndarray, np.ndarray] | None = field(
        default=None, repr=False, compare=False
    )

    @classmethod
    def for_tokenizer(
        cls,
        tokenizer: "PreTrainedTokenizerBase",
        rate: float,
        policy: str,
        unit: str = "piece",
        **settings: object,
    ) -> "Masker":
        """The masker for the ids of ``tokenizer``; ``settings``: fields of a subclass."""
        specials = sorted({i for i in tokenizer.all_special_ids if i < len(tokenizer)})
        words = None if unit == "piece" else _word_table(tokenizer)
        return cls(
            rate,
            policy,
            tokenizer.mask_token_id,
            len(tokenizer),
            tuple(specials),
            unit,
            words,
            **settings,
        )

    def at(self, share: float) -> "Masker":
        return self

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """(R,) tokens that are masked in each of ``rows`` (R, T): at least one, if the row has an
        ordinary token."""
        ordinary = self._ordinary[rows].sum(1)
        return np.minimum(ordinary, np.maximum(1, np.rint(self.rate * ordinary).astype(int)))

    def mask(
        self, row: np.ndarray, key: list[int], *, count: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mask tokens of ``row`` (T,). The result depends on ``key``, numbers below 2^32, and on
        the row alone.

        Args:
            count: how many tokens are masked; default: see :meth:`counts`. A row with fewer
                ordinary tokens has all of them masked.
        Returns:
            (inputs, labels), both (T,) int64; labels are ``IGNORE`` where nothing is predicted.
        """
        # an array of the key: a list gives the same numbers, and takes longer
        random = np.random.default_rng(np.array(key, dtype=np.uint32))
        candidates = np.flatnonzero(self._ordinary[row])
        count = int(self.counts(row[None])[0]) if count is None else count
        chosen = self.order(row, candidates, random)[:count]
        inputs = row.astype(np.int64)
        labels = np.full(len(row), IGNORE)
        labels[chosen] = inputs[chosen]
        if self.policy == "all-mask":
            inputs[chosen] = self.mask_id
            return inputs, labels
        fate = random.random(len(chosen))
        inputs[chosen[fate < 0.8]] = self.mask_id
        swapped = chosen[fate >= 0.9]
        inputs[swapped] = self._random_tokens(random, len(swapped))
        return inputs, labels

    def order(
        self, row: np.ndarray, candidates: np.ndarray, random: np.random.Generator
    ) -> np.ndarray:
        """(N,) ``candidates`` in the order in which they are masked, until the number is reached.

        Args:
            candidates: (N,) positions of the ordinary tokens of ``row`` (T,), ascending.
        """
        if self.unit == "piece":
            return random.permutation(candidates)
        # word by word, the last token of each first
        begins, first, last = self.words
        ids = row[candidates]
        apart = np.diff(candidates, prepend=-2) > 1
        meet = first[ids][1:], last[ids][:-1]
        apart[1:] |= (meet[0] > 0) & (meet[1] > 0) & (meet[0] != meet[1])
        word = np.cumsum(apart | begins[ids]) - 1  # (N,)
        words = int(word[-1]) + 1 if len(word) else 0
        rank, kept = random.permutation(words), np.zeros(len(word), dtype=bool)
        if self.unit == "word_end":
            sizes = np.bincount(word, minlength=words)
            within = np.arange(len(word)) - (np.cumsum(sizes) - sizes)[word]
            # masked only when nothing else is left
            kept = within < np.floor(random.random(words) * sizes)[word]
        return candidates[np.lexsort((-candidates, rank[word], kept))]

    def _random_tokens(self, random: np.random.Generator, count: int) -> np.ndarray:
        """(count,) ids of ordinary tokens: the n-th of them is n plus the number of special ids
        before it."""
        drawn = random.integers(0, self.vocab_size - len(self.specials), size=count)
        return drawn + np.searchsorted(self._special_ranks, drawn, side="right")

    @cached_property
    def _ordinary(self) -> np.ndarray:
        """(V,) bool: whether a token may be masked."""
        ordinary = np.ones(self.vocab_size, dtype=bool)
        ordinary[list(self.specials)] = False
        return ordinary

    @cached_property
    def _special_ranks(self) -> np.ndarray:
        """How many ordinary tokens come before each special one, ascending."""
        return np.array(self.specials, dtype=np.int64) - np.arange(len(self.specials))


@dataclass(frozen=True)
class InPhases:
    """Maskers that follow each other, each with the share of the run at which it begins."""

    parts: tuple[tuple[float, Masker], ...]

    def at(self, share: float) -> Masker:
        return [masker for begin, masker in self.parts if begin <= share][-1]


def _word_table(tokenizer: "PreTrainedTokenizerBase") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``words`` of a :class:`Masker`."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    inside = any(token.startswith(_INSIDE) for token in tokens)
    space = next((mark for mark in _SPACES if any(token.startswith(mark) for token in tokens)), " ")
    found = [borders(token.removeprefix(_INSIDE) if inside else token, space) for token in tokens]
    begins = [
        not token.startswith(_INSIDE) if inside else starts
        for token, (starts, *_) in zip(tokens, found, strict=True)
    ]
    first, last = np.array([kinds for _, *kinds in found]).T
    return np.array(begins), first, last
