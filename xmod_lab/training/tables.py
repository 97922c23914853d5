"""What a run says before it starts and after it ends, as tables on the terminal and in the log file."""

import io
import logging

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerBase

from xmod_lab.config import PretrainConfig
from xmod_lab.model import XmodConfig, XmodLanguageModel, language_model
from xmod_lab.training.data import Prepared
from xmod_lab.training.distributed import rank
from xmod_lab.training.module import parameter_groups

log = logging.getLogger(__name__)
Rows = list[tuple[str, ...]]


def show(title: str, header: tuple[str, ...], rows: Rows, *, words: int = 1) -> None:
    """Print a table; the first ``words`` columns stand left, numbers right. Of several processes the first one prints."""
    if rank():
        return
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i < words else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    console.print(table)
    _into_log(table)


def _into_log(table: Table) -> None:
    """The table into the log file of the run, where there is one."""
    text = io.StringIO()
    Console(file=text, width=110).print(table)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, "\n%s", (text.getvalue(),), None))


def corpus_table(prepared: Prepared, title: str) -> None:
    """What is in the prepared text of each language, what was left out, and what was odd about it."""
    rows: Rows = []
    for code, corpus in prepared.corpora.items():
        train, scored_text = (corpus.manifest["statistics"][split] for split in ("train", "validation"))
        rows.append((
            code,
            f"{train['passages']:,}",
            f"{train['duplicates_dropped']:,}",
            f"{train['null'] + train['empty']:,}",
            f"{train['bytes']:,}",
            f"{train['tokens']:,}",
            f"{train['bytes'] / train['tokens']:.2f}",
            f"{100 * train['unknown'] / train['tokens']:.2f} %",
            f"{train['rows']:,}",
            f"{scored_text['rows']:,}",
        ))  # fmt: skip
    header = ("language", "passages", "duplicates", "empty", "bytes", "pieces", "bytes/piece", "unknown",
              "rows", "held out")  # fmt: skip
    show(title, header, rows)
    for corpus in prepared.corpora.values() if not rank() else ():
        for remark in corpus.remarks():
            log.warning("warning: %s", remark)


def training_table(model: XmodLanguageModel, trainable: set[str], title: str) -> None:
    """Every group of parameters: whether it trains, how many there are, how many bytes they take."""
    groups = parameter_groups(model, trainable)
    rows = [
        (group, "trains" if trains else "frozen", f"{count:,}", f"{size:,}") for group, trains, count, size in groups
    ]
    moving, all_of_them = sum(g[2] for g in groups if g[1]), sum(g[2] for g in groups)
    share = f"{moving:,} of {all_of_them:,} parameters train ({100 * moving / all_of_them:.1f} %)"
    show(f"{title}: {share}", ("group", "", "parameters", "bytes"), rows)


def score_table(metrics: dict[str, float], codes: list[str], prefixes: dict[str, str], title: str) -> None:
    """Loss and bits per byte of each language, for each prefix (metrics.json's) under its title."""
    header = ("language", *(f"{unit}, {name}" for name in prefixes.values() for unit in ("nats/piece", "bits/byte")))
    rows = []
    for code in codes:
        cells = [metrics.get(f"{p}/{unit}/{code}") for p in prefixes for unit in ("loss", "bpb")]
        rows.append((code, *("–" if cell is None else f"{cell:.4f}" for cell in cells)))
    show(title, header, rows)


def donor_table(ranking: list[tuple[str, float]], code: str) -> None:
    """The pre-trained slots in the order in which they suit ``code``."""
    rows = [(donor, f"{loss:.4f}") for donor, loss in ranking]
    show(f"donors for {code}", ("slot of", "nats/piece before training"), rows)


def match_table(cfg: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """SHARED against modular at this size: what one language costs must be equal (X-MOD section 4)."""
    modular = cfg.model_config(len(tokenizer))
    modular.languages, modular.aliases = list(cfg.langset.languages), None
    shared = cfg.model_config(len(tokenizer))
    rows = []
    for name, config in (("shared slot", shared), ("a slot per language", modular)):
        flops, used, stored = cost_per_language(config, cfg.data.row_length)
        rows.append((name, f"{flops:,}", f"{used:,}", f"{stored:,}"))
    equal = rows[0][1:3] == rows[1][1:3]
    title = f"cost of one language: {'equal in FLOPs and in trainable parameters' if equal else 'NOT EQUAL'}"
    show(title, ("model", "FLOPs per row, forward", "parameters one language trains", "parameters stored"), rows)


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
