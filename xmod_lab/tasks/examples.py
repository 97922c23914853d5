"""Encoded examples, and the batches that training reads. A batch is a function of seed and step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# B rows of a batch, S sequence, N examples, E entries (an example, or one window of it)


@dataclass(frozen=True)
class EncodedExamples:
    """Examples of one split of one language, as token ids.

    Args:
        ids: (E,) the token ids of each entry, special tokens included.
        gold: (N,) the gold answers.
        pad_id: the padding token.
        truncated: how many examples were cut to the model's positions.
        unknown: share of the tokens that are the unknown token.
        extra: (E,) what else a kind of task needs of each entry.
        empty: how many examples have a text, or a word, without any token.
        targets: (E,) how many targets of the loss each entry has, where entries differ in that.
    """

    ids: list[list[int]]
    gold: list
    pad_id: int
    truncated: int
    unknown: float
    extra: list = field(default_factory=list)
    empty: int = 0
    targets: list[int] | None = None

    def __len__(self) -> int:
        return len(self.gold)


def encode_texts(
    texts: Sequence[Sequence[str]],
    gold: list,
    tokenizer: "PreTrainedTokenizerBase",
    positions: int,
) -> EncodedExamples:
    """Encode one text, or a pair, for each example. Of a pair, the longer text is cut first."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    # split_special_tokens: <mask> in a text is text
    encoded = tokenizer(*columns, truncation=True, max_length=positions, split_special_tokens=True)
    parts = set(range(len(columns)))
    return EncodedExamples(
        encoded["input_ids"],
        gold,
        tokenizer.pad_token_id,
        truncated=sum(bool(encoding.overflowing) for encoding in encoded.encodings),
        unknown=unknown_share(encoded["input_ids"], tokenizer),
        empty=sum(not parts <= set(encoding.sequence_ids) for encoding in encoded.encodings),
    )


def unknown_share(ids: Sequence[list[int]], tokenizer: "PreTrainedTokenizerBase") -> float:
    """The share of all tokens that are the unknown token."""
    unknown = sum(row.count(tokenizer.unk_token_id) for row in ids)
    return unknown / sum(map(len, ids))


class ExampleStream:
    """The micro-batches of a training, for torch's DataLoader.

    Entry i is micro-batch ``i mod accumulate`` of step ``i div accumulate``. Each pass over the
    examples has its own order and leaves none out.

    Args:
        examples: their number.
        batch: indices of examples -> the arguments of the model but ``lang_ids``.
        lang_id: the slot that all of them go through.
        rows_per_step: examples of an optimiser step, over its ``accumulate`` micro-batches.
        targets: see :class:`EncodedExamples`. With them, a micro-batch has a ``loss_weight``, by
            which the mean over the micro-batches of a step is the mean over the step's targets.
    """

    def __init__(
        self,
        examples: int,
        batch: Callable[[Sequence[int]], dict[str, np.ndarray]],
        lang_id: int,
        *,
        seed: int,
        steps: int,
        rows_per_step: int,
        accumulate: int,
        targets: Sequence[int] | None = None,
    ):
        self.targets = targets
        self.examples, self.batch, self.lang_id, self.seed = examples, batch, lang_id, seed
        self.steps, self.rows, self.accumulate = steps, rows_per_step // accumulate, accumulate
        self._order = lru_cache(maxsize=2)(self._drawn)

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        indices = self._indices(index)
        batch = {**self.batch(indices), "lang_ids": np.full(len(indices), self.lang_id)}
        if self.targets is not None and self.accumulate > 1:
            first = index - index % self.accumulate
            counts = [
                sum(self.targets[i] for i in self._indices(part))
                for part in range(first, first + self.accumulate)
            ]
            weight = counts[index - first] * self.accumulate / max(1, sum(counts))
            batch["loss_weight"] = np.array(weight, np.float32)
        return batch

    def _indices(self, index: int) -> list[int]:
        """The examples of a micro-batch."""
        places = range(index * self.rows, (index + 1) * self.rows)
        return [int(self._order(place // self.examples)[place % self.examples]) for place in places]

    def _drawn(self, number: int) -> np.ndarray:
        """The order of the examples in a pass, (N,)."""
        return np.random.default_rng([self.seed, number]).permutation(self.examples)
