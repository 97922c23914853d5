"""Slots that keep the sentence vectors of the base: distillation (Reimers & Gurevych 2020).

Training on masked words alone moves the vectors of a language away from those of its translations.
Here the student is the model through the slot of each language. The teacher is an encoder that
stays, ``task.teacher``, or the same model through no slot, in the vocabulary of the base: what a
grown model was before. The vectors of a passage are to be alike:

    loss = loss of the objective + weight · mean over passages |s/|s| − t/|t||²

with the pooled last states s and t. The teacher is no second model where it is the base. In one
vocabulary both read the same masked tokens. In two, the student reads masked tokens and the teacher
the whole text. A base whose body never trained without slots is no teacher.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from xmod_lab.codes import NO_SLOT
from xmod_lab.config.schema import PretrainConfig
from xmod_lab.errors import UserError
from xmod_lab.foreign import at_hand
from xmod_lab.languages.proof import whole_digest
from xmod_lab.languages.sentence_encoding import is_encoder, open_encoder
from xmod_lab.model import XmodLanguageModel, XmodPreTrainedModel, load_language_model
from xmod_lab.model.fast.tied_lookup import Matrices
from xmod_lab.model.growing import check_dense, grow, grown_config, is_dense
from xmod_lab.model.sentence_vectors import VectorSettings, pooled_passages
from xmod_lab.model_folders import model_folder
from xmod_lab.scoring.held_out import Scorer
from xmod_lab.text.corpus import Prepared
from xmod_lab.text.teaching import Teaching
from xmod_lab.text.tokenizer import load_tokenizer, special_ids

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
_ROWS = 16  # of a language's text, by which the distance is scored and the teacher is judged
# a teacher that knows the language takes up to 1.5 tokens for each of a vocabulary made for it
_MANY, _UNKNOWN = 2.0, 0.1
log = logging.getLogger(__name__)


class Distillation:
    """The distance of vectors through slots to those of a teacher, in a loss and as a score.

    Args:
        teacher: an encoder that reads through no slot; ``None``: the model that trains.
        reader: a language of the teacher with the teacher's base vocabulary.
        pooling: of the states, in both.
    """

    def __init__(
        self,
        teaching: Teaching,
        weight: float,
        *,
        teacher: XmodPreTrainedModel | None,
        reader: int,
        pooling: str,
    ):
        self.teaching, self.weight = teaching, weight
        self.teacher, self.reader, self.pooling = teacher, reader, pooling

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
        teacher = model if self.teacher is None else self.teacher.to(model.device)
        out = teacher.base_model.encode(**{**read, "lang_ids": reader}, slot=NO_SLOT)
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
        UserError: see :func:`check_teacher`.
    """
    check_teacher(cfg, model.config)
    if not cfg.distillation:
        return None
    teacher, tokenizer = None, base_tokenizer
    if cfg.task.teacher is not None:
        teacher, tokenizer = open_teacher(cfg.task.teacher)
    config = model.config if teacher is None else teacher.config
    same = prepared.tokenizer.get_vocab() == tokenizer.get_vocab()
    same &= cfg.data.row_length <= config.positions
    return Distillation(
        Teaching(prepared.tokenizer, None if same else tokenizer, config.positions),
        cfg.distillation,
        teacher=teacher,
        reader=config.slot(_reader(config)),
        pooling=VectorSettings.of(model.config).pooling,
    )


def check_teacher(cfg: PretrainConfig, config: PreTrainedConfig | None = None) -> None:
    """See that vectors can be compared, before any work.

    Args:
        config: of the base; ``None``: it is not open yet, and the teacher alone is checked.
    Raises:
        UserError: passages have no vectors of their own, or the teacher cannot be read, reads no
            vocabulary of its own, or has another width.
    """
    if not cfg.distillation:
        return
    given, source = f"task.distillation={cfg.distillation:g}", cfg.task.teacher
    if source is not None:
        teacher = open_teacher(source)[0].config
        if config is not None and teacher.hidden_size != config.hidden_size:
            raise UserError(
                f"give a task.teacher of the width {config.hidden_size}: {source} has vectors of "
                f"{teacher.hidden_size} numbers, the base {config.hidden_size}"
            )
    if config is None:
        return
    if cfg.data.attention != "document":
        raise UserError(
            f"set data.attention=document, or leave {given} out: data.attention is "
            f"{cfg.data.attention}, and a passage then has no vector of its own"
        )
    if source is None and _reader(config) is None:
        raise UserError(
            f"set task.teacher to an encoder, or leave {given} out: without one the teacher reads "
            "in the vocabulary of the base, and all its languages have vocabularies of their own "
            f"({', '.join(config.vocabularies)})"
        )


def open_teacher(source: str) -> tuple[XmodPreTrainedModel, PreTrainedTokenizerBase]:
    """A frozen encoder in float32, and its tokenizer. A dense one gets a slot that adds nothing.

    It is opened once, as long as its files stay as they are.

    Args:
        source: a run, a model folder or a hub id.
    Raises:
        UserError: it cannot be read, or is no encoder of a layout that is known here.
    """
    try:
        folder = model_folder(at_hand(source, "a run, a model folder or a hub id")).resolve()
        changed = max(file.stat().st_mtime_ns for file in folder.iterdir())
        return _opened(folder, changed)
    except UserError as error:
        raise UserError(f"task.teacher {source}: {error}") from error


@lru_cache(maxsize=1)
def _opened(folder: Path, changed: int) -> tuple[XmodPreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = load_tokenizer(str(folder))
    if is_dense(folder):
        dense = check_dense(folder)
        special, size = special_ids(tokenizer), dense.config.vocab_size
        config = grown_config(dense, ["en_XX"], vocab_size=size, special_ids=special)
        model = grow(dense, dense.load(), config, seed=0)
        # positions of BERT count from 0, whatever its configuration says of padding
        pad_id = dense.config.pad_token_id if dense.first_position else tokenizer.pad_token_id
    else:
        encoder = is_encoder(str(folder))
        model = open_encoder(folder) if encoder else load_language_model(str(folder), "its model")
        pad_id = model.config.pad_token_id
    if model.config.is_decoder or _reader(model.config) is None:
        raise UserError(
            "give another one: it is causal, or all its languages have vocabularies of their own"
        )
    if len(tokenizer) > model.config.vocab_size or tokenizer.pad_token_id != pad_id:
        raise UserError(
            f"give the folder with its own tokenizer: that one has {len(tokenizer):,} tokens and "
            f"pads with {tokenizer.pad_token_id}, the model has {model.config.vocab_size:,} "
            f"embeddings and pads with {pad_id}"
        )
    return model.float().requires_grad_(False).eval(), tokenizer


def teacher_facts(cfg: PretrainConfig) -> dict[str, str]:
    """The digest of ``task.teacher``, by which a run knows it again."""
    if not cfg.distillation or cfg.task.teacher is None:
        return {}
    return {"teacher": _digest(open_teacher(cfg.task.teacher)[0])}


# it does not train, and the facts of a run and the record of each language ask for it
_digest = lru_cache(maxsize=1)(whole_digest)


def _reader(config: PreTrainedConfig) -> str | None:
    """A language with the base vocabulary, if there is one. A dense encoder will have some."""
    own = getattr(config, "vocabularies", None) or {}
    return next((code for code in getattr(config, "languages", ["any"]) if code not in own), None)


def warn_of_reading(distillation: Distillation | None, prepared: Prepared) -> None:
    """Log which languages the vocabulary of the teacher does not suit, by some of their rows."""
    if distillation is None or distillation.teaching.teacher is None:
        return
    teaching = replace(distillation.teaching, most=sys.maxsize)
    for code, corpus in prepared.corpora.items():
        rows = corpus.rows("train", range(min(_ROWS, len(corpus.train))))
        read = teaching.fields(rows)
        ids = read["teacher_ids"][read["teacher_passages"] < len(read["edges"])]
        more = len(ids) / (rows != teaching.student.pad_token_id).sum()
        unknown = float((ids == teaching.teacher.unk_token_id).float().mean())
        if more > _MANY or unknown > _UNKNOWN:
            log.warning(
                "warning: the teacher of %s takes %.1f tokens for each of the student, and %.0f %% "
                "of its tokens are unknown: its vectors say little of this language; set "
                "task.teacher to an encoder that knows it",
                code,
                more,
                100 * unknown,
            )


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
