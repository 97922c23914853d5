"""Training a given model further: an X-MOD, or a dense encoder that grows slots first.

The language set says what is read. Languages that the model does not have get a slot. ``train``
says what trains, and a proof says that all else stayed. The model that comes out is a base of its
own: languages that were added to the one before are part of it, and packs made on that one do not
fit it any more.

Before the first step a grown model is compared with the dense one on held-out text.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from xmod_lab.codes import clashing
from xmod_lab.config.schema import SHARED_SLOT, ModelConfig, PretrainConfig
from xmod_lab.errors import ProofError, UserError
from xmod_lab.files import build_folder
from xmod_lab.foreign import hub_id, is_hub_id
from xmod_lab.languages.cards import base_card
from xmod_lab.languages.embeddings import log_frequency
from xmod_lab.languages.folders import manifests_in
from xmod_lab.languages.proof import Snapshot, compare, probe_tokens, require, snapshot
from xmod_lab.model import XmodConfig, XmodLanguageModel
from xmod_lab.model.digests import fingerprint, tensor_digests
from xmod_lab.model.growing import (
    COPIED,
    HEADS,
    Dense,
    check_dense,
    difference,
    grow,
    grown_config,
    is_dense,
    with_vocabulary,
)
from xmod_lab.model.packs import CARD, MANIFEST
from xmod_lab.processes import rank
from xmod_lab.runs.bases import Base, agree, find_base, inherit
from xmod_lab.runs.folder import RunDir, read_json
from xmod_lab.runs.lifecycle import open_run
from xmod_lab.scoring.held_out import Scorer, scorers_of, unigram_all
from xmod_lab.scoring.samples import SAMPLES, filled
from xmod_lab.settings import is_under
from xmod_lab.stages.extension import open_base, scores_of
from xmod_lab.stages.pretraining import OUTPUTS, TRAINING_FIGURES, base_record, curve_columns
from xmod_lab.tables import Table
from xmod_lab.text.corpus import Corpus, Prepared
from xmod_lab.text.encoding import encode
from xmod_lab.text.tokenizer import load_tokenizer, special_ids
from xmod_lab.text.trimming import renumbered, saved, tokens_to_keep
from xmod_lab.training.data import (
    consumption,
    mixed_target_counts,
    mixture_of,
    prepare_base,
)
from xmod_lab.training.fit import fit
from xmod_lab.training.run_tables import score_table, show_corpora, training_table

log = logging.getLogger(__name__)
PROOF = "proof.json"
_EQUAL = 1e-6  # of the largest hidden state, or of 1 if that is larger
_ROWS = 4096  # of a corpus that are compared at once
_COMPARED = 8  # held-out passages of each language that both models read
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

    @property
    def digest(self) -> str:
        """Of all tensors of the given model, with their names."""
        found = {
            name: digest
            for name, digest in tensor_digests(self.loaded).items()
            if self.dense is None or self.dense.has_head or not name.startswith(HEADS)
        }
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def go_on(cfg: PretrainConfig, run: RunDir) -> None:
    """Train ``cfg.base`` further in ``run``, going on where it stopped.

    Writes model/, proof.json and, last, metrics.json.

    Raises:
        UserError: bad text, a base that does not fit, a damaged checkpoint.
        ProofError: a grown model is not the dense one, or something moved that does not train.
    """
    cfg, start = begin(cfg, run)
    cfg = run.fit_to_machine(cfg, workers=cfg.data.workers)
    prepared = start.prepared
    mixture = mixture_of(cfg, prepared, steps=cfg.steps, seed=cfg.seed)
    codes, scorers = list(prepared.corpora), scorers_of(prepared, cfg)
    old = _older_scorers(start)
    facts = {"base": start.digest, "data": prepared.digest, **prepared.tokenizers}
    columns = [*TRAINING_FIGURES, *curve_columns(cfg, codes)]
    with open_run(cfg, run, outputs=OUTPUTS, facts=facts, columns=columns) as tracking:
        if tracking is None:
            return
        show_corpora(prepared, "text of the language set")
        model = make_model(cfg, start)
        equality = run.remember_once("equality", lambda: _equality(cfg, start, model))
        if start.dense is not None and not start.dense.has_head:
            with torch.no_grad():
                counts = mixed_target_counts(cfg, mixture, prepared)
                model.lm_head.bias.copy_(log_frequency(counts))
        trained = trained_names(model, codes, cfg.train)
        training_table(model, trained, f"train={cfg.train}").print()
        probes = _probes(cfg, start, model, codes)
        before = _snapshot(model, probes, trained)
        numbers = {code: start.loaded.lang_id(code) for code in _languages(start)}
        before = replace(before, numbers=numbers)
        metrics = scores_of(model, old, "before/old")[0] if old else {}
        log.info(
            "%d steps of %d rows of %d tokens: %s tokens in %s",
            cfg.steps,
            cfg.trainer.rows_per_step,
            cfg.data.row_length,
            f"{cfg.steps * cfg.tokens_per_step:,}",
            cfg.trainer.precision,
        )
        fitted = fit(
            cfg,
            run,
            tracking,
            model,
            prepared,
            mixture,
            seed=cfg.seed,
            tokenizers={"": prepared.tokenizer},
            trainable=None if cfg.train == "all" else trained,
        )
        metrics |= {
            **{f"before/{name}": value for name, value in fitted.before.items()},
            **fitted.after,
            **unigram_all(scorers),
            **consumption(mixture, prepared, cfg.steps),
            "train/tokens": cfg.steps * cfg.tokens_per_step,
            "train/steps": cfg.steps,
            "train/seconds": fitted.seconds,
        }
        if fitted.per_second is not None:
            metrics["train/tokens_per_second"] = fitted.per_second
        if rank() == 0:
            metrics |= _forgetting(model.eval(), old, metrics)
            lineage = _lineage(cfg, start)
            _save(cfg, run, start, model, metrics, lineage)
            saved = type(model).from_pretrained(run / "model").eval()
            proof = compare(before, _snapshot(saved, probes, trained), [])
            proof |= {
                "new_languages": [c for c in model.languages if c not in before.numbers],
                "train": cfg.train,
                "trained": sorted(trained),
                "equality": equality,
                "lineage": lineage,
                "probes": {code: ids.tolist() for code, ids in probes.items()},
            }
            run.write_json(PROOF, proof)
            run.write_passages(fitted.passages)
            samples = filled(
                model, scorers, prepared.tokenizer, accelerator=cfg.trainer.accelerator
            )
            run.write_json(SAMPLES, samples)
            _show(cfg, metrics, codes, list(old), proof)
            require(proof)
        tracking.finish(metrics)
    log.info("model in %s", run / "model")


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
        _check_length(cfg, dense.longest)
        # before any text is prepared
        tokenizer = load_tokenizer(base.tokenizer)
        _check_tokenizer(tokenizer, dense.config.vocab_size, base)
        _dense_config(cfg, dense, tokenizer)  # raises if the slots' flags do not fit
        prepared = prepare_base(cfg, tokenizer=base.tokenizer)
        prepared, kept = _trimmed(cfg, prepared, dense.config)
        return cfg, Start(base, dense, dense.load(), prepared, [], kept)
    own = cfg.langset if any(is_under(key, ("langset",)) for key in cfg.given) else None
    passes = cfg.data.max_passes if cfg.is_given("data.max_passes") else base.cfg.data.max_passes
    model, old, older = open_base(base)
    trim = cfg.data.trim_vocabulary
    cfg = inherit(cfg, base)
    data = replace(cfg.data, max_passes=passes, trim_vocabulary=trim)
    cfg = replace(cfg, langset=own or base.cfg.langset, data=data)
    agree(base, model, cfg)
    _check_languages(cfg, base, model.config)
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
        UserError: a special token of the model's configuration would be lost.
        ProofError: a row is split in another way than before.
    """
    if cfg.data.trim_vocabulary is None:
        return prepared, None
    old, rows = prepared.tokenizer, config.vocab_size
    counts = sum(corpus.token_counts for corpus in prepared.corpora.values())
    kept = tokens_to_keep(old, counts, reserve=cfg.data.trim_vocabulary)
    for role in ("pad", "bos", "eos", "sep", "cls", "mask"):
        number = getattr(config, f"{role}_token_id", None)
        if isinstance(number, int) and number not in kept:
            raise UserError(
                f"leave data.trim_vocabulary out, or repair config.json: {role}_token_id is "
                f"{number} there, which is no special token of the tokenizer and would be dropped"
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


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, base: Base) -> None:
    if len(tokenizer) > rows:
        raise UserError(
            "set data.tokenizer to the one that the base was trained with: the tokenizer "
            f"{base.tokenizer} has {len(tokenizer)} tokens, base {base.name} has {rows} embeddings"
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


def _languages(start: Start) -> list[str]:
    """The languages that the given model has."""
    return [] if start.dense is not None else start.loaded.languages


def trained_names(model: XmodLanguageModel, codes: list[str], train: str) -> set[str]:
    """The names of the parameters that ``train`` stands for, on text in ``codes``.

    Slots and vocabularies of other languages never train.
    """
    used = {model.config.languages[model.config.slot(code)] for code in codes}
    found = set()
    for name, _ in model.named_parameters():
        parts = name.split(".")
        of_slot = "adapter_modules" in parts
        by_plan = {
            "all": True,
            "slots": False,
            "slots+head": name.startswith("lm_head."),
            "slots+embeddings": "word_embeddings" in parts
            or name.startswith(("lm_head.decoder.", "lm_head.bias")),
        }
        if of_slot:
            trains = parts[parts.index("adapter_modules") + 1] in used
        else:
            trains = "vocabularies" not in parts and by_plan[train]
        if trains:
            found.add(name)
    return found


def _equality(cfg: PretrainConfig, start: Start, model: XmodLanguageModel) -> dict:
    """Compare a grown model with the dense one in every language, and print it.

    Raises ProofError if they differ.
    """
    if start.dense is None:
        return {}
    length = min(cfg.data.row_length, start.dense.longest)
    found, rows, worst = {}, [], {}
    for code, corpus in start.prepared.corpora.items():
        passages = _passages(corpus, start.prepared, length)
        apart = difference(start.dense, start.loaded, model, code, passages, kept=start.kept)
        tokens = sum(map(len, passages))
        found[code] = {"passages": len(passages), "tokens": tokens, **asdict(apart)}
        logits = "no head" if apart.logits is None else f"{apart.logits:.1e}"
        rows.append((code, str(len(passages)), f"{tokens:,}", f"{apart.hidden:.1e}", logits))
        if apart.worst > _EQUAL * max(1.0, apart.largest):
            worst[code] = apart.worst
    header = ("language", "held-out passages", "tokens", "hidden states", "logits")
    title = f"largest difference between {start.dense.kind} and grown model, before training"
    Table(title, header, rows, labels=1).print()
    if worst:
        told = ", ".join(f"{code} {value:.1e}" for code, value in worst.items())
        raise ProofError(
            f"the grown model is not the dense one: their states or logits differ by {told}; "
            f"allowed is {_EQUAL:g}, or {_EQUAL:g} of the largest state"
        )
    return {"allowed": _EQUAL, "languages": found}


def _passages(corpus: Corpus, prepared: Prepared, length: int) -> list[torch.Tensor]:
    """(S,) ids of held-out passages, evenly spaced, each with its special tokens."""
    held_out, tokenizer = corpus.held_out(), prepared.tokenizer
    chosen = held_out[:: max(1, len(held_out) // _COMPARED)][:_COMPARED]
    return [
        torch.tensor([tokenizer.bos_token_id, *ids[: length - 2], tokenizer.eos_token_id])
        for ids, _, _ in encode(iter(chosen), tokenizer)
    ]


def _older_scorers(start: Start) -> dict[str, Scorer]:
    """Scorers of the base's own held-out text, except text that this run trains on too."""
    now = {corpus.digest for corpus in start.prepared.corpora.values()}
    found: dict[str, Scorer] = {}
    for text in start.older:
        kept = {code: c for code, c in text.corpora.items() if c.digest not in now}
        found |= scorers_of(replace(text, corpora=kept), start.base.cfg)
    return found


def _probes(
    cfg: PretrainConfig, start: Start, model: XmodLanguageModel, codes: list[str]
) -> dict[str, torch.Tensor]:
    """(B, S) ids for the languages of the base whose logits must stay: slots alone train."""
    if start.dense is not None or cfg.train != "slots":
        return {}
    used = {model.config.slot(code) for code in codes}
    rows = {
        code: torch.from_numpy(corpus.rows("validation", range(min(4, len(corpus.validation)))))
        for text in start.older
        for code, corpus in text.corpora.items()
    }
    found = probe_tokens(model, rows)
    return {code: ids for code, ids in found.items() if model.config.slot(code) not in used}


def _snapshot(
    model: XmodLanguageModel, probes: dict[str, torch.Tensor], trained: set[str]
) -> Snapshot:
    """The state of all that does not train."""
    whole = snapshot(model, probes)
    kept = {name: digest for name, digest in whole.tensors.items() if name not in trained}
    return replace(whole, tensors=kept, tokenizers={}, settings={})


def _forgetting(
    model: XmodLanguageModel, old: dict[str, Scorer], before: dict[str, float]
) -> dict[str, float]:
    """Scores of the base's own text after training, and by how much its bits per byte rose."""
    if not old:
        return {}
    after = scores_of(model, old, "old")[0]
    return after | {
        f"forgetting/bpb/{code}": after[f"old/bpb/{code}"] - before[f"before/old/bpb/{code}"]
        for code in old
    }


def _lineage(cfg: PretrainConfig, start: Start) -> list[dict]:
    """From which model this one comes, and from which that one, the newest first."""
    base, source = start.base, Path(start.base.model).parent / PROOF
    older = read_json(source, dict).get("lineage", []) if source.is_file() else []
    kind = "X-MOD" if start.dense is None else start.dense.kind
    name = base.name if is_hub_id(base.name) else hub_id(base.model) or Path(base.name).name
    trimmed = {} if start.kept is None else {"tokens": len(start.kept)}
    own = {
        **trimmed,
        "base": name,
        "kind": kind,
        "digest": start.digest,
        "train": cfg.train,
        "steps": cfg.steps,
    }
    if start.dense is None:
        own["fingerprint"] = fingerprint(start.loaded)
    return [own, *older]


def _save(
    cfg: PretrainConfig,
    run: RunDir,
    start: Start,
    model: XmodLanguageModel,
    metrics: dict[str, float],
    lineage: list[dict],
) -> None:
    record = base_record(cfg, start.prepared, metrics)
    record["lineage"] = {
        ("from" if number == 0 else f"from, {number} before"): (
            f"{one['kind']} {one['base']}, digest {one['digest'][:12]}; train={one['train']}, "
            f"{one['steps']:,} steps"
        )
        for number, one in enumerate(lineage)
    }
    card = base_card(model.config, record, fingerprint(model))

    def write(out: Path) -> None:
        model.save_pretrained(out)
        # packs made on the given model do not fit this one
        for code in manifests_in(out, model.languages):
            for name in (MANIFEST, CARD):
                (out / "languages" / code / name).unlink(missing_ok=True)
        start.prepared.tokenizer.save_pretrained(out)
        (out / CARD).write_text(card, encoding="utf-8")

    build_folder(run / "model", write, rebuild=True)


def _show(
    cfg: PretrainConfig,
    metrics: dict[str, float],
    codes: list[str],
    old: list[str],
    proof: dict,
) -> None:
    how = cfg.objective.likelihood.table_title
    prefixes = {"unigram": "unigram", "before/val": "before", "val": "after"}
    score_table(metrics, codes, prefixes, how).print()
    if old:
        prefixes = {"before/old": "before", "old": "after"}
        score_table(metrics, old, prefixes, f"text of the base: {how}").print()
        worst = max(old, key=lambda code: metrics[f"forgetting/bpb/{code}"])
        log.info(
            "forgetting on the base's text: %s bits per byte at most (%s)",
            f"{metrics[f'forgetting/bpb/{worst}']:+.4f}",
            worst,
        )
    log.info(
        "proof: %s. Of what does not train %d of %d tensors are unchanged, and the logits of %d "
        "other languages to the last bit",
        "holds" if proof["holds"] else "DOES NOT HOLD",
        proof["tensors_compared"] - len(proof["tensors_changed"]) - len(proof["tensors_missing"]),
        proof["tensors_compared"],
        len(proof["logits"]),
    )
