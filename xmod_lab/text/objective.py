"""What a language model learns to predict: hidden pieces (masked) or every next piece (causal), in training and scoring."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from xmod_lab.text.batches import Layout
from xmod_lab.text.masking import IGNORE, Masker
from xmod_lab.text.rows import Corpus

EVALUATION_RATE = 0.15


@dataclass(frozen=True)
class NextPiece:
    """Every piece of a passage is predicted from those before it, the first from ``<s>``, the end of the passage included."""

    pad_id: int
    bos_id: int

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """(R,) pieces that are predicted in each of ``rows`` (R, T)."""
        return ((rows != self.pad_id) & (rows != self.bos_id)).sum(1)

    def mask(
        self, row: np.ndarray, key: list[int], *, count: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, labels) of ``row`` (T,): nothing is hidden, nothing is random. The model shifts the labels."""
        inputs = row.astype(np.int64)
        return inputs, np.where((inputs == self.pad_id) | (inputs == self.bos_id), IGNORE, inputs)


@dataclass(frozen=True)
class Objective:
    """``mlm``: masked (Devlin et al. 2019); ``clm``: causal, left to right.

    Args:
        mask_rate, mask_policy, mask_unit: of masked training, see :class:`Masker`.
        attention: see :class:`xmod_lab.text.batches.Layout`.
        score_passages: how many held-out passages of a language bits per byte are of, of a masked model; ``None``: all.
    """

    name: str
    mask_rate: float
    mask_policy: str
    attention: str
    mask_unit: str = "piece"
    score_passages: int | None = None

    @property
    def causal(self) -> bool:
        return self.name == "clm"

    def training(self, tokenizer: PreTrainedTokenizerBase) -> Masker | NextPiece:
        """What hides pieces in training."""
        if self.causal:
            return NextPiece(tokenizer.pad_token_id, tokenizer.bos_token_id)
        return Masker.for_tokenizer(tokenizer, self.mask_rate, self.mask_policy, self.mask_unit)

    def evaluation(self, tokenizer: PreTrainedTokenizerBase) -> Masker | NextPiece:
        """What hides pieces in scoring by loss: always 15 %, each by itself, always behind the mask, whatever training does."""
        if self.causal:
            return NextPiece(tokenizer.pad_token_id, tokenizer.bos_token_id)
        return Masker.for_tokenizer(tokenizer, EVALUATION_RATE, "all-mask")

    def layout(self, tokenizer: PreTrainedTokenizerBase) -> Layout:
        """Who may attend to whom."""
        return Layout(
            self.attention, tokenizer.pad_token_id, tokenizer.eos_token_id, causal=self.causal
        )

    def target_counts(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
        """(V,) how often each piece is there to be predicted in the training text of ``corpus``."""
        counts = corpus.piece_counts.copy()
        if not self.causal:
            counts[tokenizer.unk_token_id] = 0  # never hidden
        else:
            counts[tokenizer.eos_token_id] += corpus.manifest["statistics"]["train"]["passages"]
        return counts
