"""The passages of a batch, and what a teacher reads of them in another vocabulary.

For slots that keep sentence vectors, see :mod:`xmod_lab.training.distillation`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xmod_lab.text.padding import pad

# B rows of a batch, T positions; P passages, L and M tokens of the longest one


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

        ``places``: (P, L) int64, where the tokens of each passage are in the flat batch, then -1.
        With a vocabulary of the teacher, also ``teacher_ids`` and ``teacher_mask``, (P, M) int64.
        """
        flat, places = rows.ravel(), self._places(rows)
        found = {"places": pad(places, -1)["input_ids"]}
        if self.teacher is not None:
            texts = self.student.batch_decode(
                [flat[each] for each in places], skip_special_tokens=True
            )
            ids = self.teacher(texts, truncation=True, max_length=self.most)["input_ids"]
            read = pad(ids, self.teacher.pad_token_id)
            found |= {"teacher_ids": read["input_ids"], "teacher_mask": read["attention_mask"]}
        return {name: torch.from_numpy(array) for name, array in found.items()}

    def _places(self, rows: np.ndarray) -> list[np.ndarray]:
        """The places of each passage in the flat ``rows``. It ends with ``</s>``, or with the row
        that it was cut by."""
        real = np.flatnonzero(rows.ravel() != self.student.pad_token_id)
        ends = rows.ravel()[real] == self.student.eos_token_id
        ends |= np.diff(real // rows.shape[1], append=-1) != 0
        return np.split(real, np.flatnonzero(ends)[:-1] + 1)
