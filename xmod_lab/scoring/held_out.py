"""How good a model is at a language: loss and bits per byte of its held-out text.

The masks are fixed: two models, or two steps of one training, are scored on the same tokens.

The *loss* is per token. For masked models, 15 % of the ordinary tokens of every validation row are
hidden behind <mask>, whatever the training masks. It is the training curve. It compares only models
with the same vocabulary: with shorter tokens, more of the same word stays visible. Causal models
predict every token and the end of every passage. Their loss is the exact code length of the text as
the vocabulary normalises it.

*Bits per byte* compare vocabularies: what is hidden is chosen in the text, see
:mod:`xmod_lab.scoring.passages`. They count all UTF-8 bytes (NFC) of the scored passages. Masked
models are scored on ``data.score_passages`` passages of each language. Two charges are added. Bytes
that a vocabulary cannot spell (<unk>) cost 8 bits each. Differences that its normalisation removes
cost a code that restores them (``respelling_bits``, see :mod:`xmod_lab.text.normalisation`).

All is computed in float32. Every figure has ``…/low`` and ``…/high``, the ends of its interval.
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from xmod_lab.config.schema import PretrainConfig
from xmod_lab.errors import UserError
from xmod_lab.labels import IGNORE
from xmod_lab.languages.embeddings import log_frequency
from xmod_lab.model import XmodLanguageModel
from xmod_lab.scoring.passages import Passages, interval, labelled_nats, sample_of
from xmod_lab.text.batches import Layout, to_batch
from xmod_lab.text.corpus import Corpus, Prepared
from xmod_lab.text.masking import Masker, NextToken
from xmod_lab.text.objectives import EVALUATION_RATE, Objective

_EVALUATION_SEED = 15
_ROWS = 64  # rows scored at once; fixed, so that figures do not depend on the training batch
Figures = dict[str, float]


def held_out(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, objective: Objective
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, T) ids of the validation text, and (rows,) tokens that masked evaluation hides.

    Raises:
        UserError: no token can be hidden in any row, so the language has no score.
    """
    rows = corpus.rows("validation", np.arange(len(corpus.validation)))
    ordinary, hidden = _hidden_counts(rows, tokenizer)
    if objective.likelihood.many_passes and not hidden.any():
        raise UserError(
            "give more held-out text (validation), set a larger data.validation_share, or use a "
            f"vocabulary that has its letters: the held-out text of {corpus.code} has "
            f"{ordinary.sum()} token(s) that can be hidden, and {EVALUATION_RATE:.0%} of each row "
            "rounds to 0"
        )
    return rows, hidden


def _hidden_counts(
    rows: np.ndarray, tokenizer: PreTrainedTokenizerBase
) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) ordinary tokens of each row, and how many of them masked evaluation hides."""
    ordinary = (~np.isin(rows, tokenizer.all_special_ids)).sum(1)
    return ordinary, np.rint(EVALUATION_RATE * ordinary).astype(int)


class FixedMasks(Sequence):
    """The (inputs, labels) of each row, made from its key when they are asked for.

    Args:
        rows: (R, T) ids.
        hidden: (R,) how many tokens of each are hidden.
    """

    def __init__(self, hider: Masker | NextToken, rows: np.ndarray, hidden: np.ndarray):
        self.hider, self.rows, self.hidden = hider, rows, hidden

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int | slice) -> tuple | list[tuple[np.ndarray, np.ndarray]]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        row = self.rows[place]
        key = [_EVALUATION_SEED, zlib.crc32(row.tobytes()), range(len(self))[place]]
        return self.hider.mask(row, key, count=int(self.hidden[place]))


class Targets:
    """Rows (R, T) of the language ``code``. ``masked``: the (inputs, labels) of each row."""

    def __init__(
        self,
        code: str,
        rows: np.ndarray,
        masked: Sequence[tuple[np.ndarray, np.ndarray]],
        layout: Layout,
    ):
        self.code, self.rows, self.masked, self.layout = code, rows, masked, layout

    @property
    def targets(self) -> np.ndarray:
        """(predicted,) ids of the tokens to predict."""
        return np.concatenate([labels[labels != IGNORE] for _, labels in self.masked])

    @cached_property
    def predicted(self) -> np.ndarray:
        """(R,) how many tokens of each row are to be predicted."""
        return np.array([int((labels != IGNORE).sum()) for _, labels in self.masked])

    @torch.inference_mode()
    def nats(self, model: XmodLanguageModel, slot: str | None = None) -> np.ndarray:
        """(R,) nats of the predicted tokens of each row, in float32, on the model's device.

        The model is in evaluation mode. ``slot``: the slot that the text goes through, by default
        that of its language. The vocabulary is always that of its language.
        """
        was_training, total = model.training, np.zeros(len(self.rows))
        model.eval()
        with torch.autocast(model.device.type, enabled=False):
            for part, batch in self.batches(model):
                rows, nats = labelled_nats(model, self.code, batch, slot)
                np.add.at(total[part], rows, nats)
        model.train(was_training)
        return total

    def loss(self, model: XmodLanguageModel) -> float:
        """Nats per predicted token."""
        return float(self.nats(model).sum() / self.predicted.sum())

    def batches(self, model: XmodLanguageModel) -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
        """For each batch its rows, and the batch on the model's device, where it has labels."""
        lang_id, rows, masked = model.lang_id(self.code), self.rows, self.masked
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            batch = to_batch(rows[part], masked[part], [lang_id] * len(rows[part]), self.layout)
            if (batch["labels"] != IGNORE).any():
                yield (
                    part,
                    {k: v if k == "lang_ids" else v.to(model.device) for k, v in batch.items()},
                )

    def unigram_nats(self, counts: np.ndarray) -> np.ndarray:
        """(R,) nats of each row if tokens are guessed by their frequency, ``counts`` (V,).

        A model has to beat this.
        """
        cost = -log_frequency(counts).double().numpy()
        return np.array([cost[labels[labels != IGNORE]].sum() for _, labels in self.masked])

    def unigram_loss(self, counts: np.ndarray) -> float:
        """Nats per predicted token of the same guesses."""
        return float(self.unigram_nats(counts).sum() / self.predicted.sum())


class FixedTargets(Targets):
    """Rows (R, T) of the language ``code`` with masks that never change."""

    def __init__(
        self,
        code: str,
        rows: np.ndarray,
        tokenizer: PreTrainedTokenizerBase,
        objective: Objective,
        *,
        attention: str = "document",
    ):
        hidden = _hidden_counts(rows, tokenizer)[1]
        masked = FixedMasks(objective.evaluation(tokenizer), rows, hidden)
        super().__init__(code, rows, masked, objective.layout(tokenizer, attention))


class Scorer(Targets):
    """One language's validation text with its fixed labels. Raises UserError if it has no labels.

    Its rows and masks are made when they are used, and not kept: there may be many languages.

    Args:
        most: number of passages for bits per byte, if these take many passes; ``None``: all.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        objective: Objective,
        *,
        attention: str = "document",
        most: int | None = None,
    ):
        self.code, self.corpus, self.tokenizer = corpus.code, corpus, tokenizer
        self.objective, self.layout = objective, objective.layout(tokenizer, attention)
        self.most = most if objective.likelihood.many_passes else None
        self._hidden = held_out(corpus, tokenizer, objective)[1]
        self._hider = objective.evaluation(tokenizer)

    @property
    def rows(self) -> np.ndarray:
        """(R, T) ids."""
        return self.corpus.rows("validation", np.arange(len(self.corpus.validation)))

    @property
    def masked(self) -> FixedMasks:
        """The (inputs, labels) of each row."""
        return FixedMasks(self._hider, self.rows, self._hidden)

    @property
    def counts(self) -> np.ndarray:
        """(V,) how often training can predict each token."""
        return self.objective.target_counts(self.corpus, self.tokenizer)

    @cached_property
    def passages(self) -> Passages:
        """The held-out passages for bits per byte."""
        manifest = self.corpus.manifest
        text = manifest["statistics"]["validation"]
        return Passages(
            self.code,
            sample_of(self.corpus, self.most),
            self.tokenizer,
            self.objective,
            length=manifest["settings"]["length"],
            respelling=text["respelling_bits"] / text["bytes"],
        )

    def score(self, model: XmodLanguageModel) -> tuple[float, float]:
        """Nats per predicted token, and bits per byte."""
        return self.loss(model), float(self.passages.bits(model).sum() / self.passages.sizes.sum())

    def loss_figures(self, model: XmodLanguageModel, prefix: str) -> Figures:
        """``{prefix}/loss/<code>`` with its interval over rows."""
        return named_with_interval(f"{prefix}/loss/{self.code}", self.nats(model), self.predicted)

    def bits_figures(self, bits: np.ndarray, prefix: str) -> Figures:
        """``{prefix}/bpb/<code>`` from ``bits`` (P,) of passages, with its interval over them."""
        return named_with_interval(f"{prefix}/bpb/{self.code}", bits, self.passages.sizes)

    def unigram(self) -> Figures:
        """``unigram/loss/<code>`` and ``unigram/bpb/<code>``.

        Each token is guessed by its frequency in the training text.
        """
        loss = named_with_interval(
            f"unigram/loss/{self.code}", self.unigram_nats(self.counts), self.predicted
        )
        return loss | self.bits_figures(self.passages.unigram_bits(self.counts), "unigram")


def scorers_of(prepared: Prepared, cfg: PretrainConfig) -> dict[str, Scorer]:
    """A scorer for each language of ``prepared``."""
    return {
        code: Scorer(
            corpus,
            prepared.tokenizer,
            cfg.objective,
            attention=cfg.data.attention,
            most=cfg.data.score_passages,
        )
        for code, corpus in prepared.corpora.items()
    }


def named_with_interval(name: str, sums: np.ndarray, sizes: np.ndarray) -> Figures:
    """``sums.sum() / sizes.sum()``, both (N,), under ``name``.

    ``…/low`` and ``…/high`` are added if the sample is large enough for an interval.
    """
    ends = interval(sums, sizes)
    told = {} if ends is None else {f"{name}/low": ends[0], f"{name}/high": ends[1]}
    return {name: float(sums.sum() / sizes.sum()), **told}


@contextmanager
def on_device(model: XmodLanguageModel, accelerator: str) -> Iterator[None]:
    """``model`` on the GPU meanwhile, if there is one and ``trainer.accelerator`` allows it."""
    home = model.device
    model.to("cuda" if torch.cuda.is_available() and accelerator != "cpu" else home)
    try:
        yield
    finally:
        model.to(home)


def score_losses(
    model: XmodLanguageModel, scorers: dict[str, Scorer], *, prefix: str = "val"
) -> Figures:
    """``{prefix}/loss/<code>`` of every language, as in metrics.json."""
    return {
        name: value
        for s in scorers.values()
        for name, value in s.loss_figures(model, prefix).items()
    }


def score_passages(
    model: XmodLanguageModel, scorers: dict[str, Scorer], *, prefix: str = "val"
) -> tuple[Figures, dict[str, dict]]:
    """``{prefix}/bpb/<code>`` of every language, as in metrics.json.

    Returns:
        The figures; and by code, the bits of each passage, as in passages.json.
    """
    figures, records = {}, {}
    for code, scorer in tqdm(
        scorers.items(), "bits per byte of held-out text", leave=False, disable=None
    ):
        bits = scorer.passages.bits(model)
        figures |= scorer.bits_figures(bits, prefix)
        records[code] = scorer.passages.record(bits)
    return figures, records


def unigram_all(scorers: dict[str, Scorer]) -> Figures:
    """``unigram/loss/<code>`` and ``unigram/bpb/<code>`` of every language."""
    return {name: value for scorer in scorers.values() for name, value in scorer.unigram().items()}
