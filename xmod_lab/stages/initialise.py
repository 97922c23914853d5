"""How an added language is initialised: its vocabulary first, then its slot.

``slot_init=nearest`` copies the pre-trained slot (the donor) with the lowest loss on the text of
the new language, before any training and with its initialised vocabulary. The tokens to predict
are fixed. The rows are training text: the held-out text has no influence on the choice.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict

from tqdm import tqdm

from xmod_lab.config.schema import LangConfig, PretrainConfig
from xmod_lab.languages.embeddings import InitReport, initialise_vocabulary
from xmod_lab.model import NEAREST, XmodLanguageModel, donors_of
from xmod_lab.process_rank import process_count, rank
from xmod_lab.processes import gather
from xmod_lab.scoring.held_out import FixedTargets, on_device
from xmod_lab.text.corpus import Prepared
from xmod_lab.training.run_tables import donor_table

log = logging.getLogger(__name__)
ROWS = 64  # rows of training text that initialisations are compared on: some hundreds of sentences
_FOCUS_ROWS = 20_000  # of the training text, evenly spaced: enough for the vectors of a vocabulary

DonorRanking = list[tuple[str, float]]  # code of a donor, nats per predicted token; the best first


def initialise_language(
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    lang: LangConfig,
    old: Prepared,
    prepared: Prepared,
    *,
    keep: Callable[[Callable[[], DonorRanking]], DonorRanking] = lambda make: make(),
) -> dict:
    """Add ``lang`` to ``model`` and initialise its vocabulary and slot, in place.

    Args:
        keep: makes the ranking of donors and keeps it; a resumed run gets the one that was kept.
    Returns:
        What the pack's manifest says about the initialisation.
    """
    allocate_language(cfg, model, lang, old, prepared)
    vocabulary: dict = {"kind": lang.vocabulary}
    if lang.has_tokens:
        report = fill_vocabulary(cfg, model, lang.code, old, prepared, lang.embedding_init)
        log.info(
            "%s: of %s rows of the new table, %s are copied from the base (%.1f %% of its text), "
            "%s derived by %s (with them %.1f %%), %s %s",
            lang.code,
            f"{report.pieces:,}",
            f"{report.copied:,}",
            100 * report.overlap,
            f"{report.derived:,}",
            report.method,
            100 * report.coverage,
            f"{report.drawn:,}",
            "at the base's mean" if report.method == "mean" else "drawn",
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
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    lang: LangConfig,
    old: Prepared,
    prepared: Prepared,
) -> None:
    """Add a slot and, if the language has its own, a vocabulary. Both are random."""
    vocab_size = len(prepared.tokenizer) if lang.has_tokens else None
    beside = len(old.tokenizer) if lang.vocabulary == "extend" else None
    model.add_language(lang.code, "random", vocab_size=vocab_size, beside=beside, seed=cfg.seed)


def fill_vocabulary(
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    code: str,
    old: Prepared,
    prepared: Prepared,
    method: str,
) -> InitReport:
    """Initialise the vocabulary of ``code`` in place, by ``method``."""
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


def sampled_targets(cfg: PretrainConfig, prepared: Prepared, code: str) -> FixedTargets:
    """The labels that initialisations are compared on: ROWS rows of training text of ``code``."""
    return FixedTargets(
        code,
        prepared.corpora[code].sample(ROWS),
        prepared.tokenizer,
        cfg.objective,
        attention=cfg.data.attention,
    )


def rank_donors(
    cfg: PretrainConfig, model: XmodLanguageModel, prepared: Prepared, code: str
) -> DonorRanking:
    """Try each pre-trained slot as the slot of ``code``. Its vocabulary must be initialised.

    The slot of ``code`` is overwritten; the donors stay. Processes share the donors.
    Donors with equal losses keep the order of the base's languages.
    """
    donors, targets = donors_of(NEAREST, model.config), sampled_targets(cfg, prepared, code)
    losses = {}
    with on_device(model, cfg.trainer.accelerator):
        mine = donors[rank() :: process_count()]
        for donor in tqdm(
            mine, desc=f"trying donors for {code}", unit=" slots", leave=False, disable=None
        ):
            model.initialise_slot(code, f"copy:{donor}")
            losses[donor] = targets.loss(model)
    losses = gather(losses)
    return sorted(losses.items(), key=lambda item: (item[1], donors.index(item[0])))
