"""Which pieces are hidden from the model, and behind what."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerBase

from xmod_lab.text.stretches import borders

IGNORE = -100
_SPACES = ("▁", "Ġ")  # how vocabularies write the space at the beginning of a word
_INSIDE = "##"  # others mark what does not begin one


@dataclass(frozen=True)
class Masker:
    """Hides an exact number of pieces in every row.

    Args:
        rate: share of the row's ordinary pieces that is to be predicted; special pieces never are.
        policy: ``80-10-10``: <mask>, a random piece, the piece itself (BERT); ``all-mask``: always <mask>.
        specials: ids below ``pieces``, ascending, each once, that are neither hidden nor drawn.
        unit: what is hidden together. ``piece``: each piece by itself; ``word``: all pieces of a word, the last word that is
            hidden from the piece on with which the number is right; ``word_end``: of each word what stands from a random piece of it on,
            as bits per byte meet words (:mod:`xmod_lab.scoring.passages`). Words are the stretches of
            :mod:`xmod_lab.text.stretches`, as far as pieces tell them.
        words: (V,) whether a piece begins a word by itself, and (V,) the kinds of its first and last characters, between which a
            word may begin; needed for words alone.
    """

    rate: float
    policy: str
    mask_id: int
    pieces: int
    specials: tuple[int, ...]
    unit: str = "piece"
    words: tuple[np.ndarray, np.ndarray, np.ndarray] | None = field(
        default=None, repr=False, compare=False
    )

    @classmethod
    def for_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, rate: float, policy: str, unit: str = "piece"
    ) -> "Masker":
        specials = sorted({i for i in tokenizer.all_special_ids if i < len(tokenizer)})
        words = None if unit == "piece" else _word_table(tokenizer)
        return cls(
            rate, policy, tokenizer.mask_token_id, len(tokenizer), tuple(specials), unit, words
        )

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """(R,) pieces that are hidden in each of ``rows`` (R, T): one at least, where there is one."""
        ordinary = self._ordinary[rows].sum(1)
        return np.minimum(ordinary, np.maximum(1, np.rint(self.rate * ordinary).astype(int)))

    def mask(
        self, row: np.ndarray, key: list[int], *, count: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Hide pieces of ``row`` (T,). The outcome depends on ``key``, numbers below 2^32, and the row alone.

        Returns:
            (inputs, labels), both (T,) int64; labels are -100 where nothing is predicted. ``count``: how many are hidden, else
            :meth:`counts`; a row with fewer ordinary pieces hides all it has.
        """
        random = np.random.default_rng(
            np.array(key, dtype=np.uint32)
        )  # a list gives the same, and takes longer
        candidates = np.flatnonzero(self._ordinary[row])
        count = int(self.counts(row[None])[0]) if count is None else count
        if self.unit == "piece":
            chosen = random.permutation(candidates)[:count]
        else:
            chosen = self._words(row, candidates, random)[:count]
        inputs = row.astype(np.int64)
        labels = np.full(len(row), IGNORE)
        labels[chosen] = inputs[chosen]
        if self.policy == "all-mask":
            inputs[chosen] = self.mask_id
            return inputs, labels
        fate = random.random(len(chosen))
        inputs[chosen[fate < 0.8]] = self.mask_id
        swapped = chosen[fate >= 0.9]
        inputs[swapped] = self._random_pieces(random, len(swapped))
        return inputs, labels

    def _words(
        self, row: np.ndarray, candidates: np.ndarray, random: np.random.Generator
    ) -> np.ndarray:
        """``candidates`` (N,), places in ``row``, in the order in which they are hidden: word by word, the last piece of each first."""
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
            kept = (
                within < np.floor(random.random(words) * sizes)[word]
            )  # hidden when nothing else is left
        return candidates[np.lexsort((-candidates, rank[word], kept))]

    def _random_pieces(self, random: np.random.Generator, count: int) -> np.ndarray:
        """Draw from all pieces that are not special, without walking through them: the n-th of these is n plus the number of
        special ones before it."""
        drawn = random.integers(0, self.pieces - len(self.specials), size=count)
        return drawn + np.searchsorted(self._special_ranks, drawn, side="right")

    @cached_property
    def _ordinary(self) -> np.ndarray:
        """(V,) bool: whether a piece may be hidden."""
        ordinary = np.ones(self.pieces, dtype=bool)
        ordinary[list(self.specials)] = False
        return ordinary

    @cached_property
    def _special_ranks(self) -> np.ndarray:
        """How many ordinary pieces come before each special one, ascending."""
        return np.array(self.specials, dtype=np.int64) - np.arange(len(self.specials))


def _word_table(tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``words`` of a :class:`Masker`."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    inside = any(piece.startswith(_INSIDE) for piece in pieces)
    space = next((mark for mark in _SPACES if any(piece.startswith(mark) for piece in pieces)), " ")
    found = [borders(piece.removeprefix(_INSIDE) if inside else piece, space) for piece in pieces]
    begins = [
        not piece.startswith(_INSIDE) if inside else starts
        for piece, (starts, *_) in zip(pieces, found, strict=True)
    ]
    first, last = np.array([kinds for _, *kinds in found]).T
    return np.array(begins), first, last
