"""A given model before it is trained further: opened, checked, with its text and its new slots.

It is an X-MOD, or a dense encoder that grows slots. The language set says what is read.
"""

import hashlib
import json
import logging
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from xmod_lab.codes import clashing
from xmod_lab.config.schema import SHARED_SLOT, ModelConfig, PretrainConfig
from xmod_lab.errors import ProofError, UserError
from xmod_lab.languages.recognition import profiles_in
from xmod_lab.model import XmodConfig, XmodLanguageModel, read_config
from xmod_lab.model.digests import tensor_digests
from xmod_lab.model.growing import (
    COPIED,
    HEADS,
    Dense,
    check_dense,
    grow,
    grown_config,
    is_dense,
    with_vocabulary,
)
from xmod_lab.runs.bases import Base, agree, check_tokenizer, find_base, inherit
from xmod_lab.runs.folder import RunDir
from xmod_lab.settings import is_under
from xmod_lab.stages.extension import open_base
from xmod_lab.text.corpus import Prepared
from xmod_lab.text.tokenizer import load_tokenizer, special_ids
from xmod_lab.text.trimming import renumbered, saved, tokens_to_keep
from xmod_lab.training.data import prepare_base

log = logging.getLogger(__name__)
_ROWS = 4096  # of a corpus that are compared at once
_SPARE = 256  # rows of a table without a token, as tables are padded to a round size
# settings of model that a dense encoder does not decide
_OF_SLOTS = (
    "adapter_reduction_factor",
    "slot",
    "shared_slot",
    "adapter_layer_norm",
    "adapter_reuse_layer_norm",
    "ln_before_adapter",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)


@dataclass(frozen=True)
class Start:
    """A given model, and the text that it is trained on.

    Args:
        base: where it lies, and how it was trained.
        dense: what was checked of a dense encoder; ``None``: it is an X-MOD.
        loaded: the dense encoder, or the X-MOD.
        prepared: the text of the run, in the vocabulary of the base.
        older: held-out text of the base that the run does not train on, for X-MODs of a run.
        kept: the tokens that a trimmed vocabulary keeps, by their old ids; ``None``: all.
    """

    base: Base
    dense: Dense | None
    loaded: PreTrainedModel
    prepared: Prepared
    older: list[Prepared]
    kept: list[int] | None = None

    @cached_property
    def digest(self) -> str:
        """Of all tensors of the given model, with their names."""
        found = {
            name: digest
            for name, digest in tensor_digests(self.loaded).items()
            if self.dense is None or self.dense.has_head or not name.startswith(HEADS)
        }
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def begin(cfg: PretrainConfig, run: RunDir) -> tuple[PretrainConfig, Start]:
    """Open the given model and prepare the text. Nothing of the run is written.

    Returns:
        ``cfg`` with what it takes over from the model, and the start.
    Raises:
        UserError: the model, its tokenizer, the text or the settings do not fit together.
    """
    base = find_base(cfg, run)
    folder = Path(base.model)
    if is_dense(folder):
        dense = check_dense(folder)
        cfg = replace(cfg, base=base.name, model=_sizes(cfg, dense))
        # all checks before any text is prepared
        _check_length(cfg, dense.longest)
        tokenizer = load_tokenizer(base.tokenizer)
        _check_tokenizer(tokenizer, dense, base)
        _check_trimming(cfg, tokenizer, dense.config)
        _dense_config(cfg, dense, tokenizer)  # raises if the slots' flags do not fit
        prepared = prepare_base(cfg, tokenizer=base.tokenizer)
        prepared, kept = _trimmed(cfg, prepared, dense.config)
        return cfg, Start(base, dense, dense.load(), prepared, [], kept)
    own = cfg.langset if any(is_under(key, ("langset",)) for key in cfg.given) else None
    passes = cfg.data.max_passes if cfg.is_given("data.max_passes") else base.cfg.data.max_passes
    config = read_config(base.model)
    profiles_in(folder)  # raises if a file is damaged, which the end of the run would find
    _check_languages(replace(cfg, langset=own or base.cfg.langset), base, config)
    if cfg.data.trim_vocabulary is not None:
        _check_trimming(cfg, load_tokenizer(base.tokenizer), config)
    model, old, older = open_base(base)
    trim = cfg.data.trim_vocabulary
    cfg = inherit(cfg, base)
    data = replace(cfg.data, max_passes=passes, trim_vocabulary=trim)
    cfg = replace(cfg, langset=own or base.cfg.langset, data=data)
    agree(base, model, cfg)
    prepared = prepare_base(cfg, tokenizer=base.tokenizer)  # open_base has compared the tokenizer
    prepared, kept = _trimmed(cfg, prepared, model.config)
    texts = [old, *older]
    if kept is not None:  # the base's text is scored in the trimmed vocabulary too
        again = prepare_base(base.cfg, tokenizer=prepared.folder, codes=list(old.corpora))
        texts = [again, *(text for text in older if text.folder != old.folder)]
    return cfg, Start(base, None, model, prepared, texts, kept)


def _trimmed(
    cfg: PretrainConfig, prepared: Prepared, config: PreTrainedConfig
) -> tuple[Prepared, list[int] | None]:
    """The text in a vocabulary that is trimmed to it, and the old ids of its tokens.

    Raises:
        UserError: the padding gets another number, and a language has a vocabulary of its own.
        ProofError: a row is split in another way than before.
    """
    if cfg.data.trim_vocabulary is None:
        return prepared, None
    old, rows = prepared.tokenizer, config.vocab_size
    counts = sum(corpus.token_counts for corpus in prepared.corpora.values())
    kept = tokens_to_keep(old, counts, reserve=cfg.data.trim_vocabulary)
    if own := getattr(config, "vocabularies", None):
        pad_id = config.pad_token_id
        if kept.index(pad_id) != pad_id:
            raise UserError(
                "leave data.trim_vocabulary out: the padding would get another number, and "
                f"{', '.join(own)} have vocabularies with the old one"
            )
    folder = saved(renumbered(old, kept), Path(cfg.data.folder))
    trimmed = prepare_base(cfg, tokenizer=str(folder))
    numbers = np.array(kept)
    for code, corpus in prepared.corpora.items():
        now, size = trimmed.corpora[code], len(corpus.train)
        same = len(now.train) == size and all(
            np.array_equal(corpus.rows("train", part), numbers[now.rows("train", part)])
            for part in np.array_split(np.arange(size), size // _ROWS + 1)
        )
        if not same:
            raise ProofError(
                f"the trimmed vocabulary splits training text of {code} in another way; set a "
                "larger data.trim_vocabulary, or leave it out"
            )
    log.info(
        "vocabulary: %s of %s tokens stay (%s in reserve), and split every training row as before. "
        "Its table takes %.1f MiB instead of %.1f, and four times that while it trains; the output "
        "layer computes %.1f %% of the products",
        f"{len(kept):,}",
        f"{rows:,}",
        f"{cfg.data.trim_vocabulary:,}",
        4 * len(kept) * config.hidden_size / 2**20,
        4 * rows * config.hidden_size / 2**20,
        100 * len(kept) / rows,
    )
    return trimmed, kept


def _sizes(cfg: PretrainConfig, dense: Dense) -> ModelConfig:
    """``model`` of a run that grows ``dense``: its sizes, with slots as they are asked for.

    Raises UserError if another size is asked for.
    """
    given = [f.name for f in fields(ModelConfig) if cfg.is_given(f"model.{f.name}")]
    taken = {name: getattr(cfg.model, name) for name in given if name in _OF_SLOTS}
    sizes = {f.name for f in fields(ModelConfig)} & {*COPIED} - {*_OF_SLOTS}
    for name in sorted(sizes & {*given}):
        have, asked = getattr(dense.config, name), getattr(cfg.model, name)
        if have != asked:
            raise UserError(
                f"leave model.{name} and model=NAME out: the grown model has the sizes of "
                f"{dense.folder}, where {name} is {have}; {asked} was asked for"
            )
    found = {name: getattr(dense.config, name) for name in sizes}
    found |= {
        "hidden_dropout_prob": dense.config.hidden_dropout_prob,
        "attention_probs_dropout_prob": dense.config.attention_probs_dropout_prob,
        "max_position_embeddings": dense.config.max_position_embeddings,
        "pre_norm": cfg.model.pre_norm,
        "ln_before_adapter": False,
    }
    return ModelConfig(**{**found, **taken})


def _check_length(cfg: PretrainConfig, longest: int) -> None:
    if cfg.data.row_length > longest:
        raise UserError(
            f"set data.row_length={longest} or less: it is {cfg.data.row_length}, and the base "
            f"has {longest} positions"
        )


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, dense: Dense, base: Base) -> None:
    """Raises UserError for a tokenizer that ``dense`` cannot have been trained with."""
    tokens, rows = len(tokenizer), dense.config.vocab_size
    # where positions are counted by the padding
    check_tokenizer(
        tokenizer, base, rows, dense.config.pad_token_id if dense.first_position else None
    )
    if rows - tokens > _SPARE:
        log.warning(
            "warning: tokenizer %s has %s tokens, base %s has %s embeddings: see that it is the "
            "one that the base was trained with",
            base.tokenizer,
            f"{tokens:,}",
            base.name,
            f"{rows:,}",
        )


def _check_trimming(
    cfg: PretrainConfig, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig
) -> None:
    """Raises UserError if a trimmed vocabulary may lose a special token of ``config``."""
    if cfg.data.trim_vocabulary is None:
        return
    stay = tokens_to_keep(tokenizer, np.zeros(len(tokenizer), dtype=int), reserve=0)
    for role in ("pad", "bos", "eos", "sep", "cls", "mask"):
        number = getattr(config, f"{role}_token_id", None)
        if isinstance(number, int) and number not in stay:
            raise UserError(
                f"leave data.trim_vocabulary out, or repair config.json: {role}_token_id is "
                f"{number} there, which is no special token of the tokenizer and may be dropped"
            )


def _check_languages(cfg: PretrainConfig, base: Base, config: XmodConfig) -> None:
    """Raises UserError for languages that the base spells, routes or reads in another way."""
    slots, aliases = cfg.langset.slots(shared=SHARED_SLOT in config.languages)
    known, routed = config.known_codes(), config.aliases or {}
    for code in cfg.langset.languages:
        if code in (config.vocabularies or {}):
            raise UserError(
                f"leave {code} out of the language set: it has a vocabulary of its own in base "
                f"{base.name}, and training goes on in the base's vocabulary"
            )
        if code in known and routed.get(code, code) != aliases.get(code, code):
            raise UserError(
                f"langset.languages.{code}.slot is '{aliases.get(code, code)}', but in base "
                f"{base.name} it goes through the slot '{routed.get(code, code)}'; set that"
            )
        if code not in known and (there := clashing(code, [*known, *config.languages])):
            raise UserError(
                f"write '{there[0]}' for '{code}' in langset.languages, as base {base.name} does"
            )


def _dense_config(
    cfg: PretrainConfig,
    dense: Dense,
    tokenizer: PreTrainedTokenizerBase,
    *,
    trimmed: bool = False,
) -> XmodConfig:
    """The configuration of the grown model. ``trimmed``: with the tokens of ``tokenizer`` alone."""
    flags = cfg.model.flags()
    slots, aliases = cfg.langset.slots(shared=cfg.model.shared_slot)
    return grown_config(
        dense,
        slots,
        vocab_size=len(tokenizer) if trimmed else dense.config.vocab_size,
        special_ids=special_ids(tokenizer),
        aliases=aliases,
        **{name: flags[name] for name in flags if name != "max_position_embeddings"},
    )


def make_model(cfg: PretrainConfig, start: Start) -> XmodLanguageModel:
    """The model before the first step: grown, or the given one with slots of new languages."""
    if start.dense is not None:
        trimmed = start.kept is not None
        config = _dense_config(cfg, start.dense, start.prepared.tokenizer, trimmed=trimmed)
        return grow(start.dense, start.loaded, config, seed=cfg.seed, kept=start.kept)
    model = start.base.load()
    if start.kept is not None:
        special = special_ids(start.prepared.tokenizer)
        model = with_vocabulary(model, start.kept, special)
    slots, aliases = cfg.langset.slots(shared=SHARED_SLOT in model.config.languages)
    for slot in slots:
        if slot not in model.config.languages:
            model.add_language(slot, "mean", seed=cfg.seed)
    known = model.config.known_codes()
    routed = {code: slot for code, slot in aliases.items() if code not in known}
    model.config.aliases = {**(model.config.aliases or {}), **routed} or None
    # what was added to the base is part of this one
    model.config.added = None
    return model
