"""What a run says before it starts and after it ends, as tables on the terminal and in its log."""

import logging

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerBase

from xmod_lab.config.schema import PretrainConfig
from xmod_lab.metrics import told
from xmod_lab.model import XmodConfig, XmodLanguageModel, language_model
from xmod_lab.processes import rank
from xmod_lab.tables import Rows, show
from xmod_lab.text.normalisation import KINDS, named, read_as
from xmod_lab.text.prepared import Prepared
from xmod_lab.text.tokenizer import special_ids
from xmod_lab.text.vocabulary import about_training
from xmod_lab.training.step import parameter_groups

log = logging.getLogger(__name__)
ParameterGroup = tuple[str, bool, int, int]
_LISTED = 12  # slots that are listed one by one
_MOST = 4  # characters that are named for each language


def corpus_table(prepared: Prepared, title: str) -> None:
    """What is in the prepared text of each language, what was left out, what its vocabulary does not tell, how it fills its rows, what of the
    held-out text is training text, and what was odd about it."""
    text: Rows = []
    rows: Rows = []
    for code, corpus in prepared.corpora.items():
        train, held_out = (
            corpus.manifest["statistics"][split] for split in ("train", "validation")
        )
        positions = corpus.manifest["settings"]["length"] * train["rows"]
        text.append(
            (
                code,
                f"{train['passages']:,}",
                f"{train['duplicates_dropped']:,}",
                f"{train['null'] + train['empty']:,}",
                f"{train['bytes']:,}",
                f"{train['tokens']:,}",
                f"{train['bytes'] / train['tokens']:.2f}",
                f"{100 * train['unknown'] / train['tokens']:.2f} %",
            )
        )
        left_out = held_out["in_training"] if held_out["held_out_by"] == "document" else 0
        rows.append(
            (
                code,
                f"{train['rows']:,}",
                f"{100 * train['padding'] / positions:.1f} %",
                f"{train['cut']:,}",
                held_out["held_out_by"],
                f"{held_out['passages']:,}",
                f"{held_out['bytes']:,}",
                f"{held_out['rows']:,}",
                f"{held_out['in_training']:,}",
                f"{left_out:,}",
            )
        )
    show(
        title,
        (
            "language",
            "passages",
            "duplicates",
            "empty",
            "bytes",
            "pieces",
            "bytes/piece",
            "unknown",
        ),
        text,
    )
    header = (
        "language",
        "rows",
        "padding",
        "passages cut",
        "held out by",
        "passages",
        "bytes",
        "rows",
        "training text too",
        "left out for that",
    )
    show("rows to train on, and held-out text", header, rows)
    normalisation_table(prepared)
    for corpus in prepared.corpora.values() if not rank() else ():
        for remark in corpus.remarks():
            log.warning("warning: %s", remark)


def normalisation_table(prepared: Prepared) -> None:
    """What the vocabulary reads otherwise than it is written, and what text it was made from; nothing where there is nothing to say."""
    if not rank() and (made := about_training(prepared.folder)):
        log.info("vocabulary of %s: %s", ", ".join(prepared.corpora), made)
    rows: Rows = []
    for code, corpus in prepared.corpora.items():
        train, scored_text = (
            corpus.manifest["statistics"][split] for split in ("train", "validation")
        )
        if train["changed"] or scored_text["changed"]:
            most = [
                f"{named(c)} → {read_as(image)} {n:,}"
                for c, image, n in train["changed_most"][:_MOST]
            ]
            counts = (f"{train['changed'].get(kind, 0):,}" for kind in KINDS)
            charge = f"{scored_text['respelling_bits'] / scored_text['bytes']:.4f}"
            share = f"{100 * scored_text['changed_passages'] / scored_text['passages']:.1f} %"
            rows.append((code, ", ".join(most), *counts, share, charge))
    if rows:
        header = ("language", "most often", *KINDS, "held-out passages", "bits/byte charged")
        show(
            "characters of the training text that the vocabulary reads otherwise",
            header,
            rows,
            words=2,
        )


def training_table(model: XmodLanguageModel, trainable: set[str], title: str) -> None:
    """Every group of parameters: whether it trains, how many there are, how many bytes they take."""
    groups = parameter_groups(model, trainable)
    rows = [
        (group, "trains" if trains else "frozen", f"{count:,}", f"{size:,}")
        for group, trains, count, size in _folded(groups)
    ]
    moving, all_of_them = sum(g[2] for g in groups if g[1]), sum(g[2] for g in groups)
    share = f"{moving:,} of {all_of_them:,} parameters train ({100 * moving / all_of_them:.1f} %)"
    show(f"{title}: {share}", ("group", "", "parameters", "bytes"), rows)


def _folded(groups: list[ParameterGroup]) -> list[ParameterGroup]:
    """Slots that train in one line, those that are frozen in another; the same of vocabularies."""
    folded: dict[tuple[str, bool], list[ParameterGroup]] = {}
    for group in groups:
        kind = group[0].split()[0]
        folded.setdefault(
            (kind if kind in ("slot", "vocabulary") else group[0], group[1]), []
        ).append(group)
    rows = []
    for (kind, trains), parts in folded.items():
        names = [name.removeprefix(f"{kind} ") for name, *_ in parts]
        several = f"{len(parts)} {'slots' if kind == 'slot' else 'vocabularies'}: {_listed(names)}"
        name = several if len(parts) > 1 else parts[0][0]
        rows.append((name, trains, sum(part[2] for part in parts), sum(part[3] for part in parts)))
    return rows


def _listed(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:_LISTED])} and {more} others"


def score_table(
    metrics: dict[str, float], codes: list[str], prefixes: dict[str, str], title: str
) -> None:
    """Loss and bits per byte of each language, for each prefix (metrics.json's) under its title, with half of the interval of each."""
    header = (
        "language",
        *(f"{unit}, {name}" for name in prefixes.values() for unit in ("nats/piece", "bits/byte")),
    )
    rows = []
    for code in codes:
        rows.append(
            (
                code,
                *(
                    told(metrics, f"{p}/{unit}/{code}")
                    for p in prefixes
                    for unit in ("loss", "bpb")
                ),
            )
        )
    show(title, header, rows)


def donor_table(ranking: list[tuple[str, float]], code: str) -> None:
    """The pre-trained slots in the order in which they suit ``code``."""
    rows = [(donor, f"{loss:.4f}") for donor, loss in ranking[:_LISTED]]
    if more := ranking[_LISTED:]:
        rows.append((f"{len(more)} others", f"up to {more[-1][1]:.4f}"))
    show(f"donors for {code}", ("slot of", "nats/piece before training"), rows)


def match_table(cfg: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """SHARED against modular at this size: what one language costs must be equal (X-MOD section 4)."""
    modular = cfg.model_config(len(tokenizer), special_ids(tokenizer))
    modular.languages, modular.aliases = list(cfg.langset.languages), None
    shared = cfg.model_config(len(tokenizer), special_ids(tokenizer))
    rows = []
    for name, config in (("shared slot", shared), ("a slot per language", modular)):
        flops, used, stored = cost_per_language(config, cfg.data.row_length)
        rows.append((name, f"{flops:,}", f"{used:,}", f"{stored:,}"))
    equal = rows[0][1:3] == rows[1][1:3]
    title = f"cost of one language: {'equal in FLOPs and in trainable parameters' if equal else 'NOT EQUAL'}"
    show(
        title,
        ("model", "FLOPs per row, forward", "parameters one language trains", "parameters stored"),
        rows,
    )


def cost_per_language(config: XmodConfig, length: int) -> tuple[int, int, int]:
    """(forward FLOPs of one row, parameters that a batch of one language trains, parameters stored).

    Counted on the meta device: no weights are made.
    """
    with torch.device("meta"):
        model = language_model(config).eval()
        ids = torch.zeros(1, length, dtype=torch.long)
        # meta tensors hold no values: the default language stands for any
        model.config.default_language = model.languages[0]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(ids)
    other_slots = [code for code in config.languages[1:]]
    idle = sum(p.numel() for code in other_slots for p in model.language_parameters(code).values())
    stored = sum(p.numel() for p in model.parameters())
    return counter.get_total_flops(), stored - idle, stored
