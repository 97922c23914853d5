"""All ways to initialise a language, compared: embedding initialisers × slot initialisers.

Each combination is initialised exactly as a training would initialise it. Losses are on ROWS rows
of the training text: the choice does not see the held-out text that scores the language.
Before training, losses compare slots for one table. They say little about tables: equal rows
(``mean``) predict by frequency alone and begin at the unigram entropy. Rows that distinguish tokens
begin above it (experiments/initialisers).

So the best slot of each table, and the configured combination, are trained for ``cfg.steps`` steps,
as a run would train them, and ranked by the loss after that. They are also scored on the held-out
text, before training (the ``before`` figures of a run with that combination) and after it.
"""

import logging
import warnings
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from xmod_lab.choices import EMBEDDING_INITS, focus_fault
from xmod_lab.config.schema import LangConfig, PretrainConfig
from xmod_lab.metrics import number
from xmod_lab.model import NEAREST, XmodLanguageModel, donors_of
from xmod_lab.scoring.held_out import FixedTargets, Scorer, on_device, scorers_of
from xmod_lab.stages.extension import seed_of, trainable_names
from xmod_lab.stages.initialise import allocate_language, fill_vocabulary, sampled_targets
from xmod_lab.tables import Table, csv_text
from xmod_lab.text.corpus import Prepared
from xmod_lab.text.spelling import WORD_START, ordinary_tokens
from xmod_lab.training.data import batches, mixture_of
from xmod_lab.training.distillation import distillation_of
from xmod_lab.training.fit import make_trainer
from xmod_lab.training.step import LanguageModeling

log = logging.getLogger(__name__)
_SLOTS = 12  # in the printed table; the files have all
_TOKENS, _NEIGHBOURS = 6, 3  # new tokens shown, and nearest old tokens shown for each


@dataclass(frozen=True)
class Combination:
    """One way to initialise. ``None`` for what was not computed.

    Args:
        loss: nats per predicted token of training text.
        val, bpb: the held-out figures ``before/val/loss`` and ``before/val/bpb`` of a run.
        after, after_val, after_bpb: the same after the steps of the ranking.
    """

    embedding_init: str
    slot_init: str
    loss: float
    val: float | None = None
    bpb: float | None = None
    after: float | None = None
    after_val: float | None = None
    after_bpb: float | None = None


@dataclass(frozen=True)
class Ranking:
    """All combinations for one language.

    Args:
        combinations: those that were trained for ``steps`` steps, best first, then the others.
        vocabularies: by embedding_init, what its table is like.
        nearest: by embedding_init, the donor that ``slot_init=nearest`` would choose.
        unigram: loss of guessing by frequency, on the same training rows and on the held-out text.
        likelihood: exact or pseudo, as of the model.
    """

    code: str
    combinations: list[Combination]
    vocabularies: dict[str, dict]
    nearest: dict[str, str]
    unigram: dict[str, float]
    likelihood: str
    steps: int

    def csv(self) -> str:
        """A line for each combination."""
        return csv_text([{**asdict(c), "likelihood": self.likelihood} for c in self.combinations])


def rank_initialisers(
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    lang: LangConfig,
    old: Prepared,
    prepared: Prepared,
) -> Ranking:
    """Try every combination for ``lang``, which is added to ``model``. All else is only read.

    With ``vocabulary=keep`` no table is initialised, and only slots are compared, under the name
    ``keep``.
    """
    code = lang.code
    allocate_language(cfg, model, lang, old, prepared)
    targets, scorer = sampled_targets(cfg, prepared, code), scorers_of(prepared, cfg)[code]
    start = _try_all(cfg, model, lang, old, prepared, targets, scorer)
    found = dict(start.found)
    for key, weights in tqdm(
        start.weights.items(),
        f"{cfg.steps} steps of each table of {code}",
        leave=False,
        disable=None,
    ):
        _train(cfg, model, lang, old, prepared, weights)
        with on_device(model, cfg.trainer.accelerator):
            val, bpb = scorer.score(model)
            found[key] = replace(
                found[key], after=targets.loss(model), after_val=val, after_bpb=bpb
            )
    ranked = sorted(
        found.values(), key=lambda c: (c.after is None, c.loss if c.after is None else c.after)
    )
    told = scorer.unigram()
    return Ranking(
        code,
        ranked,
        start.vocabularies,
        start.nearest,
        unigram={
            "loss": targets.unigram_loss(scorer.counts),
            "val": told[f"unigram/loss/{code}"],
            "bpb": told[f"unigram/bpb/{code}"],
        },
        likelihood=cfg.objective.likelihood.word,
        steps=cfg.steps,
    )


@dataclass(frozen=True)
class _Start:
    """All combinations before training, by embedding_init and slot_init.

    Args:
        weights: of those that are to be trained.
        vocabularies, nearest: see :class:`Ranking`.
    """

    found: dict[tuple[str, str], Combination]
    weights: dict[tuple[str, str], dict[str, Tensor]]
    vocabularies: dict[str, dict]
    nearest: dict[str, str]


def _try_all(
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    lang: LangConfig,
    old: Prepared,
    prepared: Prepared,
    targets: FixedTargets,
    scorer: Scorer,
) -> _Start:
    """Initialise ``lang`` in every way, and score it without training.

    The held-out text scores the best slot of each table and the configured combination.
    """
    code, own = lang.code, lang.has_tokens
    donors = donors_of(NEAREST, model.config)
    methods, slots = _methods() if own else ["keep"], _slots(donors, lang)
    counts = prepared.corpora[code].token_counts
    shown = _frequent_new_tokens(old.tokenizer, prepared.tokenizer, counts) if own else {}
    start = _Start({}, {}, {}, {})
    bar = tqdm(
        total=len(methods) * len(slots),
        desc=f"ranking initialisers of {code}",
        leave=False,
        disable=None,
    )
    with on_device(model, cfg.trainer.accelerator), bar:
        for method in methods:
            if own:
                report = fill_vocabulary(cfg, model, code, old, prepared, method)
                start.vocabularies[method] = {
                    **asdict(report),
                    "drawn": report.drawn,
                    **_likeness(model, code, old, shown),
                }
            losses = {}
            for slot in slots:
                model.initialise_slot(code, slot, seed=cfg.seed)
                losses[slot] = targets.loss(model)
                bar.update()
            nearest = min(donors, key=lambda donor: losses[f"copy:{donor}"])
            start.nearest[method] = nearest
            scored = {min(slots, key=losses.get)}
            if method in (lang.embedding_init, "keep"):
                scored.add(f"copy:{nearest}" if lang.slot_init == NEAREST else lang.slot_init)
            for slot, loss in losses.items():
                score = None
                if slot in scored:
                    model.initialise_slot(code, slot, seed=cfg.seed)
                    score = scorer.score(model)
                    start.weights[method, slot] = {
                        n: p.detach().cpu().clone()
                        for n, p in model.language_parameters(code).items()
                    }
                start.found[method, slot] = Combination(method, slot, loss, *(score or ()))
    return start


def _train(
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    lang: LangConfig,
    old: Prepared,
    prepared: Prepared,
    weights: dict[str, Tensor],
) -> None:
    """Train ``lang`` in place from ``weights``, as a run of ``cfg.steps`` steps; write nothing."""
    with torch.no_grad():
        for name, value in weights.items():
            model.get_parameter(name).copy_(value)
    seed, fused = seed_of(cfg, lang.code), cfg.trainer.precision != "16-mixed"
    distillation = distillation_of(cfg, model, prepared, old.tokenizer)
    module = LanguageModeling(
        model,
        cfg.recipe,
        steps=cfg.steps,
        seed=seed,
        trainable=trainable_names(model, lang),
        fused=fused,
        distillation=distillation,
    )
    mixture = mixture_of(cfg, prepared, steps=cfg.steps, seed=seed)
    loader = batches(
        cfg,
        prepared,
        mixture,
        {lang.code: model.lang_id(lang.code)},
        seed=seed,
        steps=cfg.steps,
        first_step=0,
        rank=0,
        processes=1,
        distillation=distillation,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        make_trainer(cfg, [], TorchCheckpointIO()).fit(module, loader)
    model.requires_grad_(True)
    model.eval()


def _slots(donors: list[str], lang: LangConfig) -> list[str]:
    """Every ``slot_init`` that reads all ``donors``, one, or no donor; and the configured one."""
    slots = ["random", "zero_output", "mean", *(f"copy:{donor}" for donor in donors)]
    return slots if lang.slot_init in (*slots, NEAREST) else [*slots, lang.slot_init]


def _methods() -> list[str]:
    fault = focus_fault()
    if fault:
        log.warning("the ranking leaves one method out: %s", fault)
    return [method for method in EMBEDDING_INITS if not (method == "focus" and fault)]


def _frequent_new_tokens(
    old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, counts: np.ndarray
) -> dict[str, int]:
    """The most frequent tokens of three letters or more that the base lacks, by spelling."""
    known = ordinary_tokens(old)
    words = {
        p: i
        for p, i in ordinary_tokens(new).items()
        if p not in known and p.removeprefix(WORD_START).isalpha()
    }
    long = [p for p in words if len(p.removeprefix(WORD_START)) >= 3]
    return {
        p: words[p] for p in sorted(long, key=lambda p: (-counts[words[p]], words[p]))[:_TOKENS]
    }


def _likeness(model: XmodLanguageModel, code: str, old: Prepared, shown: dict[str, int]) -> dict:
    """How alike the rows of a table are.

    ``mean_cosine`` of all pairs of rows (0: all directions alike, 1: all rows equal), that of the
    base's table, and ``neighbours``: the old tokens nearest to some new ones.
    """
    table = model.base_model.embeddings.vocabularies[code].word_embeddings.weight.detach()
    base = model.get_input_embeddings().weight.detach()
    tokens = ordinary_tokens(old.tokenizer)
    names, ids = list(tokens), list(tokens.values())
    own, others = _unit(table[list(shown.values())]), _unit(base[ids])
    nearest = (own @ others.T).topk(min(_NEIGHBOURS, len(names)), dim=1).indices.tolist()
    return {
        "mean_cosine": _mean_cosine(table),
        "base_mean_cosine": _mean_cosine(base),
        "neighbours": {
            token: [names[i] for i in row] for token, row in zip(shown, nearest, strict=True)
        },
    }


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.float(), dim=-1)


def _mean_cosine(table: Tensor) -> float:
    """The mean cosine over all pairs of non-zero rows, without forming the pairs."""
    unit = _unit(table).double()
    n = int(unit.any(1).sum())
    return float((unit.sum(0).square().sum() - n) / (n * (n - 1)))


def ranking_tables(ranking: Ranking) -> list[Table]:
    """Losses before training (a matrix), what each table is like, and the trained combinations."""
    losses = {(c.embedding_init, c.slot_init): c.loss for c in ranking.combinations}
    methods, slots = list(ranking.nearest), {slot for _, slot in losses}
    best = {m: min(losses[m, slot] for slot in slots) for m in methods}
    shown = sorted(slots, key=lambda slot: sum(losses[m, slot] for m in methods))[:_SLOTS]
    rows = []
    for slot in shown:
        marks = [" *" if losses[m, slot] == best[m] else "" for m in methods]
        cells = (number(losses[m, slot]) + mark for m, mark in zip(methods, marks, strict=True))
        rows.append((slot, *cells))
    rows.append(("nearest is", *ranking.nearest.values()))
    matrix = Table(
        f"{ranking.code} before training: nats/token of training text",
        ("slot_init", *methods),
        rows,
        f"*: the best slot of an embedding table. Unigram: {number(ranking.unigram['loss'])}. "
        "Compare the slots of one table. These losses do not say which table is best after "
        "training.",
    )
    values = ("after", "after_val", "after_bpb", "loss", "val", "bpb")
    rows = [
        (c.embedding_init, c.slot_init, *(number(getattr(c, name)) for name in values))
        for c in ranking.combinations
        if c.after is not None
    ]
    unigram = (number(ranking.unigram.get(name)) for name in values)
    rows.append(("unigram", "", *unigram))
    units = ("nats/token, training text", "held-out text", f"bits/byte ({ranking.likelihood})")
    when = (f"after {ranking.steps} steps", "before")
    trained = Table(
        f"{ranking.code}: the best slot of each table and the configured combination, best first",
        ("embedding_init", "slot_init", *(f"{w}: {unit}" for w in when for unit in units)),
        rows,
        f"Ranked by the loss after {ranking.steps} steps of training. This is one seed: small "
        "differences say nothing.",
        labels=2,
    )
    described = [_about_tables(ranking, methods)] if ranking.vocabularies else []
    return [matrix, *described, trained]


def _about_tables(ranking: Ranking, methods: list[str]) -> Table:
    tables = list(ranking.vocabularies.values())
    rows = [
        (f"rows {name}", *(f"{t[name]:,}" for t in tables))
        for name in ("copied", "derived", "drawn")
    ]
    rows.append(("text copied", *(f"{100 * t['overlap']:.1f} %" for t in tables)))
    rows.append(("text covered", *(f"{100 * t['coverage']:.1f} %" for t in tables)))
    rows.append(("mean cosine", *(number(t["mean_cosine"]) for t in tables)))
    rows += [
        (f"{token} ~", *(t["neighbours"][token][0] for t in tables))
        for token in tables[0]["neighbours"]
    ]
    note = (
        f"The base has a mean cosine of {number(tables[0]['base_mean_cosine'])}. ~ names the "
        "nearest token of the base."
    )
    title = f"{ranking.code}: the embedding tables"
    return Table(title, ("embedding_init", *methods), rows, note)
