"""How good a model is at a language: masked loss and bits per byte, on masks that never change.

Evaluation hides 15 % of the ordinary pieces of every validation row behind [MASK], whatever training does, and computes
in float32. Bits per byte = loss in bits × pieces of the text / UTF-8 bytes of the text, which different vocabularies
can be compared by. It is a pseudo-likelihood, since each piece is predicted from both sides.
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from xmod_lab.languages.embeddings import log_frequency
from xmod_lab.model import IGNORE, XmodForMaskedLM
from xmod_lab.text.batches import Layout, to_batch
from xmod_lab.text.masking import Masker
from xmod_lab.text.rows import Corpus

EVALUATION_RATE = 0.15
_EVALUATION_SEED = 15
_ROWS = 64  # rows scored at once; fixed, so that figures do not depend on the training batch


@dataclass(frozen=True)
class Score:
    """``loss``: nats per hidden piece; ``bpb``: bits per UTF-8 byte of the text."""

    loss: float
    bpb: float
    masked: int


class Scorer:
    """One language's validation text with its fixed masks. ``layout`` as in training."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, attention: str):
        self.corpus = corpus
        self.layout = Layout(attention, tokenizer.pad_token_id, tokenizer.eos_token_id)
        self.masker = Masker.for_tokenizer(tokenizer, EVALUATION_RATE, "all-mask")
        self.rows = corpus.rows("validation", np.arange(len(corpus.validation)))  # (rows, T)
        code = zlib.crc32(corpus.code.encode())
        ordinary = (~np.isin(self.rows, self.masker.specials)).sum(1)
        self.masked = [
            self.masker.mask(row, [_EVALUATION_SEED, code, i], count=round(EVALUATION_RATE * int(n)))
            for i, (row, n) in enumerate(zip(self.rows, ordinary, strict=True))
        ]

    @torch.inference_mode()
    def score(self, model: XmodForMaskedLM) -> Score:
        """Score ``model`` on this language, in float32 and evaluation mode, on the model's device."""
        was_training = model.training
        model.eval()
        lang_id, device = model.lang_id(self.corpus.code), model.device
        total, count = 0.0, 0
        with torch.autocast(device.type, enabled=False):
            for start in range(0, len(self.rows), _ROWS):
                part = slice(start, start + _ROWS)
                batch = to_batch(self.rows[part], self.masked[part], [lang_id] * len(self.rows[part]), self.layout)
                labelled = int((batch["labels"] != IGNORE).sum())
                if labelled:
                    on_device = {k: v if k == "lang_ids" else v.to(device) for k, v in batch.items()}
                    total += float(model(**on_device).loss) * labelled
                    count += labelled
        model.train(was_training)
        return self._score(total / count, count)

    def unigram(self) -> Score:
        """Score of guessing each hidden piece by its frequency in the training text: what a model has to beat."""
        targets = np.concatenate([labels[labels != IGNORE] for _, labels in self.masked])
        nll = -log_frequency(self.corpus.piece_counts).double()[torch.from_numpy(targets)]
        return self._score(float(nll.mean()), len(targets))

    def _score(self, loss: float, masked: int) -> Score:
        text = self.corpus.manifest["statistics"]["validation"]
        return Score(loss, loss * text["tokens"] / (math.log(2) * text["bytes"]), masked)


def score_all(model: XmodForMaskedLM, scorers: dict[str, Scorer], *, prefix: str = "val") -> dict[str, float]:
    """``{prefix}/loss/<code>`` and ``{prefix}/bpb/<code>`` of every language, as in metrics.json."""
    metrics = {}
    for code, scorer in scorers.items():
        score = scorer.score(model)
        metrics[f"{prefix}/loss/{code}"], metrics[f"{prefix}/bpb/{code}"] = score.loss, score.bpb
    return metrics


def unigram_all(scorers: dict[str, Scorer]) -> dict[str, float]:
    """``unigram/loss/<code>`` and ``unigram/bpb/<code>`` of every language."""
    metrics = {}
    for code, scorer in scorers.items():
        score = scorer.unigram()
        metrics[f"unigram/loss/{code}"], metrics[f"unigram/bpb/{code}"] = score.loss, score.bpb
    return metrics
