"""Batches of text in several languages, for ``torch`` and transformers' Trainer."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError
from xmod_lab.labels import IGNORE
from xmod_lab.languages.recognition import chosen, default_of, recogniser_of
from xmod_lab.model import XmodPreTrainedModel
from xmod_lab.text.masking import Masker
from xmod_lab.text.padding import pad


class XmodCollator:
    """Makes a batch of rows such as ``{"text": "…", "language": "el_GR"}``.

    Each row is tokenised by the tokenizer of its language. With ``lang_ids="auto"`` the language is
    recognised by the spelling of the text, so rows need no ``language``, and one that they have is
    not read (:mod:`xmod_lab.text.recognition`). ``text`` may be a pair of texts. The
    number in a row's ``label`` or ``labels`` goes into ``labels``. All classes of
    :mod:`xmod_lab.model` take the batch as it is. The Trainer needs
    ``remove_unused_columns=False``, because it does not know ``text``. With B rows and S tokens in
    the longest row, a batch has:

        input_ids       (B, S) int64, padded on the right with the model's padding token
        attention_mask  (B, S) int64, 1 at tokens, 0 at padding
        lang_ids        (B,) int64
        labels          (B,) the labels of the rows; with ``mask_rate``: (B, S) int64, the ids of
                        the hidden tokens, -100 elsewhere

    Args:
        model: loaded from a folder or hub id that has the tokenizers of its languages; see its
            ``tokenizer_for``.
        length: tokens in a row at most, with special tokens; longer texts are cut. ``None``: the
            number of the model's positions.
        mask_rate: share of each row's ordinary tokens to hide: 80 % by the mask token, 10 % by
            another token, 10 % stay as they are. Torch's random numbers choose them, as in
            transformers' collators. ``None``: hide no token.
        lang_ids: ``given`` or ``auto``.
        default: with ``auto``, the language of texts that are in no language of the model;
            ``nearest``: the one that is spelt most alike.

    Raises:
        UserError: a row lacks text or language; ``length`` or ``mask_rate`` is out of range; the
            language of a text is not recognised and has no ``default``; nothing is kept beside the
            model to recognise languages by.
        UnknownLanguageError: the model does not have the language.
    """

    def __init__(
        self,
        model: XmodPreTrainedModel,
        *,
        length: int | None = None,
        mask_rate: float | None = None,
        lang_ids: str = "given",
        default: str | None = None,
    ):
        config = model.config
        positions = config.positions
        if length is not None and not 2 < length <= positions:
            raise UserError(
                f"length is {length}; allowed are 3 to {positions}, the positions of this model"
            )
        if mask_rate is not None and not 0 < mask_rate < 1:
            raise UserError(
                f"mask_rate is {mask_rate}; allowed are numbers between 0 and 1, and None"
            )
        if lang_ids not in ("given", "auto"):
            raise UserError(
                f"lang_ids is {lang_ids!r}; allowed are 'given' and 'auto'. xmod_lab.recognise("
                "model, texts, by='loss') chooses by the lowest loss"
            )
        if default is not None and lang_ids == "given":
            raise UserError("leave default out, or set lang_ids='auto': all languages are given")
        self.default = default_of(default, config)
        self.recogniser = recogniser_of(model) if lang_ids == "auto" else None
        self.model, self.length, self.mask_rate = model, length or positions, mask_rate
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        codes = self._codes(rows)
        encoded = [self._encode(row["text"], code) for row, code in zip(rows, codes, strict=True)]
        padded = pad(encoded, self.model.config.pad_token_id)
        ids = padded["input_ids"]
        batch = {
            "attention_mask": torch.from_numpy(padded["attention_mask"]),
            "lang_ids": torch.tensor([self.model.lang_id(c) for c in codes]),
        }
        if self.mask_rate is not None:
            labels = np.full_like(ids, IGNORE)
            for number, (tokens, code) in enumerate(zip(encoded, codes, strict=True)):
                span = slice(0, len(tokens))
                masker = Masker.for_tokenizer(self._tokenizers[code], self.mask_rate, "80-10-10")
                seed = torch.randint(2**32, (2,)).tolist()
                ids[number, span], labels[number, span] = masker.mask(tokens, seed)
            batch["labels"] = torch.from_numpy(labels)
        elif any("label" in row or "labels" in row for row in rows):
            batch["labels"] = torch.tensor(
                [row["label"] if "label" in row else row["labels"] for row in rows]
            )
        return {"input_ids": torch.from_numpy(ids), **batch}

    def _codes(self, rows: Sequence[Mapping]) -> list[str]:
        """The language of each row, given or recognised."""
        wanted = ("text", "language") if self.recogniser is None else ("text",)
        for number, row in enumerate(rows):
            for key in wanted:
                if key not in row:
                    raise UserError(
                        "set remove_unused_columns=False if this is the Trainer: "
                        f"row {number} of the batch has no '{key}'; it has "
                        f"{', '.join(row) or 'nothing'}"
                    )
            text = row["text"]
            parts = [text] if isinstance(text, str) else text
            if not isinstance(parts, list | tuple) or not all(isinstance(p, str) for p in parts):
                raise UserError(
                    f"leave row {number} of the batch out, or write its text: it is {text!r}"
                )
        if self.recogniser is None:
            return [self.model.config.resolve(row["language"]) for row in rows]
        texts = [row["text"] for row in rows]
        texts = [text if isinstance(text, str) else " ".join(text) for text in texts]
        found = chosen(self.recogniser.recognise(texts), texts, self.default)
        return [one.code for one in found]

    def _encode(self, text: str | Sequence[str], code: str) -> np.ndarray:
        """(S,) token ids of a text, or of a pair of texts, with special tokens."""
        if code not in self._tokenizers:
            self._tokenizers[code] = self.model.tokenizer_for(code)
        texts = [text] if isinstance(text, str) else text
        return np.array(
            self._tokenizers[code](*texts, truncation=True, max_length=self.length)["input_ids"]
        )
