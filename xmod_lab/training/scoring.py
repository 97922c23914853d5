"""How good a model is at a language: loss and bits per byte of its held-out text, which never change.

Masked models: evaluation hides 15 % of the ordinary pieces of every validation row behind [MASK], whatever training does,
and computes in float32. Bits per byte = loss in bits × pieces of the text / UTF-8 bytes of the text, which different
vocabularies can be compared by. It is a pseudo-likelihood, since each piece is predicted from both sides. Causal models
predict every piece and the end of every passage: bits per byte are the exact code length of the text.
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from xmod_lab.languages.embeddings import log_frequency
from xmod_lab.model import IGNORE, XmodLanguageModel
from xmod_lab.text.batches import to_batch
from xmod_lab.text.objective import EVALUATION_RATE, Objective
from xmod_lab.text.rows import Corpus

_EVALUATION_SEED = 15
_ROWS = 64  # rows scored at once; fixed, so that figures do not depend on the training batch


@dataclass(frozen=True)
class Score:
    """``loss``: nats per predicted piece; ``bpb``: bits per UTF-8 byte of the text."""

    loss: float
    bpb: float
    predicted: int


class Scorer:
    """One language's validation text with its fixed targets."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, objective: Objective):
        self.corpus, self.objective = corpus, objective
        self.layout = objective.layout(tokenizer)
        self.counts = objective.target_counts(corpus, tokenizer)
        self.rows = corpus.rows("validation", np.arange(len(corpus.validation)))  # (rows, T)
        code, hider = zlib.crc32(corpus.code.encode()), objective.evaluation(tokenizer)
        ordinary = (~np.isin(self.rows, tokenizer.all_special_ids)).sum(1)
        self.masked = [
            hider.mask(row, [_EVALUATION_SEED, code, i], count=round(EVALUATION_RATE * int(n)))
            for i, (row, n) in enumerate(zip(self.rows, ordinary, strict=True))
        ]

    @torch.inference_mode()
    def score(self, model: XmodLanguageModel) -> Score:
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
        """Score of guessing each piece by its frequency in the training text: what a model has to beat."""
        targets = np.concatenate([labels[labels != IGNORE] for _, labels in self.masked])
        nll = -log_frequency(self.counts).double()[torch.from_numpy(targets)]
        return self._score(float(nll.mean()), len(targets))

    def _score(self, loss: float, predicted: int) -> Score:
        text = self.corpus.manifest["statistics"]["validation"]
        pieces = predicted if self.objective.causal else text["tokens"]
        return Score(loss, loss * pieces / (math.log(2) * text["bytes"]), predicted)


def score_all(model: XmodLanguageModel, scorers: dict[str, Scorer], *, prefix: str = "val") -> dict[str, float]:
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
