"""Batches: the rows of a step, in language order, with inputs and labels.

Everything is a function of (seed, step, row). A step's rows are divided among units, one for each
process and micro-batch: unit u takes every U-th row, so that all units have nearly the same
languages. The rows, their order and their masks do not depend on U: two processes together see what
one process would see.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from xmod_lab.text.corpus import Corpus
from xmod_lab.text.masking import InPhases, Masker, NextToken
from xmod_lab.text.mixture import Mixture
from xmod_lab.text.teaching import Teaching

# B rows of a batch, T positions


@dataclass(frozen=True)
class Layout:
    """Which tokens attend to which.

    Args:
        attention: ``document``: a token attends to its own passage, and positions count from the
            passage's ``<s>``, so that a packed passage is read exactly as it is read alone.
            ``row``: it attends to the whole row, across the passages packed into it, and positions
            count from the start of the row, as XLM-R was trained (there with one ``<s>`` a row,
            here with one a passage).
        causal: of these, a token attends to itself and the tokens before it alone.
    """

    attention: str
    pad_id: int
    eos_id: int
    causal: bool = False

    def fields(self, inputs: np.ndarray, rows: np.ndarray) -> dict[str, Tensor]:
        """Arguments of the model beside the input ids: ``attention_mask``; or, for ``document``,
        ``documents`` and ``position_ids`` (B, T) int64. ``rows``: (B, T) ids before masking."""
        padded = rows == self.pad_id
        if self.attention == "row":
            return {"attention_mask": torch.from_numpy(~padded).long()} if padded.any() else {}
        ends = rows == self.eos_id
        # (B, T) number of the passage; the closing </s> belongs to its passage
        passage = np.cumsum(ends, axis=1, dtype=np.int32) - ends
        starts = np.maximum.accumulate(
            np.where(np.diff(passage, prepend=0) > 0, np.arange(rows.shape[1]), 0), axis=1
        )
        positions = np.arange(rows.shape[1]) - starts + self.pad_id + 1
        return {
            "documents": torch.from_numpy(np.where(padded, -1, passage).astype(np.int64)),
            "position_ids": torch.from_numpy(positions),
        }


class BatchStream(Dataset):
    """Entry i is micro-batch ``i mod accumulate`` of step ``i div accumulate`` for one process.

    Args:
        maskers: language code -> what makes its inputs and labels. Each language has its own, so
            that languages with different vocabularies may stand in one batch.
        lang_ids: language code -> number of its slot in the model.
        seed: of the masks; the mixture has its own.
        teaching: adds the passages of each batch, and what a teacher reads of them.
    """

    def __init__(
        self,
        corpora: dict[str, Corpus],
        mixture: Mixture,
        maskers: Mapping[str, Masker | NextToken | InPhases],
        layout: Layout,
        lang_ids: dict[str, int],
        *,
        seed: int,
        steps: int,
        accumulate: int = 1,
        rank: int = 0,
        processes: int = 1,
        teaching: Teaching | None = None,
    ):
        self.corpora, self.mixture, self.maskers = corpora, mixture, maskers
        self.layout, self.lang_ids, self.seed, self.steps = layout, lang_ids, seed, steps
        self.accumulate, self.rank, self.processes = accumulate, rank, processes
        self.teaching = teaching

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        step, micro = divmod(index, self.accumulate)
        units, unit = self.accumulate * self.processes, micro * self.processes + self.rank
        rows, lang_ids, numbers, maskers = [], [], [], []
        first = labels = passages = 0
        for code, indices in self.mixture.step(step):
            mine = np.arange((unit - first) % units, len(indices), units)
            whole = self.corpora[code].rows("train", indices)
            masker = self.maskers[code].at(step / self.steps)
            if units > 1:
                labels += int(masker.counts(whole).sum())
                passages += self.teaching.count(whole) if self.teaching else 0
            if len(mine):
                rows.append(whole[mine])
                lang_ids += [self.lang_ids[code]] * len(mine)
                numbers += (first + mine).tolist()
                maskers += [masker] * len(mine)
            first += len(indices)
        rows = np.concatenate(rows)  # (B, T)
        masked = [
            m.mask(r, [self.seed, step, n]) for m, r, n in zip(maskers, rows, numbers, strict=True)
        ]
        batch = to_batch(rows, masked, lang_ids, self.layout)
        if self.teaching is not None:
            batch |= self.teaching.fields(rows)
        # losses of units are averaged: the divisors give every label and every passage of the step
        # the same weight
        if units > 1:
            batch["num_items_in_batch"] = torch.tensor(labels / units)
        if units > 1 and self.teaching is not None:
            batch["passages_in_step"] = torch.tensor(passages / units)
        return batch


def to_batch(
    rows: np.ndarray,
    masked: list[tuple[np.ndarray, np.ndarray]],
    lang_ids: list[int],
    layout: Layout,
) -> dict[str, Tensor]:
    """Keyword arguments of the model's forward pass: (B, T) tensors, ``lang_ids`` (B,)."""
    inputs = np.stack([i for i, _ in masked])
    labels = np.stack([label for _, label in masked])
    return {
        "input_ids": torch.from_numpy(inputs),
        "labels": torch.from_numpy(labels),
        "lang_ids": torch.tensor(lang_ids),
        **layout.fields(inputs, rows),
    }
