"""Training a given model further: an X-MOD, or a dense encoder that grows slots first.

The language set says what is read. Languages that the model does not have get a slot. ``train``
says what trains, and a proof says that all else stayed. The model that comes out is a base of its
own: languages that were added to the one before are part of it, and packs made on that one do not
fit it any more.

Before the first step a grown model is compared with the dense one on held-out text.
"""

import logging
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from xmod_lab.config.schema import PretrainConfig
from xmod_lab.errors import ProofError
from xmod_lab.files import build_folder
from xmod_lab.languages.cards import base_card
from xmod_lab.languages.folders import manifests_in
from xmod_lab.languages.proof import Snapshot, compare, probe_tokens, require, snapshot
from xmod_lab.languages.recognition import kept_profiles, profiles_of, write_profiles
from xmod_lab.metrics import codes_of, told
from xmod_lab.model import XmodLanguageModel
from xmod_lab.model.digests import fingerprint
from xmod_lab.model.growing import difference
from xmod_lab.model.packs import CARD, MANIFEST
from xmod_lab.model_folders import RECOGNITION
from xmod_lab.process_rank import rank
from xmod_lab.runs.folder import RunDir
from xmod_lab.runs.lifecycle import open_run
from xmod_lab.runs.lineage import PROOF, lineage_of
from xmod_lab.runs.lineage import told as told_lineage
from xmod_lab.scoring.held_out import Scorer, named_with_interval, scorers_of
from xmod_lab.scoring.samples import SAMPLES, filled
from xmod_lab.stages.extension import scores_of
from xmod_lab.stages.pretraining import (
    OUTPUTS,
    TRAINING_FIGURES,
    base_record,
    begin_with_frequencies,
    curve_columns,
    figures_of,
    say_budget,
)
from xmod_lab.stages.starting import Start, begin, make_model
from xmod_lab.tables import Table
from xmod_lab.text.corpus import Corpus, Prepared
from xmod_lab.text.encoding import encode
from xmod_lab.training.data import mixture_of
from xmod_lab.training.distillation import check_teacher, teacher_facts
from xmod_lab.training.fit import fit
from xmod_lab.training.run_tables import score_table, show_corpora, training_table

log = logging.getLogger(__name__)
_SHARED = {  # what of the shared parameters trains, by the plan
    "all": "",
    "slots": r"(?!)",
    "slots+head": r"^lm_head\.",
    "slots+embeddings": r"\.word_embeddings\.|^lm_head\.(decoder\.|bias)",
}
_EQUAL = 1e-6  # of the largest hidden state, or of 1 if that is larger
_COMPARED = 8  # held-out passages of each language that both models read


def go_on(cfg: PretrainConfig, run: RunDir) -> None:
    """Train ``cfg.base`` further in ``run``, going on where it stopped.

    Writes model/, proof.json and, last, metrics.json.

    Raises:
        UserError: bad text, a base that does not fit, a damaged checkpoint.
        ProofError: a grown model is not the dense one, or something moved that does not train.
    """
    check_teacher(cfg)
    cfg, start = begin(cfg, run)
    cfg = run.fit_to_machine(cfg, workers=cfg.data.workers)
    check_teacher(cfg, start.loaded.config)
    prepared = start.prepared
    mixture = mixture_of(cfg, prepared, steps=cfg.steps, seed=cfg.seed)
    codes, scorers = list(prepared.corpora), scorers_of(prepared, cfg)
    old = _older_scorers(start)
    facts = {"base": start.digest, "data": prepared.digest, **prepared.tokenizers}
    facts |= teacher_facts(cfg)
    columns = [*TRAINING_FIGURES, *curve_columns(cfg, codes)]
    with open_run(cfg, run, outputs=OUTPUTS, facts=facts, columns=columns) as tracking:
        if tracking is None:
            return
        show_corpora(prepared, "text of the language set")
        model = make_model(cfg, start)
        equality = run.remember_once("equality", lambda: _equality(cfg, start, model))
        if start.dense is not None and not start.dense.has_head:
            begin_with_frequencies(cfg, model, mixture, prepared)
        trained = trained_names(model, codes, cfg.train)
        training_table(model, trained, f"train={cfg.train}").print()
        probes = _probes(cfg, start, model, codes)
        before = _snapshot(model, probes, trained)
        numbers = {code: start.loaded.lang_id(code) for code in _languages(start)}
        before = replace(before, numbers=numbers)
        metrics, older = scores_of(model, old, "before/old")
        say_budget(cfg)
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
        metrics |= figures_of(cfg, fitted, scorers, mixture, prepared)
        metrics |= _apart(equality)
        if rank() == 0:
            metrics |= _forgetting(model.eval(), start, old, older, metrics)
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


def _languages(start: Start) -> list[str]:
    """The languages that the given model has."""
    return [] if start.dense is not None else start.loaded.languages


def trained_names(model: XmodLanguageModel, codes: list[str], train: str) -> set[str]:
    """The names of the parameters that ``train`` stands for, on text in ``codes``.

    Slots and vocabularies of other languages never train.
    """
    used = {model.config.languages[model.config.slot(code)] for code in codes}
    shared = re.compile(_SHARED[train])
    return {
        name
        for name, _ in model.named_parameters()
        if (
            shared.search(name)
            if (owner := model.owner_of(name)) is None
            else ".adapter_modules." in name and owner in used
        )
    }


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


def _apart(equality: dict) -> dict[str, float]:
    """``equality/<what>/<code>``: by how much a grown and the dense model differed."""
    return {
        f"equality/{what}/{code}": apart[what]
        for code, apart in equality.get("languages", {}).items()
        for what in ("hidden", "logits")
        if apart[what] is not None
    }


def _forgetting(
    model: XmodLanguageModel,
    start: Start,
    old: dict[str, Scorer],
    before: dict[str, dict],
    metrics: dict[str, float],
) -> dict[str, float]:
    """How much worse languages of the base became, and the scores of the base's own text.

    ``forgetting/bpb/<code>`` is by how many bits per byte the base's own text became longer. A
    language that reads the same text again is scored on it by ``val/bpb/<code>``.

    Args:
        old: scorers of the base's text that the run does not train on.
        before: the bits of its passages before training, by code.
        metrics: of the run, with the scores before training.
    """
    of_run = (Path(start.base.name) / "config.yaml").is_file()  # else its text is not known
    theirs = {code for text in start.older for code in text.corpora} if of_run else set()
    read_again = [c for c in start.prepared.corpora if c in theirs and c not in old]
    figures, after = scores_of(model, old, "old")
    found = dict(figures)
    for code, scorer in old.items():
        more = np.subtract(after[code]["bits"], before[code]["bits"])
        found |= named_with_interval(f"forgetting/bpb/{code}", more, scorer.passages.sizes)
    for code in [*old, *read_again]:
        text = "old" if code in old else "val"
        worse = (found | metrics)[f"{text}/bpb/{code}"] - metrics[f"before/{text}/bpb/{code}"]
        found[f"forgetting/bpb/{code}"] = worse
    return found


def _lineage(cfg: PretrainConfig, start: Start) -> list[dict]:
    entry = {"digest": start.digest, "train": cfg.train, "steps": cfg.steps}
    if start.kept is not None:
        entry["tokens"] = len(start.kept)
    if start.dense is not None:
        return lineage_of(start.base, start.dense.kind, **entry)
    return lineage_of(start.base, "X-MOD", **entry, fingerprint=fingerprint(start.loaded))


def _save(
    cfg: PretrainConfig,
    run: RunDir,
    start: Start,
    model: XmodLanguageModel,
    metrics: dict[str, float],
    lineage: list[dict],
) -> None:
    record = base_record(cfg, start.prepared, metrics)
    record["lineage"] = told_lineage(lineage)
    card = base_card(model.config, record, fingerprint(model))
    profiles = {} if start.dense is not None else kept_profiles(start.loaded)
    profiles |= profiles_of(start.prepared)

    def write(out: Path) -> None:
        model.save_pretrained(out)
        # packs made on the given model do not fit this one
        for code in manifests_in(out, model.languages):
            for name in (MANIFEST, CARD):
                (out / "languages" / code / name).unlink(missing_ok=True)
        for code in model.language_folders:
            (out / "languages" / code / RECOGNITION).unlink(missing_ok=True)
        write_profiles(out, {code: profiles[code] for code in model.languages if code in profiles})
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
    if rows := [
        (code, told(metrics, name, sign="+") if metrics[name] else "none")
        for code in codes_of(metrics, "forgetting/bpb/")
        if (name := f"forgetting/bpb/{code}") in metrics
    ]:
        title = "forgetting: change of bits per byte on the text of the base, by training"
        Table(title, ("language", "bits/byte"), rows).print()
    log.info("proof: %s. %s", "holds" if proof["holds"] else "DOES NOT HOLD", _compared(proof))


def _compared(proof: dict) -> str:
    """What a proof compared, in words. Parts that it did not compare are not named."""
    moved = len(proof["tensors_changed"] + proof["tensors_missing"])
    parts = {
        "tensors that did not train": (proof["tensors_compared"] - moved, proof["tensors_compared"])
    }
    for part, words in (
        ("logits", "languages that were not read, by their logits"),
        ("numbers", "languages, by their number in lang_ids"),
    ):
        parts[words] = sum(entry["equal"] for entry in proof[part].values()), len(proof[part])
    said = [f"{same:,} of {count:,} {words}" for words, (same, count) in parts.items() if count]
    return f"Unchanged: {'; '.join(said)}" if said else "Everything trained"
