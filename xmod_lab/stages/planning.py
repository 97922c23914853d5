"""``plan=true``: what a run would read, train and write, and how long. Nothing is trained.

Text is prepared as the run would prepare it, and kept for the run. A few real steps are taken on a
model that is then thrown away, so that FLOPs, seconds and bytes are measured and not estimated. If
the text of a pre-training cannot be fetched from the hub, random words take its place. If there is
no room for the steps, parameters, bytes and FLOPs are counted, and no time is told.
"""

import json
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from xmod_lab.codes import meaning
from xmod_lab.config.schema import LangConfig, PretrainConfig, TextConfig
from xmod_lab.config.sizes import memory_faults
from xmod_lab.errors import NotFetchedError
from xmod_lab.files import write_whole
from xmod_lab.languages.embeddings import shared_tokens, special_pairs
from xmod_lab.languages.packs import write_pack
from xmod_lab.languages.recognition import profile_of
from xmod_lab.model import XmodLanguageModel
from xmod_lab.phases import told
from xmod_lab.runs.bases import (
    Base,
    agree,
    almost_matching,
    base_to_make,
    find_base,
    inherit,
    name_of_base,
)
from xmod_lab.runs.folder import RunDir
from xmod_lab.stages.continuing import trained_names
from xmod_lab.stages.cost import Cost, cost_of_new, duration, measure
from xmod_lab.stages.extension import open_base, read_new_text, seed_of, trainable_names
from xmod_lab.stages.initialise import allocate_language
from xmod_lab.stages.stand_in import random_text
from xmod_lab.stages.starting import begin, make_model
from xmod_lab.tables import Table
from xmod_lab.text.corpus import Prepared
from xmod_lab.text.mixture import Mixture, proportions
from xmod_lab.text.parts import titled
from xmod_lab.text.stream import token_type
from xmod_lab.text.survey import (
    NO_LANGUAGE,
    Spelling,
    Survey,
    looks_like,
    own_spelling,
    spelling,
    survey,
    unknown_letters,
)
from xmod_lab.training.data import about_kept, consumption, mixture_of, prepare_base, prepare_beside
from xmod_lab.training.distillation import check_teacher
from xmod_lab.training.run_tables import show_normalisation, training_table

log = logging.getLogger(__name__)
PLAN = "plan.json"
# "mostly": more than half of the letters are in no token of the base
UNKNOWN_SCRIPT = 0.5
# a mixed or noisy text is in its language as long as no other language has the majority
OTHER_LANGUAGE = 0.5
MORE_PIECES = 1.3  # "badly": rows hold a quarter less text
# from here on the passes that are shown understate the repetition by a tenth or more
NEAR_COPIES = 0.1


def plan_run(cfg: PretrainConfig, run: RunDir) -> None:
    """Show the plan of the run that ``cfg`` describes, and write it to plan.json in its run dir.

    It has an entry ``base``, if one is pre-trained, one for each language to add (the fields of
    :class:`Cost` and more), and the ``warnings``.

    Raises:
        UserError: whatever the run itself would refuse before its first step, apart from text of a
            pre-training that cannot be fetched, and from a new base that is too large.
    """
    written, cfg = cfg, run.fit_to_machine(cfg, workers=cfg.data.workers)
    plan: dict[str, dict] = {}
    warnings: list[str] = []
    check_teacher(cfg)
    if cfg.goes_on:
        cfg, start = begin(cfg, run)
        model = make_model(cfg, start)
        trained = trained_names(model, list(start.prepared.corpora), cfg.train)
        plan["base"] = _plan_base(cfg, warnings, start.prepared, model, trained)
    elif not cfg.lang:
        try:
            plan["base"] = _plan_base(cfg, warnings)
        except NotFetchedError as error:
            plan["base"] = _plan_without_text(cfg, warnings, error)
    else:
        if name_of_base(cfg, run) is None:
            read_new_text(cfg)
            # the folder is named by what is written
            (own, _), (_, place) = base_to_make(cfg), base_to_make(written)
            log.info(
                "no finished base under '%s' matches: the run would first pre-train one in %s%s",
                cfg.runs,
                place.path,
                almost_matching(cfg),
            )
            plan["base"] = _plan_base(own, warnings)
            # random weights of the same size cost the same
            base = Base("(to be made)", None, None, own)
        else:
            base = find_base(cfg, run)
        if base.model is None and memory_faults(base.cfg, trains=False):
            warnings.append("adding languages is not planned: this machine cannot hold the base")
        else:
            _plan_languages(cfg, base, plan, warnings)
    warnings = list(dict.fromkeys(warnings))
    for warning in warnings:
        log.warning("warning: %s", warning)
    seconds = [part["seconds"] for part in plan.values()]
    if None in seconds:
        log.info("nothing was trained, and the time was not measured")
    else:
        log.info(
            "nothing was trained; %s in all for the steps, scoring and saving apart",
            duration(sum(seconds)),
        )
    write_whole(run / PLAN, json.dumps({**plan, "warnings": warnings}, indent=1).encode())


def _plan_languages(
    cfg: PretrainConfig, base: Base, plan: dict[str, dict], warnings: list[str]
) -> None:
    """Fill ``plan`` with each language that is added to ``base``."""
    cfg = inherit(cfg, base)
    model, old, _ = open_base(base)
    agree(base, model, cfg)
    check_teacher(cfg, model.config)
    for lang in cfg.lang.values():
        plan[lang.code] = _plan_language(cfg, base, old, lang, warnings)


def _plan_base(
    cfg: PretrainConfig,
    warnings: list[str],
    prepared: Prepared | None = None,
    model: XmodLanguageModel | None = None,
    trained: set[str] | None = None,
) -> dict:
    """The plan of pre-training: its languages and its cost.

    Args:
        prepared, model, trained: text, model and names of what trains, if a given model is trained
            further.
    """
    prepared = prepared or prepare_base(cfg)
    mixture = mixture_of(cfg, prepared, steps=cfg.steps, seed=cfg.seed)
    read = consumption(mixture, prepared, cfg.steps)
    rows, table = sum(mixture.rows_before(cfg.steps).values()), []
    for code, text in cfg.langset.languages.items():
        found, spelt = _survey(cfg, code, text, prepared)
        looks = looks_like(found)
        warnings += [
            *prepared.corpora[code].remarks(),
            *_about_text(found, looks),
            *_about_passes(cfg, code, read),
        ]
        table.append(
            (
                code,
                f"{len(prepared.corpora[code].train):,}",
                f"{sum(_left_out(prepared, code)):,}",
                f"{100 * read[f'train/rows/{code}'] / rows:.1f} %",
                f"{read[f'train/rows/{code}']:,}",
                f"{read[f'train/passes/{code}']:.2f}",
                _per_word(spelt),
                f"{100 * spelt.unknown:.2f} %",
                f"{100 * found.near_copy_share:.1f} %",
                _looks(looks),
            )
        )
    header = (
        "language",
        "rows",
        "left out",
        "share",
        "rows read",
        "passes",
        "tokens/word",
        "unknown",
        "near-copies",
        "looks like",
    )
    title = f"plan: {cfg.steps:,} steps, {cfg.steps * cfg.tokens_per_step:,} tokens"
    Table(title, header, table).print()
    _tell_phases(cfg)
    show_normalisation(prepared)
    if model is None:
        cost = cost_of_new(cfg, prepared, mixture, warnings)
    else:
        training_table(model, trained, "base").print()
        trainable = None if cfg.train == "all" else trained
        cost = measure(cfg, model, prepared, mixture, seed=cfg.seed, trainable=trainable)
    _cost_table(cfg, cost, _bytes_of(prepared), [("model/", cost.model_bytes)])
    return {**asdict(cost), **read}


def _plan_without_text(cfg: PretrainConfig, warnings: list[str], why: NotFetchedError) -> dict:
    """The cost of pre-training on text that cannot be fetched: that of random words."""
    log.info(
        "plan: %s steps, %s tokens; the text cannot be fetched: the cost is that of random words "
        "in its place",
        f"{cfg.steps:,}",
        f"{cfg.steps * cfg.tokens_per_step:,}",
    )
    _tell_phases(cfg)
    with tempfile.TemporaryDirectory() as folder:
        prepared = random_text(cfg, Path(folder))
        sizes = {code: len(corpus.train) for code, corpus in prepared.corpora.items()}
        mixture = Mixture(
            sizes, proportions(sizes, 1), rows_per_step=cfg.trainer.rows_per_step, seed=cfg.seed
        )
        cost = cost_of_new(cfg, prepared, mixture, warnings)
        ids = np.dtype(token_type(len(prepared.tokenizer))).itemsize
    _cost_table(cfg, cost, f"{ids} for each token of the text", [("model/", cost.model_bytes)])
    warnings.append(
        f"{why}. The cost is that of random words, {len(prepared.tokenizer):,} of them in the "
        "vocabulary, and of as many rows of each language. Not known without the text: its rows, "
        "the passes over it, the shares of the languages, how the vocabulary suits them, its bytes "
        "on disk and the time to prepare it"
    )
    return asdict(cost)


def _tell_phases(cfg: PretrainConfig) -> None:
    """Say at which steps masks and mixture change."""
    for name, setting in (
        ("task.mask_rate", getattr(cfg.task, "mask_rate", None)),
        ("data.alpha", cfg.data.alpha),
    ):
        if isinstance(setting, list):
            log.info("%s: %s", name, told(setting, cfg.steps))


def _plan_language(
    cfg: PretrainConfig, base: Base, old: Prepared, lang: LangConfig, warnings: list[str]
) -> dict:
    """The plan of adding one language: its text in both vocabularies, and its cost."""
    code = lang.code
    prepared = prepare_beside(cfg, lang, old)
    mixture = mixture_of(cfg, prepared, steps=cfg.steps, seed=seed_of(cfg, code))
    read = consumption(mixture, prepared, cfg.steps)
    text = _plan_text(cfg, base, old, lang, prepared, read, warnings)
    model = base.load(old.tokenizer)
    allocate_language(cfg, model, lang, old, prepared)
    trainable = trainable_names(model, lang)
    training_table(model, trainable, f"adding {code}").print()
    cost = measure(
        cfg,
        model,
        prepared,
        mixture,
        seed=seed_of(cfg, code),
        trainable=trainable,
        base_tokenizer=old.tokenizer,
    )
    own = Path(prepared.folder) if lang.has_tokens else None
    # the pack lacks what its manifest and its card will say about the training
    with tempfile.TemporaryDirectory() as folder:
        profile = profile_of(prepared.corpora[code], prepared.tokenizer)
        write_pack(
            model, code, Path(folder) / code, tokenizer_folder=own, details={}, profile=profile
        )
        pack = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    files = [(f"pack/{code}/", pack), ("model/ with it", cost.model_bytes)]
    _cost_table(cfg, cost, _bytes_of(prepared), files)
    return {**asdict(cost), **read, **text, "pack_bytes": pack}


def _plan_text(
    cfg: PretrainConfig,
    base: Base,
    old: Prepared,
    lang: LangConfig,
    prepared: Prepared,
    read: dict[str, float],
    warnings: list[str],
) -> dict:
    """What the text of one language is like, and how both vocabularies split it.

    Prints it as tables, and adds to ``warnings``.

    Args:
        old: the base's text and tokenizer.
        read: what the run would read.
    """
    code, own = lang.code, lang.has_tokens
    found, spelt = _survey(cfg, code, lang, prepared)
    looks, by_base = looks_like(found), spelling(found, old.tokenizer)
    strange = unknown_letters(found, old.tokenizer)
    warnings += [
        *prepared.corpora[code].remarks(),
        *_about_text(found, looks),
        *_about_passes(cfg, code, read),
    ]
    if strange > UNKNOWN_SCRIPT:
        remedy = (
            "its table begins nearly from nothing"
            if own
            else "set vocabulary=own, or it is read as <unk>"
        )
        warnings.append(
            f"{code}: the base has never seen {100 * strange:.0f} % of the letters "
            f"({found.script} script); {remedy}"
        )
    spellings = {"old": by_base, "new": spelt}
    names = {"the base's": by_base}
    if own:
        names["its own"] = spelt
    else:
        estimate = own_spelling(
            found,
            vocab_size=lang.vocabulary_size,
            byte_fallback=cfg.data.byte_fallback,
            normalization=cfg.data.normalization,
        )
        if estimate:
            spellings["own"] = names["its own (estimate)"] = estimate
        if warning := _about_kept(prepared, old, by_base, estimate):
            warnings.append(warning)
    title = f"plan: {code} ({titled(lang.text)}) on base {base.name}, by vocabulary"
    rows = [
        ("tokens per word", *map(_per_word, names.values())),
        ("unknown tokens", *(f"{100 * s.unknown:.2f} %" for s in names.values())),
        ("bytes that no token spells", *(f"{100 * s.unknown_bytes:.2f} %" for s in names.values())),
    ]
    Table(title, ("", *names), rows).print()
    show_normalisation(prepared)
    overlap = _overlap(cfg, old.tokenizer, prepared, code) if own else {}
    facts = [
        ("rows of its text", f"{len(prepared.corpora[code].train):,}"),
        ("rows read", f"{read[f'train/rows/{code}']:,}"),
        ("passes over its text", f"{read[f'train/passes/{code}']:.2f}"),
        (
            "left out: duplicates, empty rows, null rows",
            ", ".join(f"{n:,}" for n in _left_out(prepared, code)),
        ),
        ("letters that no token of the base has", f"{100 * strange:.1f} %"),
        ("near-copies among its passages", f"{100 * found.near_copy_share:.1f} %"),
        ("looks like", _looks(looks)),
    ]
    if own:
        shared = f"{overlap['shared_pieces']:,} of {len(prepared.tokenizer):,}"
        share = f"{100 * overlap['shared_text']:.1f} % of its text"
        facts.append(("tokens that the base has too", f"{shared}, {share}"))
    Table(f"text of {code}", ("", ""), facts).print()
    by_vocabulary = {
        f"{name}/{key}": value for name, s in spellings.items() for key, value in asdict(s).items()
    }
    return {**overlap, "unknown_letters": strange, **by_vocabulary}


def _survey(
    cfg: PretrainConfig, code: str, text: TextConfig, prepared: Prepared
) -> tuple[Survey, Spelling]:
    corpus = prepared.corpora[code]
    counts, blocks = corpus.manifest["statistics"]["train"], corpus.held_out_by == "document"
    found = survey(code, cfg.source(text), counts["passages"], counts["bytes"], blocks=blocks)
    return found, spelling(found, prepared.tokenizer)


def _left_out(prepared: Prepared, code: str) -> list[int]:
    """How many duplicates, empty and null rows of the training text are not read."""
    counts = prepared.corpora[code].manifest["statistics"]["train"]
    return [counts[name] for name in ("duplicates_dropped", "empty", "null")]


def _overlap(
    cfg: PretrainConfig, old: PreTrainedTokenizerBase, prepared: Prepared, code: str
) -> dict[str, float]:
    """What ``embedding_init=overlap`` copies: how many tokens of the new vocabulary the base has as
    well, special ones included, and their share of the text.
    """
    counts = cfg.objective.target_counts(prepared.corpora[code], prepared.tokenizer)
    shared = [*shared_tokens(old, prepared.tokenizer), *special_pairs(old, prepared.tokenizer)]
    return {"shared_pieces": len(shared), "shared_text": float(counts[shared].sum() / counts.sum())}


def _about_text(found: Survey, looks: list[tuple[str, float]] | str) -> list[str]:
    warnings = []
    if found.near_copy_share > NEAR_COPIES:
        warnings.append(
            f"{found.code}: {100 * found.near_copy_share:.0f} % of the passages differ from "
            "an earlier one only in case, digits, spaces and punctuation; thin them out"
        )
    if isinstance(looks, str):
        return [*warnings, f"whether a text is in its language was {looks}"]
    likeliest, share = looks[0]
    if share > OTHER_LANGUAGE and likeliest == NO_LANGUAGE:
        warnings.append(
            f"{found.code}: {100 * share:.0f} % of the passages look like no language: numbers, "
            "signs, single letters; see what the text is"
        )
    elif share > OTHER_LANGUAGE and meaning(likeliest).language != meaning(found.code).language:
        warnings.append(
            f"{found.code}: {100 * share:.0f} % of the passages look like '{likeliest}'; see that "
            "text and code belong together"
        )
    return warnings


def _about_kept(
    prepared: Prepared, old: Prepared, by_base: Spelling, estimate: Spelling | None
) -> str | None:
    """A warning if the base's vocabulary does not suit the text, with what its own would give."""
    said = about_kept(prepared, old)
    if estimate is None or by_base.per_byte < MORE_PIECES * estimate.per_byte:
        return said
    code = next(iter(prepared.corpora))
    said = said or f"{code}: the base's vocabulary cuts it into small tokens; set vocabulary=own"
    return (
        f"{said} ({100 * estimate.per_byte:.1f} tokens for 100 bytes "
        f"instead of {100 * by_base.per_byte:.1f})"
    )


def _about_passes(cfg: PretrainConfig, code: str, read: dict[str, float]) -> list[str]:
    passes, limit = read[f"train/passes/{code}"], cfg.objective.useful_passes
    if passes <= limit:
        return []
    remedy = "" if cfg.lang else ", or set data.max_passes"
    return [
        f"{code}: its text is read {passes:.0f} times (more than {limit}); give more text or "
        f"train for fewer steps{remedy}"
    ]


def _bytes_of(prepared: Prepared) -> str:
    folders = [corpus.folder for corpus in prepared.corpora.values()]
    files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
    return f"{sum(file.stat().st_size for file in files):,}"


def _cost_table(cfg: PretrainConfig, cost: Cost, text: str, files: list[tuple[str, int]]) -> None:
    """Print the cost; ``text``: the bytes of the prepared text."""
    t = cfg.trainer
    rows = [
        ("trainable parameters", f"{cost.trainable:,}"),
        ("frozen parameters", f"{cost.frozen:,}"),
        *((f"bytes of {name}", f"{size:,}") for name, size in files),
        *(
            [(f"bytes of {len(kept)} models on the way", f"{len(kept) * cost.model_bytes:,}")]
            if (kept := t.save_models_at)
            else []
        ),
        ("bytes of the prepared text on disk, without its shards", text),
        (f"bytes of a checkpoint ({t.keep_checkpoints} are kept)", f"{cost.checkpoint_bytes:,}"),
        ("bytes of the optimiser's state in memory", f"{cost.optimizer_bytes:,}"),
    ]
    if cost.memory_to_train is not None:
        layers = "computed again" if t.gradient_checkpointing else "kept"
        title = f"memory that tensors take in training, a process; states of layers {layers}"
        rows.append((title, f"{cost.memory_to_train:,}"))
    if cost.peak_memory is not None:
        title = "peak memory of this process, its text prepared, a part of a step measured"
        rows.append((title, f"{cost.peak_memory:,}"))
    flops = cost.flops_per_step * cfg.steps
    rows += [
        ("FLOPs of a step (matrix products)", f"{cost.flops_per_step:,}"),
        (f"FLOPs of {cfg.steps:,} steps", f"{flops:.3g}"),
        *(() if cost.seconds is None else _measured(cfg, cost)),
        (f"{cfg.steps:,} steps on a device at 100 TFLOP/s", duration(flops / 1e14)),
    ]
    Table("cost", ("", ""), rows).print()


def _measured(cfg: PretrainConfig, cost: Cost) -> list[tuple[str, str]]:
    """Rows of the table of costs: seconds, and the speed of the loader."""
    speed = cfg.tokens_per_step / cost.seconds_per_step
    processes = cfg.trainer.devices * cfg.trainer.nodes
    rows_read = cfg.trainer.rows_per_step / cost.seconds_per_step / processes
    ways = {"compiled": cfg.trainer.compile, "checkpointed": cfg.trainer.gradient_checkpointing}
    layers = " and ".join(word for word, chosen in ways.items() if chosen)
    return [
        (
            "a step on this machine" + (f", layers {layers}" if layers else ""),
            f"{1000 * cost.seconds_per_step:.0f} ms, {speed:,.0f} tokens/s",
        ),
        (f"{cfg.steps:,} steps", duration(cost.seconds)),
        (
            "the loader alone",
            f"{cost.loader_rows_per_second:,.0f} rows/s, "
            f"{cost.loader_rows_per_second * cfg.data.row_length:,.0f} tokens/s, "
            f"{cost.loader_rows_per_second / rows_read:,.1f} × what the steps read",
        ),
    ]


def _per_word(spelt: Spelling) -> str:
    return "–" if spelt.per_word is None else f"{spelt.per_word:.2f}"


def _looks(looks: list[tuple[str, float]] | str) -> str:
    return "not checked" if isinstance(looks, str) else f"{looks[0][0]} {100 * looks[0][1]:.0f} %"
