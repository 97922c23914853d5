"""How good a model is at a language: loss and bits per byte of its held-out text, which never change.

Masked models: evaluation hides 15 % of the ordinary pieces of every validation row behind <mask>, whatever training does,
and computes in float32. It is a pseudo-likelihood, since each piece is predicted from both sides. Causal models predict
every piece and the end of every passage: their loss is the exact code length of the text as the vocabulary normalises it.

Bits per byte are over all UTF-8 bytes of the text, composed (NFC), so that different vocabularies and normalisations can be compared
by them. What a vocabulary cannot spell is charged as the raw bytes that <unk> stands for, 8 bits each; what its normalisation
makes alike, as a code that tells it apart (``respelling_bits``, see :mod:`xmod_lab.text.normalisation`); beside what the model pays:

    masked  (loss in bits × known pieces + charges) / bytes      the text has ``tokens - unknown`` known pieces
    causal  (loss in bits × predicted pieces + charges) / bytes  <unk> is predicted as well, then spelt
    charges = 8 × unknown bytes + respelling bits
"""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError
from xmod_lab.languages.embeddings import log_frequency
from xmod_lab.model import IGNORE, XmodLanguageModel
from xmod_lab.text.batches import Layout, to_batch
from xmod_lab.text.objective import EVALUATION_RATE, Objective
from xmod_lab.text.rows import Corpus

_EVALUATION_SEED = 15
_BITS_UNKNOWN = 8  # for each byte that no piece spells: its raw value
_ROWS = 64  # rows scored at once; fixed, so that figures do not depend on the training batch


@dataclass(frozen=True)
class Score:
    """``loss``: nats per predicted piece; ``bpb``: bits per UTF-8 byte of the text, where what the
    vocabulary does not tell is charged; see the head of this file."""

    loss: float
    bpb: float
    predicted: int


def held_out(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, objective: Objective) -> tuple[np.ndarray, np.ndarray]:
    """(rows, T) ids of the validation text, and (rows,) how many pieces of each row masked evaluation hides.

    Raises:
        UserError: none in any row, so that there is no score.
    """
    rows = corpus.rows("validation", np.arange(len(corpus.validation)))
    ordinary, hidden = _hidden_counts(rows, tokenizer)
    if not objective.causal and not hidden.any():
        raise UserError(f"the held-out text of {corpus.code} has {ordinary.sum()} piece(s) that can be hidden, "
                        f"{EVALUATION_RATE:.0%} of a row is to be hidden, and that rounds to none; give more held-out text "
                        "(validation), set a larger data.validation_share, or use a vocabulary that has its letters")  # fmt: skip
    return rows, hidden


def _hidden_counts(rows: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) ordinary pieces of each row, and how many of them masked evaluation hides."""
    ordinary = (~np.isin(rows, tokenizer.all_special_ids)).sum(1)
    return ordinary, np.rint(EVALUATION_RATE * ordinary).astype(int)


class Targets:
    """Rows (R, T) of the language ``code``, and what is to be predicted in them: ``masked``, (inputs, labels) of each row."""

    def __init__(self, code: str, rows: np.ndarray, masked: list[tuple[np.ndarray, np.ndarray]], layout: Layout):
        self.code, self.rows, self.masked, self.layout = code, rows, masked, layout

    @property
    def targets(self) -> np.ndarray:
        """(predicted,) ids of the pieces to be predicted."""
        return np.concatenate([labels[labels != IGNORE] for _, labels in self.masked])

    @torch.inference_mode()
    def loss(self, model: XmodLanguageModel) -> float:
        """Nats per predicted piece, in float32 and evaluation mode, on the model's device."""
        was_training = model.training
        model.eval()
        total, count = 0.0, 0
        with torch.autocast(model.device.type, enabled=False):
            for _, batch in self.batches(model):
                labelled = int((batch["labels"] != IGNORE).sum())
                total += float(model(**batch, full_logits=False).loss) * labelled
                count += labelled
        model.train(was_training)
        return total / count

    def batches(self, model: XmodLanguageModel) -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
        """The rows that a batch is made of, and the batch, on the model's device; those without a label are left out."""
        lang_id = model.lang_id(self.code)
        for start in range(0, len(self.rows), _ROWS):
            part = slice(start, start + _ROWS)
            batch = to_batch(self.rows[part], self.masked[part], [lang_id] * len(self.rows[part]), self.layout)
            if (batch["labels"] != IGNORE).any():
                yield part, {k: v if k == "lang_ids" else v.to(model.device) for k, v in batch.items()}

    def unigram_loss(self, counts: np.ndarray) -> float:
        """Nats per predicted piece of guessing each by its frequency: what a model has to beat. ``counts`` (V,)."""
        return float(-log_frequency(counts).double()[torch.from_numpy(self.targets)].mean())


class FixedTargets(Targets):
    """Rows (R, T) of the language ``code``, and what is to be predicted in them, which never changes."""

    def __init__(self, code: str, rows: np.ndarray, tokenizer: PreTrainedTokenizerBase, objective: Objective):
        key, hider = zlib.crc32(code.encode()), objective.evaluation(tokenizer)
        hidden = _hidden_counts(rows, tokenizer)[1]
        masked = [
            hider.mask(row, [_EVALUATION_SEED, key, i], count=n)
            for i, (row, n) in enumerate(zip(rows, hidden.tolist(), strict=True))
        ]
        super().__init__(code, rows, masked, objective.layout(tokenizer))


class Scorer(FixedTargets):
    """One language's validation text with its fixed targets. Raises UserError when there are none."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, objective: Objective):
        super().__init__(corpus.code, held_out(corpus, tokenizer, objective)[0], tokenizer, objective)
        self.corpus, self.objective = corpus, objective
        self.counts = objective.target_counts(corpus, tokenizer)

    def score(self, model: XmodLanguageModel) -> Score:
        """Score ``model`` on this language; see :meth:`Targets.loss`."""
        return self.score_of(self.loss(model))

    def unigram(self) -> Score:
        """Score of guessing each piece by its frequency in the training text."""
        return self.score_of(self.unigram_loss(self.counts))

    def score_of(self, loss: float) -> Score:
        """The score of a ``loss`` in nats per predicted piece."""
        predicted = len(self.targets)
        text = self.corpus.manifest["statistics"]["validation"]
        pieces = predicted if self.objective.causal else text["tokens"] - text["unknown"]
        bits = loss / math.log(2) * pieces + _BITS_UNKNOWN * text["unknown_bytes"] + text["respelling_bits"]
        return Score(loss, bits / text["bytes"], predicted)


@contextmanager
def on_device(model: XmodLanguageModel, accelerator: str) -> Iterator[None]:
    """``model`` on the GPU meanwhile, if there is one and ``trainer.accelerator`` allows it."""
    home = model.device
    model.to("cuda" if torch.cuda.is_available() and accelerator != "cpu" else home)
    try:
        yield
    finally:
        model.to(home)


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
