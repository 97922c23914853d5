"""Batches: the rows of a step, in language order, with their masks. Everything follows from (seed, step, row).

A step's rows are cut into units, one for each process and micro-batch: unit u takes every U-th row, so that each has
nearly the same languages. The rows, their order and their masks do not depend on U: two processes see together what
one would see alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from xmod_lab.text.mixture import Mixture
from xmod_lab.text.rows import Corpus


class Hider(Protocol):
    """What turns a row into inputs and labels: a masker, or the next piece; see :mod:`xmod_lab.text.objective`. ``counts``: how many
    labels each of several rows gets."""

    def counts(self, rows: np.ndarray) -> np.ndarray: ...

    def mask(
        self, row: np.ndarray, key: list[int], *, count: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Layout:
    """What a piece may attend to. ``document``: its own passage only, positions counted from its ``<s>``: each passage is read as it is
    when it is read alone. ``row``: the whole row, across the passages packed into it, positions counted from the row's start, as
    XLM-R was trained (there with one ``<s>`` a row, here with one a passage). ``causal``: of these, only to pieces before it and itself."""

    attention: str
    pad_id: int
    eos_id: int
    causal: bool = False

    def fields(self, inputs: np.ndarray, rows: np.ndarray) -> dict[str, Tensor]:
        """Tensors that the model needs beside the input ids; ``rows`` (B, T) are the unmasked ids."""
        padded = rows == self.pad_id
        if self.attention == "row":
            return {"attention_mask": torch.from_numpy(~padded).long()} if padded.any() else {}
        ends = rows == self.eos_id
        passage = (
            np.cumsum(ends, axis=1, dtype=np.int32) - ends
        )  # (B, T): the closing </s> belongs to its passage
        allowed = passage[:, :, None] == passage[:, None, :]
        if padded.any():
            allowed = (allowed & ~padded[:, None, :]) | np.eye(rows.shape[1], dtype=bool)
        if self.causal:
            allowed = np.tril(allowed)
        starts = np.maximum.accumulate(
            np.where(np.diff(passage, prepend=0) > 0, np.arange(rows.shape[1]), 0), axis=1
        )
        positions = np.arange(rows.shape[1]) - starts + self.pad_id + 1
        return {
            "attention_mask": torch.from_numpy(allowed)[:, None],
            "position_ids": torch.from_numpy(positions),
        }


class BatchStream(Dataset):
    """Entry i is micro-batch ``i mod accumulate`` of step ``i div accumulate`` for one process.

    Args:
        maskers: language code -> what hides its pieces. A row is hidden by its language's own, so that languages of different
            vocabularies may stand in one batch.
        lang_ids: language code -> number of its slot in the model.
        seed: of the masks; the mixture has its own.
    """

    def __init__(
        self,
        corpora: dict[str, Corpus],
        mixture: Mixture,
        maskers: Mapping[str, Hider],
        layout: Layout,
        lang_ids: dict[str, int],
        *,
        seed: int,
        steps: int,
        accumulate: int = 1,
        rank: int = 0,
        processes: int = 1,
    ):
        self.corpora, self.mixture, self.maskers, self.layout, self.lang_ids = (
            corpora,
            mixture,
            maskers,
            layout,
            lang_ids,
        )
        self.seed, self.steps, self.accumulate, self.rank, self.processes = (
            seed,
            steps,
            accumulate,
            rank,
            processes,
        )

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        step, micro = divmod(index, self.accumulate)
        units, unit = self.accumulate * self.processes, micro * self.processes + self.rank
        rows, lang_ids, numbers, maskers = [], [], [], []
        first = labels = 0
        for code, indices in self.mixture.step(step):
            mine = np.arange((unit - first) % units, len(indices), units)
            whole = self.corpora[code].rows("train", indices)
            if units > 1:
                labels += int(self.maskers[code].counts(whole).sum())
            if len(mine):
                rows.append(whole[mine])
                lang_ids += [self.lang_ids[code]] * len(mine)
                numbers += (first + mine).tolist()
                maskers += [self.maskers[code]] * len(mine)
            first += len(indices)
        rows = np.concatenate(rows)  # (B, T)
        masked = [
            m.mask(r, [self.seed, step, n]) for m, r, n in zip(maskers, rows, numbers, strict=True)
        ]
        batch = to_batch(rows, masked, lang_ids, self.layout)
        # micro-batches and processes are averaged: each counts by its labels, so that every label of the step weighs the same
        return batch | {"num_items_in_batch": torch.tensor(labels / units)} if units > 1 else batch


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
