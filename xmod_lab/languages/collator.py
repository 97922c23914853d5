"""Batches of text in several languages and vocabularies, for ``torch`` and transformers' Trainer."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError
from xmod_lab.model import XmodPreTrainedModel
from xmod_lab.text.masking import IGNORE, Masker


class XmodCollator:
    """Makes a batch of rows such as ``{"text": "…", "language": "el_GR"}``, each split by the tokenizer of its language.

    ``text`` may be a pair of texts. A row's ``label`` or ``labels``, a number, goes into ``labels``. All classes of
    :mod:`xmod_lab.model` take the batch as it is; the Trainer needs ``remove_unused_columns=False``, since it does not know
    ``text``. B rows, S pieces of the longest:

        input_ids       (B, S) int64, padded on the right with the model's padding
        attention_mask  (B, S) int64, 1 where there is a piece
        lang_ids        (B,) int64
        labels          (B,) of the rows; or, with ``mask_rate``, (B, S) int64: -100 but for the pieces that were hidden

    Args:
        model: loaded from a folder or hub id that has the tokenizers of its languages; see its ``tokenizer_for``.
        length: most pieces a row, special ones included; longer texts are cut. ``None``: the model's positions.
        mask_rate: share of each row's ordinary pieces that are hidden, 80 % behind the mask, 10 % behind another piece, 10 % as they
            are. Which ones follows from torch's random numbers, as in transformers' collators. ``None``: none.
    Raises:
        UserError: a row lacks text or language. UnknownLanguageError: the model does not have the language.
    """

    def __init__(
        self,
        model: XmodPreTrainedModel,
        *,
        length: int | None = None,
        mask_rate: float | None = None,
    ):
        config = model.config
        positions = config.max_position_embeddings - config.pad_token_id - 1
        if length is not None and not 2 < length <= positions:
            raise UserError(
                f"length is {length}; allowed are 3 to {positions}, the positions of this model"
            )
        if mask_rate is not None and not 0 < mask_rate < 1:
            raise UserError(
                f"mask_rate is {mask_rate}; allowed are numbers between 0 and 1, or None to hide nothing"
            )
        self.model, self.length, self.mask_rate = model, length or positions, mask_rate
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        codes = [self._code(row, number) for number, row in enumerate(rows)]
        encoded = [self._encode(row["text"], code) for row, code in zip(rows, codes, strict=True)]
        width = max(map(len, encoded))
        ids = np.full((len(rows), width), self.model.config.pad_token_id)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for number, pieces in enumerate(encoded):
            ids[number, : len(pieces)], mask[number, : len(pieces)] = pieces, 1
        batch = {
            "attention_mask": torch.from_numpy(mask),
            "lang_ids": torch.tensor([self.model.lang_id(c) for c in codes]),
        }
        if self.mask_rate is not None:
            labels = np.full_like(ids, IGNORE)
            for number, (pieces, code) in enumerate(zip(encoded, codes, strict=True)):
                span = slice(0, len(pieces))
                ids[number, span], labels[number, span] = self._hide(pieces, code)
            batch["labels"] = torch.from_numpy(labels)
        elif any("label" in row or "labels" in row for row in rows):
            batch["labels"] = torch.tensor(
                [row["label"] if "label" in row else row["labels"] for row in rows]
            )
        return {"input_ids": torch.from_numpy(ids), **batch}

    def _code(self, row: Mapping, number: int) -> str:
        for key in ("text", "language"):
            if key not in row:
                raise UserError(
                    f"row {number} of the batch has no '{key}'; it has {', '.join(row) or 'nothing'}. With the Trainer, set "
                    "remove_unused_columns=False"
                )
        return self.model.config.resolve(row["language"])

    def _encode(self, text: str | Sequence[str], code: str) -> np.ndarray:
        """(S,) pieces of a text, or of a pair of texts, special ones included."""
        if code not in self._tokenizers:
            self._tokenizers[code] = self.model.tokenizer_for(code)
        texts = [text] if isinstance(text, str) else text
        return np.array(
            self._tokenizers[code](*texts, truncation=True, max_length=self.length)["input_ids"]
        )

    def _hide(self, pieces: np.ndarray, code: str) -> tuple[np.ndarray, np.ndarray]:
        masker = Masker.for_tokenizer(self._tokenizers[code], self.mask_rate, "80-10-10")
        return masker.mask(pieces, torch.randint(2**32, (2,)).tolist())
