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

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase

from xmod_lab.codes import NO_SLOT
from xmod_lab.config.schema import PretrainConfig
from xmod_lab.errors import UserError
from xmod_lab.model import XmodLanguageModel
from xmod_lab.model.fast.tied_lookup import Matrices
from xmod_lab.model.sentence_vectors import VectorSettings, pooled
from xmod_lab.scoring.held_out import Scorer
from xmod_lab.text.corpus import Prepared
from xmod_lab.text.teaching import Teaching

# B rows, S positions; P passages, L tokens of the longest one; D model

_MORE = ("places", "teacher_ids", "teacher_mask", "passages_in_step")  # of Teaching
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
        read = {name: value for name, value in batch.items() if name not in _MORE}
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
        student = self._passages(states, batch["places"])
        return (normalize(student, dim=1) - normalize(teacher, dim=1)).square().sum(1)

    def held_out(self, model: XmodLanguageModel, scorer: Scorer) -> float:
        """The mean distance on passages of held-out text, of which nothing is masked."""
        count = min(_ROWS, len(scorer.corpus.validation))
        rows = scorer.corpus.rows("validation", range(count))
        read = {
            "input_ids": torch.from_numpy(rows.astype("int64")),
            **scorer.layout.fields(rows, rows),
        }
        more = self.teaching.fields(rows)
        read, more = ({k: v.to(model.device) for k, v in each.items()} for each in (read, more))
        read["lang_ids"] = torch.full((count,), model.lang_id(scorer.code))
        with (
            torch.no_grad(),
            _without_dropout(model),
            torch.autocast(model.device.type, enabled=False),
        ):
            states = model.base_model.encode(**read).states
            return float(self.distances(model, states, read, more).mean())

    def _teacher(
        self, model: XmodLanguageModel, read: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> Tensor:
        """(P, D)."""
        if self.teaching.teacher is None:
            states = model.base_model.encode(**read, slot=NO_SLOT).states
            return self._passages(states, batch["places"])
        ids, mask = batch["teacher_ids"], batch["teacher_mask"]
        reader = torch.full((len(ids),), self.reader)
        out = model.base_model.encode(ids, reader, attention_mask=mask, slot=NO_SLOT)
        return pooled(out.states, mask, self.pooling)

    def _passages(self, states: Tensor, places: Tensor) -> Tensor:
        """(P, D) the vectors of the passages at ``places`` (P, L) of ``states`` (B, S, D)."""
        found = states.flatten(0, 1).index_select(0, places.clamp(min=0).flatten())
        return pooled(found.view(*places.shape, -1), (places >= 0).long(), self.pooling)


def distillation_of(
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    prepared: Prepared,
    base_tokenizer: PreTrainedTokenizerBase,
) -> Distillation | None:
    """What ``task.distillation`` adds to the training on ``prepared``; ``None``: nothing.

    Raises:
        UserError: all languages have a vocabulary of their own, so none is the teacher's.
    """
    if not cfg.distillation:
        return None
    own = model.config.vocabularies or {}
    reader = next((code for code in model.languages if code not in own), None)
    if reader is None:
        raise UserError(
            "leave task.distillation out, or give another base: the teacher reads in the "
            "vocabulary of the base, and no language has that one"
        )
    same = prepared.tokenizer.get_vocab() == base_tokenizer.get_vocab()
    room = model.config.max_position_embeddings - model.config.pad_token_id - 1
    teaching = Teaching(prepared.tokenizer, None if same else base_tokenizer, room)
    return Distillation(model, teaching, cfg.distillation, reader)


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
