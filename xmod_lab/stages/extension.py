"""Adding languages to a base: each is trained alone on it; then all are joined and proved.

The base does not change. A language meets the same base, seeds and batches, whatever else is
added in the same run. So its pack is the same to the bit for any order of adding, in one precision
and with one number of threads. The model keeps languages in the order in which they were added,
so that the number of each stays.
"""

import hashlib
import logging
from dataclasses import fields
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from xmod_lab.config.schema import LangConfig, PretrainConfig, TextConfig
from xmod_lab.errors import UserError
from xmod_lab.files import build_folder
from xmod_lab.languages.folders import save_model
from xmod_lab.languages.packs import write_pack
from xmod_lab.languages.proof import (
    COMPARED,
    Snapshot,
    compare,
    probe_tokens,
    require,
    snapshot,
    whole_digest,
)
from xmod_lab.languages.proof import moved as moved_in
from xmod_lab.languages.recognition import profile_of, profiles_in
from xmod_lab.manifests import MANIFEST, manifests_in
from xmod_lab.model import XmodLanguageModel
from xmod_lab.model.digests import fingerprint
from xmod_lab.model.packs import read_pack
from xmod_lab.model_folders import model_folder
from xmod_lab.process_rank import rank
from xmod_lab.processes import barrier
from xmod_lab.runs.bases import Base, added_before, agree, check_tokenizer, find_base, inherit
from xmod_lab.runs.folder import RunDir
from xmod_lab.runs.lifecycle import open_run
from xmod_lab.runs.lineage import PROOF, lineage_of
from xmod_lab.runs.tracking import Tracking
from xmod_lab.scoring.held_out import Scorer, score_losses, score_passages, scorers_of, unigram_all
from xmod_lab.scoring.samples import SAMPLES, filled
from xmod_lab.stages.initialise import initialise_language
from xmod_lab.stages.pretraining import OUTPUTS, TRAINING_FIGURES, curve_columns, pretrain_base
from xmod_lab.text.corpus import Prepared
from xmod_lab.text.parts import titled
from xmod_lab.text.tokenizer import load_tokenizer
from xmod_lab.training.data import (
    about_kept,
    consumption,
    mixture_of,
    prepare_base,
    prepare_beside,
    prepare_language,
    training_settings,
)
from xmod_lab.training.distillation import check_teacher, teacher_facts
from xmod_lab.training.fit import fit
from xmod_lab.training.run_tables import score_table, show_corpora, training_table

log = logging.getLogger(__name__)
_PROBE_ROWS = 4
# in a pack's manifest, beside the statistics of its text
_IN_DATA = ("code", *(f.name for f in fields(TextConfig)))


def base_to_extend(cfg: PretrainConfig, run: RunDir) -> tuple[PretrainConfig, Base]:
    """The base that ``cfg.lang`` is added to, and ``cfg`` with what it inherits from it.

    Where ``base=auto`` finds none, one is pre-trained, after all new text was read.
    """

    def pretrain(own: PretrainConfig, place: RunDir) -> None:
        read_new_text(cfg)
        pretrain_base(own, place, on_the_way=True)

    base = find_base(cfg, run, pretrain)
    return inherit(cfg, base), base


def read_new_text(cfg: PretrainConfig) -> None:
    """Prepare the text of languages with a vocabulary of their own, which takes no base."""
    for lang in cfg.lang.values():
        if lang.vocabulary == "own":
            prepare_language(cfg, lang, None)


def add_languages(cfg: PretrainConfig, run: RunDir) -> None:
    """Add ``cfg.lang`` to a base in ``run``, going on where it stopped.

    Writes pack/<code>/, model/, proof.json and, last, metrics.json.

    Raises:
        UserError: bad text, a base that does not fit, a damaged checkpoint.
        ProofError: something else moved.
    """
    check_teacher(cfg)
    cfg, base = base_to_extend(cfg, run)
    cfg = run.fit_to_machine(cfg, workers=cfg.data.workers)
    model, old, older = open_base(base)
    agree(base, model, cfg)
    check_teacher(cfg, model.config)
    if base.model is not None:
        # all must be readable when the model is saved
        manifests_in(model_folder(base.model), model.config.added or [])
        profiles_in(model_folder(base.model))
    known = {code for text in (old, *older) for code in text.corpora}
    unknown = [code for code in model.languages if code not in known]
    if unknown:
        log.warning(
            "no text is known for %s of the base: no scores, and the proof compares their logits "
            "on tokens of any language",
            ", ".join(unknown),
        )
    languages = {}
    for lang in cfg.lang.values():
        languages[lang.code] = lang, prepare_beside(cfg, lang, old)
    facts: dict[str, object] = {"base": whole_digest(model), **teacher_facts(cfg)}
    for code, (_, prepared) in languages.items():
        facts |= {f"data/{code}": prepared.digest, **prepared.tokenizers}
    columns = [f"{figure}/{code}" for code in languages for figure in TRAINING_FIGURES]
    columns += curve_columns(cfg, list(languages))
    with open_run(cfg, run, outputs=OUTPUTS, facts=facts, columns=columns) as tracking:
        if tracking is None:
            return
        for code, (lang, prepared) in languages.items():
            show_corpora(prepared, f"text of {code} ({titled(lang.text)})")
            if lang.vocabulary == "keep" and (warning := about_kept(prepared, old)):
                log.warning("warning: %s", warning)
        probes = probes_of(model, [old, *older])
        before = snapshot(model, probes, tokenizer=_beside(base, old))
        scorers: dict[str, Scorer] = {}
        for text in (old, *older):
            scorers |= scorers_of(text, base.cfg)
        metrics, _ = scores_of(model, scorers, "before/val")
        for lang, prepared in languages.values():
            metrics |= _add_one(cfg, run, tracking, base, old, lang, prepared, before, probes)
        packs = [run.path / "pack" / code for code in languages]
        if rank() == 0:
            proof, whole = _assemble(run, base, old, packs, before, probes)
            proof["lineage"] = lineage_of(
                base,
                "X-MOD" if base.model else "random weights",
                digest=facts["base"],
                train=f"added {', '.join(languages)}",
                added=list(languages),
                steps=cfg.steps,
                fingerprint=fingerprint(model),
            )
            figures, passages = scores_of(whole, scorers, "val")
            metrics |= figures
            run.write_passages(passages)
            run.write_json(PROOF, proof)
            _show(cfg, proof, metrics, list(languages), list(scorers))
            require(proof)
            samples = {}
            for _, prepared in languages.values():
                own = scorers_of(prepared, cfg)
                samples |= filled(
                    whole, own, prepared.tokenizer, accelerator=cfg.trainer.accelerator
                )
            run.write_json(SAMPLES, samples)
        tracking.finish(metrics, packs)
    log.info("model in %s; packs: %s", run / "model", ", ".join(str(p) for p in packs))


def scores_of(
    model: XmodLanguageModel, scorers: dict[str, Scorer], prefix: str
) -> tuple[dict[str, float], dict[str, dict]]:
    """Losses and bits per byte; and the bits of each passage, by code."""
    figures, passages = score_passages(model, scorers, prefix=prefix)
    return score_losses(model, scorers, prefix=prefix) | figures, passages


def open_base(base: Base) -> tuple[XmodLanguageModel, Prepared, list[Prepared]]:
    """The base, the prepared text of its language set, and the texts of its added languages."""
    if base.model is None:
        old = prepare_base(base.cfg)
        return base.load(old.tokenizer), old, []
    model = base.load()
    tokenizer = load_tokenizer(base.tokenizer)  # before any text is prepared
    check_tokenizer(tokenizer, base, model.config.vocab_size, model.config.pad_token_id)
    own = [code for code in base.cfg.langset.languages if code in (model.config.vocabularies or {})]
    codes = [
        code for code in base.cfg.langset.languages if code in model.languages and code not in own
    ]
    try:
        old = prepare_base(base.cfg, tokenizer=base.tokenizer, codes=codes)
    except UserError as error:
        raise UserError(
            "run where the text of the base can be read, or give the model folder as base, and a "
            f"langset that can be read: {error}\nthis is the text of base {base.name}, by which "
            "its languages are scored before and after"
        ) from error
    older = [
        prepare_base(base.cfg, tokenizer=f"{base.model}/languages/{code}", codes=[code])
        for code in own
    ]
    for cfg, lang in added_before(base.cfg):
        folder = f"{base.model}/languages/{lang.code}" if lang.has_tokens else old.folder
        older.append(prepare_language(cfg, lang, folder))
    return model, old, older


def _beside(base: Base, old: Prepared) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a base that does not lie in its folder; ``None``: it does."""
    return None if base.tokenizer is not None and base.tokenizer == base.model else old.tokenizer


def probes_of(model: XmodLanguageModel, texts: list[Prepared]) -> dict[str, torch.Tensor]:
    """(B, S) token ids for every language of the base: of its held-out text, else any tokens."""
    rows = {
        code: torch.from_numpy(
            corpus.rows("validation", range(min(_PROBE_ROWS, len(corpus.validation))))
        )
        for text in texts
        for code, corpus in text.corpora.items()
    }
    return probe_tokens(model, rows)


def _add_one(
    cfg: PretrainConfig,
    run: RunDir,
    tracking: Tracking,
    base: Base,
    old: Prepared,
    lang: LangConfig,
    prepared: Prepared,
    before: Snapshot,
    probes: dict[str, torch.Tensor],
) -> dict[str, float]:
    """Train one language on a fresh copy of the base, write its pack, and return its figures."""
    code, pack = lang.code, run.path / "pack" / lang.code
    seed = seed_of(cfg, code)
    mixture = mixture_of(cfg, prepared, steps=cfg.steps, seed=seed)
    speed, seconds = f"train/tokens_per_second/{code}", f"train/seconds/{code}"
    if not (pack / MANIFEST).is_file():
        model = base.load(old.tokenizer)
        details = initialise_language(
            cfg,
            model,
            lang,
            old,
            prepared,
            keep=lambda make: run.remember_once(f"donors/{code}", make),
        )
        trainable = trainable_names(model, lang)
        training_table(model, trainable, f"adding {code}").print()
        tokenizers = {"": old.tokenizer}
        if lang.has_tokens:
            tokenizers[f"languages/{code}"] = prepared.tokenizer
        fitted = fit(
            cfg,
            run,
            tracking,
            model,
            prepared,
            mixture,
            seed=seed,
            tokenizers=tokenizers,
            trainable=trainable,
            code=code,
        )
        run.remember_once(speed, lambda: fitted.per_second)
        run.remember_once(seconds, lambda: fitted.seconds)
        proof = compare(
            before, snapshot(model.eval(), probes, tokenizer=_beside(base, old)), [code]
        )
        if not proof["holds"] and rank() == 0:
            run.write_json(PROOF, proof)
        require(proof)
        details |= _record(cfg, lang, prepared, mixture, proof)
        details["scores"] = {
            **{f"before/{name}": value for name, value in fitted.before.items()},
            **fitted.after,
            **unigram_all(scorers_of(prepared, cfg)),
        }
        run.write_passages(fitted.passages)
        own = Path(prepared.folder) if lang.has_tokens else None
        if rank() == 0:
            build_folder(
                pack,
                lambda scratch: write_pack(
                    model,
                    code,
                    scratch,
                    tokenizer_folder=own,
                    details=details,
                    profile=profile_of(prepared.corpora[code], prepared.tokenizer),
                    base_tokenizer=_beside(base, old),
                ),
            )
        barrier()
    manifest, _ = read_pack(pack)
    took = {name: run.remember_once(name, lambda: None) for name in (speed, seconds)}
    took = {name: value for name, value in took.items() if value is not None}
    return {**manifest["scores"], **manifest["data"]["consumed"], **took}


def seed_of(cfg: PretrainConfig, code: str) -> int:
    """The seed of batches and dropout while ``code`` is added, whatever else is added."""
    return int.from_bytes(hashlib.sha256(f"{cfg.seed}/{code}".encode()).digest()[:4], "little")


def trainable_names(model: XmodLanguageModel, lang: LangConfig) -> set[str]:
    """The names of the parameters that train while ``lang`` is added."""
    own = model.language_parameters(lang.code)
    return {name for name in own if lang.train_slot or ".adapter_modules." not in name}


def _record(
    cfg: PretrainConfig, lang: LangConfig, prepared: Prepared, mixture, proof: dict
) -> dict:
    """Settings, data and proof for the pack's manifest: only what two equal runs share."""
    corpus = prepared.corpora[lang.code]
    settings = {f.name: getattr(lang, f.name) for f in fields(lang) if f.name not in _IN_DATA}
    if (given := settings.pop("tokenizer")) is not None:
        settings["own_tokenizer"] = Path(given).name
    return {
        "training": training_settings(cfg) | settings,
        "data": {
            **_origin(lang),
            "source": corpus.manifest["settings"]["source"],
            "digest": corpus.digest,
            "statistics": corpus.manifest["statistics"],
            "consumed": consumption(mixture, prepared, cfg.steps),
        },
        # the whole proof is in proof.json: it depends on what else the base has
        "proof": {"holds": proof["holds"]},
    }


def _origin(lang: LangConfig) -> dict:
    """Where the text of a language was, as it was given, without the folders of this machine."""

    def name(given: object) -> object:
        if isinstance(given, list):
            return [name(each) for each in given]
        return Path(given).name if Path(str(given)).is_absolute() else str(given)

    given = {f.name: (getattr(lang, f.name), f.default) for f in fields(TextConfig)}
    return {
        key: name(value)
        for key, (value, default) in given.items()
        if value is not None and (key == "column" or value != default)
    }


def _assemble(
    run: RunDir,
    base: Base,
    old: Prepared,
    packs: list[Path],
    before: Snapshot,
    probes: dict[str, torch.Tensor],
) -> tuple[dict, XmodLanguageModel]:
    """Install the packs in the base, save it as model/, read that back, and prove it."""
    model = base.load(old.tokenizer)
    added = [model.load_language(pack) for pack in packs]
    source = None if base.model is None else model_folder(base.model)

    def write(scratch: Path) -> None:
        save_model(model, scratch, source=source)
        if (tokenizer := _beside(base, old)) is not None:
            tokenizer.save_pretrained(scratch)

    build_folder(run / "model", write, rebuild=True)
    saved = type(model).from_pretrained(run / "model").eval()
    proof = compare(before, snapshot(saved, probes), added)
    return {**proof, "probes": {code: ids.tolist() for code, ids in probes.items()}}, saved


def _show(
    cfg: PretrainConfig, proof: dict, metrics: dict[str, float], added: list[str], others: list[str]
) -> None:
    prefixes = {"unigram": "unigram", "before/val": "before", "val": "after"}
    how = cfg.objective.likelihood.table_title
    score_table(metrics, added, prefixes, f"added languages: {how}").print()
    score_table(
        metrics, others, {"before/val": "before", "val": "after"}, f"languages of the base: {how}"
    ).print()
    moved = [
        code
        for code in others
        if any(
            metrics[f"before/val/{u}/{code}"] != metrics[f"val/{u}/{code}"] for u in ("loss", "bpb")
        )
    ]
    log.info(
        "figures of the base's languages before and after: %s",
        f"differ for {moved}" if moved else "equal to the last bit",
    )
    kept = {
        part: f"{len(proof[part]) - len(moved_in(proof, part))} of {len(proof[part])}"
        for part in COMPARED
    }
    log.info(
        "proof of non-interference: %s. Of the base unchanged: %d of %d tensors, logits of %s "
        "languages to the last bit, numbers of %s, tokenizers of %s, %s settings; %d tensors new",
        "holds" if proof["holds"] else "DOES NOT HOLD",
        proof["tensors_compared"] - len(proof["tensors_changed"]) - len(proof["tensors_missing"]),
        proof["tensors_compared"],
        *kept.values(),
        len(proof["tensors_added"]),
    )
