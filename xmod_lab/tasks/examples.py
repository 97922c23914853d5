"""Encoded examples, and batches of them that are a function of (seed, step) alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

# B batch rows, S sequence


@dataclass(frozen=True)
class Encoded:
    """``ids``: the pieces of each example, or of each window of it, special ones included; ``gold``: of each example;
    ``truncated``: how many examples were cut to the model's
    positions; ``unknown``: share of the pieces that the vocabulary does not have; ``extra``: what else a kind of task needs
    of each row of ``ids``; ``empty``: how many examples have a text, or a word, without any piece; ``targets``: what each row
    has of that the loss is a mean over, where rows differ in that."""

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
    texts: Sequence[Sequence[str]], gold: list, tokenizer: PreTrainedTokenizerBase, positions: int
) -> Encoded:
    """One passage or a pair for each example. Of a pair, the longer passage is cut first."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    # split_special_tokens: <mask> in a text is text
    encoded = tokenizer(*columns, truncation=True, max_length=positions, split_special_tokens=True)
    truncated = sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    pieces = sum(len(ids) for ids in encoded["input_ids"])
    unknown = sum(ids.count(tokenizer.unk_token_id) for ids in encoded["input_ids"])
    empty = sum(
        not set(range(len(columns))) <= set(encoding.sequence_ids) for encoding in encoded.encodings
    )
    return Encoded(
        encoded["input_ids"], gold, tokenizer.pad_token_id, truncated, unknown / pieces, empty=empty
    )


def pad(rows: Sequence[list[int]], pad_id: int) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` (B, S) of these pieces, S the longest of them."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad_id)
    real = torch.arange(ids.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]
    return {"input_ids": ids, "attention_mask": real.long()}


class ExampleStream(Dataset):
    """Entry i is micro-batch ``i mod accumulate`` of step ``i div accumulate``. Every pass over the examples has an order of
    its own, and none is left out.

    Args:
        batch: indices of examples -> the model's arguments; ``lang_ids`` come from here.
        targets: see :class:`Encoded`. A micro-batch has a ``loss_weight`` then, by which the mean over the micro-batches of a step
            is the mean over the step's targets.
    """

    def __init__(
        self,
        examples: int,
        batch: Callable[[Sequence[int]], dict[str, Tensor]],
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

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        indices = self._indices(index)
        batch = {**self.batch(indices), "lang_ids": torch.full((len(indices),), self.lang_id)}
        if self.targets is not None and self.accumulate > 1:
            first = index - index % self.accumulate
            counts = [
                sum(self.targets[i] for i in self._indices(part))
                for part in range(first, first + self.accumulate)
            ]
            batch["loss_weight"] = torch.tensor(
                counts[index - first] * self.accumulate / max(1, sum(counts))
            )
        return batch

    def _indices(self, index: int) -> list[int]:
        """The examples of an entry."""
        places = range(index * self.rows, (index + 1) * self.rows)
        return [int(self._order(place // self.examples)[place % self.examples]) for place in places]

    def _drawn(self, number: int) -> np.ndarray:
        """The order of the examples in a pass."""
        return np.random.default_rng([self.seed, number]).permutation(self.examples)
