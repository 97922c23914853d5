"""All the ways in which a language can begin, compared before any training: embedding initialisers × slot initialisers.

Each combination begins exactly as training would begin with it. They are ranked by the loss on ROWS rows of the training
text, so that the choice has not seen what the language is scored on; the best of each table, and the configured one, are
then scored on the held-out text, which is the ``before`` figure that a run with that combination reports.

These losses compare slots on one table. Across tables they say how sure of itself a table is, and little of what it is worth:
rows that are all alike (``mean``) predict by frequency alone, and a masked model begins at the unigram entropy; rows that tell
pieces apart begin above it (experiments/initialisers).
"""

import logging
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from xmod_lab.choices import EMBEDDING_INITS, focus_fault
from xmod_lab.config import LangConfig, PretrainConfig
from xmod_lab.languages.initialisers import WORD_START, ordinary_pieces
from xmod_lab.model import NEAREST, XmodLanguageModel, donors_of
from xmod_lab.text.likelihoods import in_a_word
from xmod_lab.training.beginning import allocate_language, begin_vocabulary
from xmod_lab.training.data import Prepared
from xmod_lab.training.donors import sampled_targets
from xmod_lab.training.scoring import Scorer, on_device
from xmod_lab.training.tables import show

log = logging.getLogger(__name__)
_SLOTS = 12  # in the printed table; the files have all
_PIECES, _NEIGHBOURS = 6, 3  # new pieces whose nearest old ones are shown, and how many of these


@dataclass(frozen=True)
class Combination:
    """One way to begin. ``loss``: nats per predicted piece of training text; ``val``, ``bpb``: the held-out figures
    ``before/val/loss`` and ``before/val/bpb`` of a run, ``None`` where they were not computed."""

    embedding_init: str
    slot_init: str
    loss: float
    val: float | None = None
    bpb: float | None = None


@dataclass(frozen=True)
class Ranking:
    """``combinations``: best first; ``vocabularies``: by embedding_init, what its table is like; ``unigram``: loss of
    guessing by frequency on the same training rows, and on the held-out text; ``nearest``: by embedding_init, the donor
    that ``slot_init=nearest`` would choose; ``likelihood``: exact or pseudo, as of the model."""

    code: str
    combinations: list[Combination]
    vocabularies: dict[str, dict]
    nearest: dict[str, str]
    unigram: dict[str, float]
    likelihood: str


def rank_beginnings(
    cfg: PretrainConfig, model: XmodLanguageModel, lang: LangConfig, old: Prepared, prepared: Prepared
) -> Ranking:
    """Try every combination for ``lang``, which is added to ``model`` on the way; everything else is only read.

    With ``vocabulary=keep`` there is no table to begin, and slots alone are compared, under the name ``keep``.
    """
    code, own = lang.code, lang.vocabulary == "own"
    allocate_language(cfg, model, lang, prepared)
    donors = donors_of(NEAREST, model.config)
    methods, slots = _methods() if own else ["keep"], _slots(donors, lang)
    targets, corpus = sampled_targets(cfg, prepared, code), prepared.corpora[code]
    scorer = Scorer(corpus, prepared.tokenizer, cfg.objective)
    shown = _frequent_new_pieces(old.tokenizer, prepared.tokenizer, corpus.piece_counts) if own else {}
    found, vocabularies, nearest = [], {}, {}
    bar = tqdm(total=len(methods) * len(slots), desc=f"ranking beginnings of {code}", leave=False, disable=None)
    with on_device(model, cfg.trainer.accelerator), bar:
        for method in methods:
            if own:
                report = begin_vocabulary(cfg, model, code, old, prepared, method)
                vocabularies[method] = {**asdict(report), "drawn": report.drawn, **_likeness(model, code, old, shown)}
            losses = {}
            for slot in slots:
                model.initialise_slot(code, slot, seed=cfg.seed)
                losses[slot] = targets.loss(model)
                bar.update()
            nearest[method] = min(donors, key=lambda donor: losses[f"copy:{donor}"])
            scored = {min(slots, key=losses.get)}
            if method in (lang.embedding_init, "keep"):
                scored.add(f"copy:{nearest[method]}" if lang.slot_init == NEAREST else lang.slot_init)
            for slot, loss in losses.items():
                score = None
                if slot in scored:
                    model.initialise_slot(code, slot, seed=cfg.seed)
                    score = scorer.score(model)
                found.append(Combination(method, slot, loss, *((score.loss, score.bpb) if score else ())))
    found.sort(key=lambda c: c.loss)  # stable: of equals the one that was tried first
    unigram = {"loss": targets.unigram_loss(scorer.counts), "val": scorer.unigram().loss, "bpb": scorer.unigram().bpb}
    return Ranking(code, found, vocabularies, nearest, unigram, in_a_word(cfg.objective.causal))


def _slots(donors: list[str], lang: LangConfig) -> list[str]:
    """Every ``slot_init`` that reads all pre-trained slots, ``donors``, or one of them, or none, and the configured one."""
    slots = ["random", "zero_output", "mean", *(f"copy:{donor}" for donor in donors)]
    return slots if lang.slot_init in (*slots, NEAREST) else [*slots, lang.slot_init]


def _methods() -> list[str]:
    fault = focus_fault()
    if fault:
        log.warning("the ranking leaves one method out: %s", fault)
    return [method for method in EMBEDDING_INITS if not (method == "focus" and fault)]


def _frequent_new_pieces(
    old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, counts: np.ndarray
) -> dict[str, int]:
    """The most frequent pieces of three letters or more that the base does not have, by spelling."""
    known = ordinary_pieces(old)
    words = {p: i for p, i in ordinary_pieces(new).items() if p not in known and p.removeprefix(WORD_START).isalpha()}
    long = [p for p in words if len(p.removeprefix(WORD_START)) >= 3]
    return {p: words[p] for p in sorted(long, key=lambda p: (-counts[words[p]], words[p]))[:_PIECES]}


def _likeness(model: XmodLanguageModel, code: str, old: Prepared, shown: dict[str, int]) -> dict:
    """``mean_cosine`` of all pairs of rows of the table of ``code`` (0: in all directions alike, 1: all rows are one), that
    of the base, and the ``neighbours``: old pieces nearest to some new ones."""
    table = model.base_model.embeddings.vocabularies[code].word_embeddings.weight.detach()
    base = model.get_input_embeddings().weight.detach()
    pieces = ordinary_pieces(old.tokenizer)
    names, ids = list(pieces), list(pieces.values())
    own, others = _unit(table[list(shown.values())]), _unit(base[ids])
    nearest = (own @ others.T).topk(min(_NEIGHBOURS, len(names)), dim=1).indices.tolist()
    return {
        "mean_cosine": _mean_cosine(table),
        "base_mean_cosine": _mean_cosine(base),
        "neighbours": {piece: [names[i] for i in row] for piece, row in zip(shown, nearest, strict=True)},
    }


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.float(), dim=-1)


def _mean_cosine(table: Tensor) -> float:
    """Over all pairs of different rows that are not zero, without forming the pairs."""
    unit = _unit(table).double()
    n = int(unit.any(1).sum())
    return float((unit.sum(0).square().sum() - n) / (n * (n - 1)))


def ranking_tables(ranking: Ranking) -> None:
    """The combinations as a matrix, the best of them, and what each table is like."""
    losses = {(c.embedding_init, c.slot_init): c.loss for c in ranking.combinations}
    methods, slots = list(ranking.nearest), {slot for _, slot in losses}
    best = {m: min(losses[m, slot] for slot in slots) for m in methods}
    shown = sorted(slots, key=lambda slot: sum(losses[m, slot] for m in methods))[:_SLOTS]
    rows = [(slot, *(f"{losses[m, slot]:.3f}{' *'[losses[m, slot] == best[m]]}" for m in methods)) for slot in shown]
    rows.append(("nearest is", *ranking.nearest.values()))
    unigram = f"unigram {ranking.unigram['loss']:.3f}"
    title = f"{ranking.code} before training: nats/piece of training text ({unigram}); * the best of a table"
    show(title, ("slot_init", *methods), rows)
    rows = [
        (c.embedding_init, c.slot_init, f"{c.loss:.4f}", f"{c.val:.4f}", f"{c.bpb:.4f}")
        for c in ranking.combinations
        if c.val is not None
    ]
    rows.append(("unigram", "", *(f"{ranking.unigram[name]:.4f}" for name in ("loss", "val", "bpb"))))
    header = (
        "embedding_init",
        "slot_init",
        "nats/piece, training text",
        "held-out text",
        f"bits/byte ({ranking.likelihood})",
    )
    show(f"{ranking.code}: the best slot of each table, and what is configured", header, rows)
    tables = list(ranking.vocabularies.values())
    if tables:
        rows = [(f"rows {name}", *(f"{t[name]:,}" for t in tables)) for name in ("copied", "derived", "drawn")]
        rows.append(("text copied", *(f"{100 * t['overlap']:.1f} %" for t in tables)))
        rows.append(("text covered", *(f"{100 * t['coverage']:.1f} %" for t in tables)))
        rows.append(("mean cosine", *(f"{t['mean_cosine']:.2f}" for t in tables)))
        rows += [(f"{piece} ~", *(t["neighbours"][piece][0] for t in tables)) for piece in tables[0]["neighbours"]]
        base = f"the base has a mean cosine of {tables[0]['base_mean_cosine']:.2f}; ~ is nearest to which of its pieces"
        show(f"{ranking.code}: the tables; {base}", ("embedding_init", *methods), rows)
