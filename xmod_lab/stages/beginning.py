"""How an added language begins: its vocabulary first, then its slot, which ``nearest`` chooses with
that vocabulary."""

import logging
from collections.abc import Callable
from dataclasses import asdict

from xmod_lab.config.schema import LangConfig, PretrainConfig
from xmod_lab.languages.embeddings import InitReport, initialise_vocabulary
from xmod_lab.model import NEAREST, XmodLanguageModel, donors_of
from xmod_lab.stages.donors import DonorRanking, rank_donors
from xmod_lab.text.corpus import Prepared
from xmod_lab.training.tables import donor_table

log = logging.getLogger(__name__)
_FOCUS_ROWS = 20_000  # of the training text, evenly spaced: enough for the vectors of a vocabulary


def begin_language(
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    lang: LangConfig,
    old: Prepared,
    prepared: Prepared,
    *,
    keep: Callable[[Callable[[], DonorRanking]], DonorRanking] = lambda make: make(),
) -> dict:
    """Add ``lang`` to ``model``, and fill its vocabulary and slot; returns what the pack says about
    that.

    Args:
        keep: returns the ranking of donors that was made when this run began, else makes and keeps
            it.
    """
    allocate_language(cfg, model, lang, prepared)
    vocabulary: dict = {"kind": lang.vocabulary}
    if lang.vocabulary == "own":
        report = begin_vocabulary(cfg, model, lang.code, old, prepared, lang.embedding_init)
        log.info(
            "%s: of %s rows of the new table %s were copied from the base (%.1f %% of its text), "
            "%s derived from others (with them %.1f %%), the rest made by %s",
            lang.code,
            f"{report.pieces:,}",
            f"{report.copied:,}",
            100 * report.overlap,
            f"{report.derived:,}",
            100 * report.coverage,
            report.method,
        )
        vocabulary |= {**asdict(report), "drawn": report.drawn}
    if lang.slot_init != NEAREST:
        model.initialise_slot(lang.code, lang.slot_init, seed=cfg.seed)
        slot = {"init": lang.slot_init, "donors": donors_of(lang.slot_init, model.config)}
        return {"slot": slot, "vocabulary": vocabulary}
    ranking = keep(lambda: rank_donors(cfg, model, prepared, lang.code))
    donor_table(ranking, lang.code).print()
    best = ranking[0][0]
    model.initialise_slot(lang.code, f"copy:{best}", seed=cfg.seed)
    return {
        "slot": {"init": NEAREST, "donors": [best], "ranking": ranking},
        "vocabulary": vocabulary,
    }


def allocate_language(
    cfg: PretrainConfig, model: XmodLanguageModel, lang: LangConfig, prepared: Prepared
) -> None:
    """A slot and, where the language brings one, a vocabulary; both at random."""
    pieces = len(prepared.tokenizer) if lang.vocabulary == "own" else None
    model.add_language(lang.code, "random", pieces=pieces, seed=cfg.seed)


def begin_vocabulary(
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    code: str,
    old: Prepared,
    prepared: Prepared,
    method: str,
) -> InitReport:
    """Fill the vocabulary of ``code`` in place."""
    corpus = prepared.corpora[code]
    return initialise_vocabulary(
        model,
        code,
        old.tokenizer,
        prepared.tokenizer,
        method=method,
        token_counts=cfg.objective.target_counts(corpus, prepared.tokenizer),
        rows=lambda: corpus.sample(_FOCUS_ROWS),
        seed=cfg.seed,
    )
