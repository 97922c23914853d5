"""What a run says before it starts and after it ends, as tables on the terminal and in its log."""

import logging

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerBase

from xmod_lab.config.schema import PretrainConfig
from xmod_lab.metrics import number, told
from xmod_lab.model import XmodConfig, XmodLanguageModel, language_model
from xmod_lab.process_rank import rank
from xmod_lab.tables import Table
from xmod_lab.text.corpus import Prepared
from xmod_lab.text.normalisation import KINDS, named, read_as
from xmod_lab.text.tokenizer import about_training, special_ids
from xmod_lab.training.step import parameter_groups

log = logging.getLogger(__name__)
ParameterGroup = tuple[str, bool, int, int]
_LISTED = 12  # slots that are listed one by one
_MOST = 4  # characters that are named for each language


def show_corpora(prepared: Prepared, title: str) -> None:
    """Print what is in the prepared text of each language, how it fills its rows, what is held out,
    and what the vocabulary changes; and log what was odd about the text."""
    text, rows = [], []
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
        by_document = held_out["held_out_by"] == "document"
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
                f"{held_out['in_training'] if by_document else 0:,}",
            )
        )
    header = (
        "language",
        "passages",
        "duplicates",
        "empty",
        "bytes",
        "tokens",
        "bytes/token",
        "unknown",
    )
    Table(title, header, text).print()
    header = (
        "language",
        "rows",
        "padding",
        "passages cut",
        "held out by",
        "held-out passages",
        "held-out bytes",
        "held-out rows",
        "also in training text",
        "left out for that",
    )
    Table("rows to train on, and held-out text", header, rows).print()
    show_normalisation(prepared)
    for corpus in prepared.corpora.values() if not rank() else ():
        for remark in corpus.remarks():
            log.warning("warning: %s", remark)


def show_normalisation(prepared: Prepared) -> None:
    """Print which characters the vocabulary reads as others; log what it was made from."""
    if not rank() and (made := about_training(prepared.folder)):
        log.info("vocabulary of %s: %s", ", ".join(prepared.corpora), made)
    rows = []
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
        title = "characters of the training text that the vocabulary reads as others"
        header = ("language", "most often", *KINDS, "held-out passages", "bits/byte charged")
        Table(title, header, rows, labels=2).print()


def training_table(model: XmodLanguageModel, trainable: set[str], title: str) -> Table:
    """Every group of parameters: whether it trains, how many there are, and their bytes.

    Slots that train are one row and frozen slots another; so are vocabularies.
    """
    groups = parameter_groups(model, trainable)
    rows = [
        (group, "trains" if trains else "frozen", f"{count:,}", f"{size:,}")
        for group, trains, count, size in _folded(groups)
    ]
    moving, total = sum(g[2] for g in groups if g[1]), sum(g[2] for g in groups)
    share = f"{moving:,} of {total:,} parameters train ({100 * moving / total:.1f} %)"
    return Table(f"{title}: {share}", ("group", "", "parameters", "bytes"), rows)


def _folded(groups: list[ParameterGroup]) -> list[ParameterGroup]:
    folded: dict[tuple[str, bool], list[ParameterGroup]] = {}
    for group in groups:
        kind = group[0].split()[0]
        together = kind if kind in ("slot", "vocabulary") else group[0]
        folded.setdefault((together, group[1]), []).append(group)
    rows = []
    for (kind, trains), parts in folded.items():
        name = parts[0][0]
        if len(parts) > 1:
            codes = [part[0].removeprefix(f"{kind} ") for part in parts]
            listed = ", ".join(codes[:_LISTED])
            if len(codes) > _LISTED:
                listed += f" and {len(codes) - _LISTED} others"
            name = f"{len(parts)} {'slots' if kind == 'slot' else 'vocabularies'}: {listed}"
        rows.append((name, trains, sum(part[2] for part in parts), sum(part[3] for part in parts)))
    return rows


def score_table(
    metrics: dict[str, float], codes: list[str], prefixes: dict[str, str], title: str
) -> Table:
    """Loss and bits per byte of each language with their errors.

    Args:
        prefixes: of the names in metrics.json (``before/val``), each with its words.
    """
    units = {"loss": "nats/token", "bpb": "bits/byte"}
    rows = [
        (code, *(told(metrics, f"{prefix}/{unit}/{code}") for prefix in prefixes for unit in units))
        for code in codes
    ]
    header = (f"{unit}, {words}" for words in prefixes.values() for unit in units.values())
    return Table(title, ("language", *header), rows)


def donor_table(ranking: list[tuple[str, float]], code: str) -> Table:
    """The pre-trained slots, the one that suits ``code`` best first."""
    rows = [(donor, number(loss)) for donor, loss in ranking[:_LISTED]]
    if more := ranking[_LISTED:]:
        rows.append((f"{len(more)} others", f"up to {number(more[-1][1])}"))
    return Table(f"donors for {code}", ("slot of", "nats/token before training"), rows)


def match_table(cfg: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> Table:
    """A shared slot against a slot per language at this size: what one language costs must be equal
    (X-MOD section 4)."""
    modular = cfg.model_config(len(tokenizer), special_ids(tokenizer))
    modular.languages, modular.aliases = list(cfg.langset.languages), None
    shared = cfg.model_config(len(tokenizer), special_ids(tokenizer))
    costs = [cost_per_language(config, cfg.data.row_length) for config in (shared, modular)]
    rows = [
        (name, *(f"{count:,}" for count in cost))
        for name, cost in zip(("shared slot", "a slot per language"), costs, strict=True)
    ]
    equal = costs[0][:2] == costs[1][:2]
    verdict = "equal in FLOPs and in trainable parameters" if equal else "NOT EQUAL"
    header = (
        "model",
        "FLOPs per row, forward",
        "parameters one language trains",
        "parameters stored",
    )
    return Table(f"cost of one language: {verdict}", header, rows)


def cost_per_language(config: XmodConfig, length: int) -> tuple[int, int, int]:
    """Forward FLOPs of one row, parameters that a batch of one language trains, and parameters
    stored.

    They are counted on the meta device: no weights are made.
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
