"""Which pieces are hidden from the model, and behind what."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerBase

IGNORE = -100


@dataclass(frozen=True)
class Masker:
    """Hides an exact number of pieces in every row.

    Args:
        rate: share of the row's ordinary pieces that is to be predicted; special pieces never are.
        policy: ``80-10-10``: <mask>, a random piece, the piece itself (BERT); ``all-mask``: always <mask>.
        specials: ids below ``pieces``, ascending, each once, that are neither hidden nor drawn.
    """

    rate: float
    policy: str
    mask_id: int
    pieces: int
    specials: tuple[int, ...]

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, rate: float, policy: str) -> "Masker":
        specials = sorted({i for i in tokenizer.all_special_ids if i < len(tokenizer)})
        return cls(rate, policy, tokenizer.mask_token_id, len(tokenizer), tuple(specials))

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """(R,) pieces that are hidden in each of ``rows`` (R, T): one at least, where there is one."""
        ordinary = self._ordinary[rows].sum(1)
        return np.minimum(ordinary, np.maximum(1, np.rint(self.rate * ordinary).astype(int)))

    def mask(self, row: np.ndarray, key: list[int], *, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Hide pieces of ``row`` (T,). The outcome depends on ``key``, numbers below 2^32, and the row alone.

        Returns:
            (inputs, labels), both (T,) int64; labels are -100 where nothing is predicted. ``count``: how many are hidden, else
            :meth:`counts`; a row with fewer ordinary pieces hides all it has.
        """
        random = np.random.default_rng(np.array(key, dtype=np.uint32))  # a list gives the same, and takes longer
        candidates = np.flatnonzero(self._ordinary[row])
        count = int(self.counts(row[None])[0]) if count is None else count
        chosen = random.permutation(candidates)[:count]
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
