"""The passages of a batch, and what a teacher reads of them in another vocabulary.

For slots that keep sentence vectors, see :mod:`xmod_lab.training.distillation`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xmod_lab.text.packing import best_fit

# B rows of a batch, T positions; C rows of the teacher, M positions; P passages


@dataclass(frozen=True)
class Teaching:
    """Finds the passages of rows, and writes them in the vocabulary of the teacher.

    Args:
        student: the tokenizer of the rows.
        teacher: that of the teacher. Passages become text and then its tokens; what ``student``
            does not know is lost. ``None``: the teacher reads the tokens of the student.
        most: tokens that the teacher reads of a passage.
    """

    student: PreTrainedTokenizerBase
    teacher: PreTrainedTokenizerBase | None
    most: int

    def count(self, rows: np.ndarray) -> int:
        """How many passages are in ``rows`` (R, T)."""
        return len(self._places(rows))

    def fields(self, rows: np.ndarray) -> dict[str, Tensor]:
        """What a batch of ``rows`` (B, T) has more; ``rows`` are ids before masking.

        ``passages``: (B, T) int64, the number of the passage of each token, and P at padding.
        ``edges``: (P, 2) int64, where the first and the last token of each passage are in the flat
        batch. With a vocabulary of the teacher also ``teacher_ids``, ``teacher_positions``,
        ``teacher_passages`` (C, M) and ``teacher_edges``: the same passages in rows of its own.
        """
        places = self._places(rows)
        found = _marked(places, rows.shape)
        if self.teacher is not None:
            texts = [rows.ravel()[each] for each in places]
            texts = self.student.batch_decode(texts, skip_special_tokens=True)
            ids = self.teacher(texts, split_special_tokens=True, verbose=False)["input_ids"]
            found |= self._packed([self._cut(row) for row in ids], rows.shape[1])
        return {name: torch.from_numpy(array) for name, array in found.items()}

    def _places(self, rows: np.ndarray) -> list[np.ndarray]:
        """The places of each passage in the flat ``rows``.

        It ends with ``</s>``, or with the row that it was cut by.
        """
        real = np.flatnonzero(rows.ravel() != self.student.pad_token_id)
        ends = rows.ravel()[real] == self.student.eos_token_id
        ends |= np.diff(real // rows.shape[1], append=-1) != 0
        return np.split(real, np.flatnonzero(ends)[:-1] + 1) if len(real) else []

    def _cut(self, ids: list[int]) -> list[int]:
        return ids if len(ids) <= self.most else [*ids[: self.most - 1], ids[-1]]

    def _packed(self, ids: list[list[int]], length: int) -> dict[str, np.ndarray]:
        """Passages in rows of ``length`` tokens, or of the longest passage."""
        sizes = [len(row) for row in ids]
        length, places = max(length, *sizes), [np.arange(size) for size in sizes]
        inside = np.concatenate(places)
        rows = list(best_fit(((i, size, 0) for i, size in enumerate(sizes)), length))
        for number, row in enumerate(rows):
            begin = number * length
            for passage in row.parts:
                places[passage] = places[passage] + begin
                begin += sizes[passage]
        flat, pad_id = np.concatenate(places), self.teacher.pad_token_id
        found = _marked(places, (len(rows), length))
        read, positions = (np.full((len(rows), length), pad_id) for _ in range(2))
        read.ravel()[flat] = np.concatenate(ids)
        positions.ravel()[flat] = inside + pad_id + 1
        return {
            "teacher_ids": read,
            "teacher_positions": positions,
            **{f"teacher_{name}": array for name, array in found.items()},
        }


def _marked(places: list[np.ndarray], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """``passages`` and ``edges`` of passages at these places of a batch of this shape."""
    passages = np.full(shape, len(places))
    for number, each in enumerate(places):
        passages.ravel()[each] = number
    edges = np.array([(each[0], each[-1]) for each in places]).reshape(-1, 2)
    return {"passages": passages, "edges": edges}
