"""Slots that keep the sentence vectors of the base: distillation (Reimers & Gurevych 2020).

Training on masked words alone moves the vectors of a language away from those of its translations.
Here the student is the model through the slot of each language, and the teacher is the same model
through no slot, in the vocabulary of the base. The vectors of a passage are to be alike:

    loss = loss of the objective + weight · mean over passages |s/|s| − t/|t||²

with the pooled last states s and t. Nothing of the teacher trains, so it is no second model. Both
read the same masked tokens; of a language with a vocabulary of its own the teacher reads the whole
text, and the student the masked one. A base whose body never trained without slots is no teacher.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase

from xmod_lab.codes import NO_SLOT
from xmod_lab.config.schema import PretrainConfig
from xmod_lab.errors import UserError
from xmod_lab.model import XmodConfig, XmodLanguageModel
from xmod_lab.model.fast.tied_lookup import Matrices
from xmod_lab.model.sentence_vectors import VectorSettings, pooled_passages
from xmod_lab.scoring.held_out import Scorer
from xmod_lab.text.corpus import Prepared
from xmod_lab.text.teaching import Teaching

# B rows, S positions; P passages; D model

_NOT_OF_THE_ENCODER = (  # fields of a batch, see Teaching
    "passages",
    "edges",
    "teacher_ids",
    "teacher_positions",
    "teacher_passages",
    "teacher_edges",
    "passages_in_step",
)
_ROWS = 16  # of the held-out text of each language, by which the distance is scored


class Distillation:
    """The distance of vectors through slots to those through no slot, in a loss and as a score.

    Args:
        reader: a language of the base with the base's vocabulary: the teacher reads by its table.
    """

    def __init__(self, model: XmodLanguageModel, teaching: Teaching, weight: float, reader: str):
        self.teaching, self.weight = teaching, weight
        self.reader, self.pooling = model.lang_id(reader), VectorSettings.of(model.config).pooling

    def loss(self, model: XmodLanguageModel, batch: dict[str, Tensor]) -> Tensor:
        """The whole loss of a micro-batch of :class:`xmod_lab.text.batches.BatchStream`."""
        read = {name: value for name, value in batch.items() if name not in _NOT_OF_THE_ENCODER}
        labels, items = read.pop("labels"), read.pop("num_items_in_batch", None)
        matrices: Matrices = {}
        out = model.base_model.encode(**read, matrices=matrices)
        loss = model.labelled_loss(out, labels, matrices, items)
        apart = self.distances(model, out.states, read, batch)
        return loss + self.weight * apart.sum() / batch.get("passages_in_step", len(apart))

    def distances(
        self,
        model: XmodLanguageModel,
        states: Tensor,
        read: dict[str, Tensor],
        batch: dict[str, Tensor],
    ) -> Tensor:
        """(P,) squared distances of vectors of length 1, from 0 to 4, in float32.

        Args:
            states: (B, S, D) of the student, who has ``read`` these arguments of the encoder.
        """
        with torch.no_grad(), _without_dropout(model):
            teacher = self._teacher(model, read, batch)
        student = pooled_passages(states, batch["passages"], batch["edges"], self.pooling)
        return (normalize(student, dim=1) - normalize(teacher, dim=1)).square().sum(1)

    def held_out(self, model: XmodLanguageModel, scorer: Scorer) -> float:
        """The mean distance on passages of held-out text, of which nothing is masked."""
        all_rows = len(scorer.corpus.validation)
        chosen = np.unique(np.linspace(0, all_rows - 1, min(_ROWS, all_rows)).astype(int))
        rows = scorer.corpus.rows("validation", chosen).astype(np.int64)
        read = {"input_ids": torch.from_numpy(rows), **scorer.layout.fields(rows, rows)}
        more = self.teaching.fields(rows)
        read, more = ({k: v.to(model.device) for k, v in each.items()} for each in (read, more))
        read["lang_ids"] = torch.full((len(rows),), model.lang_id(scorer.code))
        whole = torch.autocast(model.device.type, enabled=False)
        with torch.no_grad(), _without_dropout(model), whole:
            states = model.base_model.encode(**read).states
            return float(self.distances(model, states, read, more).mean())

    def _teacher(
        self, model: XmodLanguageModel, read: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> Tensor:
        """(P, D)."""
        own = "teacher_" if self.teaching.teacher is not None else ""
        if own:
            read = {
                "input_ids": batch["teacher_ids"],
                "position_ids": batch["teacher_positions"],
                "documents": batch["teacher_passages"],
            }
        # the table of the base, also where the language has another one with the same tokens
        reader = torch.full((len(read["input_ids"]),), self.reader)
        out = model.base_model.encode(**{**read, "lang_ids": reader}, slot=NO_SLOT)
        passages = batch[f"{own}passages"].to(out.x.device)
        return pooled_passages(out.states, passages, batch[f"{own}edges"], self.pooling)


def distillation_of(
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    prepared: Prepared,
    base_tokenizer: PreTrainedTokenizerBase,
) -> Distillation | None:
    """What ``task.distillation`` adds to the training on ``prepared``; ``None``: nothing.

    Raises:
        UserError: see :func:`reader_of`.
    """
    reader = reader_of(cfg, model.config)
    if reader is None:
        return None
    same = prepared.tokenizer.get_vocab() == base_tokenizer.get_vocab()
    teacher = None if same else base_tokenizer
    teaching = Teaching(prepared.tokenizer, teacher, model.config.positions)
    return Distillation(model, teaching, cfg.distillation, reader)


def reader_of(cfg: PretrainConfig, config: XmodConfig) -> str | None:
    """The language in whose table the teacher reads; ``None`` without ``task.distillation``.

    Raises:
        UserError: passages have no vectors of their own, or no language has the base's vocabulary.
    """
    if not cfg.distillation:
        return None
    if cfg.data.attention != "document":
        raise UserError(
            f"set data.attention=document, or leave task.distillation={cfg.distillation:g} out: "
            f"data.attention is {cfg.data.attention}, and a passage then has no vector of its own"
        )
    own = config.vocabularies or {}
    reader = next((code for code in config.languages if code not in own), None)
    if reader is None:
        raise UserError(
            f"leave task.distillation={cfg.distillation:g} out, or give another base: the teacher "
            "reads in the vocabulary of the base, and all its languages have vocabularies of "
            f"their own ({', '.join(own)})"
        )
    return reader


@contextmanager
def _without_dropout(model: XmodLanguageModel) -> Iterator[None]:
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
