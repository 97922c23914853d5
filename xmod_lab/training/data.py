"""What a run reads: from the configuration to tokenizers, prepared corpora, mixture and batches."""

import logging
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase

from xmod_lab.config.identity import identity
from xmod_lab.config.schema import LangConfig, PretrainConfig
from xmod_lab.errors import UserError
from xmod_lab.machine import cores
from xmod_lab.phases import first_step, phases_of
from xmod_lab.process_rank import leads_machine
from xmod_lab.processes import first_alone
from xmod_lab.runs.folder import MAY_CHANGE
from xmod_lab.scoring.held_out import held_out
from xmod_lab.text.added_tokens import extended
from xmod_lab.text.batches import BatchStream
from xmod_lab.text.corpus import Corpus, Prepared
from xmod_lab.text.mixture import Mixture, at_cap, proportions
from xmod_lab.text.normalisation import SPACES
from xmod_lab.text.parts import titled
from xmod_lab.text.preparing import prepare_corpora
from xmod_lab.text.spool import spooled
from xmod_lab.text.tokenizer import load_tokenizer, own_tokenizer
from xmod_lab.text.trimming import saved, with_padding
from xmod_lab.text.unigram import PAD
from xmod_lab.training.distillation import Distillation, teacher_facts
from xmod_lab.training.interruption import leave_signals_to_the_run

log = logging.getLogger(__name__)
_SMALL = 2**20  # bytes
_MOST_PROCESSES = 32  # that prepare text, unless data.processes says more
# not in the record of a run, which has them as task, by the tokenizer's name, and as steps
_SAID_OTHERWISE = ("name", "tokenizer", "max_steps", "max_tokens")
# A kept vocabulary does not suit a text if more than _SPACES of its known tokens are spaces, if
# more than _UNKNOWN of its bytes are unknown, or if its tokens are shorter than _SHORT times the
# shortest mean of the base's languages.
_SPACES, _UNKNOWN, _SHORT = 0.5, 0.01, 0.75


def prepare_base(
    cfg: PretrainConfig, *, tokenizer: str | None = None, codes: list[str] | None = None
) -> Prepared:
    """Prepare the language set with ``tokenizer``, ``data.tokenizer``, or one trained on its text.

    Args:
        tokenizer: a folder.
        codes: only these languages of the set, those that a given base has; default: all.
    """
    sources = {
        code: cfg.source(text)
        for code, text in cfg.langset.languages.items()
        if codes is None or code in codes
    }
    folder = tokenizer or cfg.data.tokenizer
    if folder is None:
        folder = _train_tokenizer(cfg, sources, cfg.langset.vocabulary_size)
    return _prepare(cfg, sources, folder, for_new_model=tokenizer is None)


def _check_positions(cfg: PretrainConfig, pad_id: int, folder: str) -> None:
    """Raises UserError if a model for this tokenizer has too few positions for a row.

    Positions are counted from the id of the padding token.
    """
    needed = cfg.data.row_length + pad_id + 1
    if cfg.model.max_position_embeddings < needed:
        raise UserError(
            f"tokenizer '{folder}' pads with id {pad_id}, from which positions count: a row of "
            f"{cfg.data.row_length} tokens needs model.max_position_embeddings={needed}, here it "
            f"is {cfg.model.max_position_embeddings}; set it, or give a tokenizer with a low "
            "padding id"
        )


def prepare_beside(cfg: PretrainConfig, lang: LangConfig, base: Prepared) -> Prepared:
    """Prepare one language to add to ``base``, with the vocabulary that ``lang`` names."""
    tokenizer = None if lang.vocabulary == "own" else base.folder
    if lang.vocabulary == "extend":
        most = cfg.data.tokenizer_bytes // 8  # it takes 30 to 80 times as many, in this process
        with spooled(cfg.source(lang), Path(cfg.data.folder), most) as passages:
            more = extended(base.tokenizer, passages, tokens=lang.vocabulary_size)
        tokenizer = str(saved(more, Path(cfg.data.folder)))
    return prepare_language(cfg, lang, tokenizer, pad_id=base.tokenizer.pad_token_id)


def prepare_language(
    cfg: PretrainConfig, lang: LangConfig, tokenizer: str | None, *, pad_id: int = PAD
) -> Prepared:
    """Prepare one language to add.

    Args:
        tokenizer: a folder; ``None``: the one that ``lang`` names, else one is trained on its text.
        pad_id: of the padding token of that one, as in the base.
    """
    sources = {lang.code: cfg.source(lang)}
    if tokenizer is None and lang.tokenizer:
        given = with_padding(load_tokenizer(lang.tokenizer), pad_id)
        tokenizer = str(saved(given, Path(cfg.data.folder)))
    folder = tokenizer or _train_tokenizer(cfg, sources, lang.vocabulary_size, pad_id)
    prepared = _prepare(cfg, sources, folder)
    _check_rows(prepared, cfg, f"the text of {lang.code} ({titled(lang.text)})")
    return prepared


def about_kept(prepared: Prepared, base: Prepared) -> str | None:
    """A warning if the base's vocabulary suits the language worse than it suits the base's own."""
    ((code, corpus),) = prepared.corpora.items()
    text = corpus.manifest["statistics"]["train"]
    unknown, size = text["unknown_bytes"] / text["bytes"], text["bytes"] / text["tokens"]
    sizes = [
        t["bytes"] / t["tokens"]
        for t in (c.manifest["statistics"]["train"] for c in base.corpora.values())
    ]
    short = bool(sizes) and size < _SHORT * min(sizes)
    spaces = _share_of_spaces(corpus, prepared.tokenizer)
    if unknown <= _UNKNOWN and not short and spaces <= _SPACES:
        return None
    guessed = (
        f" Of its known tokens {100 * spaces:.0f} % are spaces: its losses are mostly those of "
        "guessing them."
        if spaces > _SPACES
        else ""
    )
    beside = f", in the languages of the base {min(sizes):.1f} to {max(sizes):.1f}" if sizes else ""
    return (
        f"{code}: in the base's vocabulary a token has {size:.1f} bytes of it{beside}, and "
        f"{100 * unknown:.1f} % of its bytes are unknown; a vocabulary of its own "
        f"(vocabulary=own) suits it better.{guessed}"
    )


def _share_of_spaces(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> float:
    """The share of spaces among the training tokens, without special ones and <unk>."""
    counts = corpus.token_counts.copy()
    counts[tokenizer.all_special_ids] = 0
    spaces = [
        i
        for piece, i in tokenizer.get_vocab().items()
        if not piece.strip(SPACES) and i < len(counts)
    ]
    return float(counts[spaces].sum() / max(1, counts.sum()))


def _train_tokenizer(cfg: PretrainConfig, sources: dict, vocab_size: int, pad_id: int = PAD) -> str:
    with first_alone(Path(cfg.data.folder)), cfg.remembering():
        path = own_tokenizer(
            sources,
            vocab_size=vocab_size,
            alpha=cfg.data.tokenizer_alpha,
            byte_fallback=cfg.data.byte_fallback,
            normalization=cfg.data.normalization,
            sample=cfg.data.tokenizer_bytes,
            folder=Path(cfg.data.folder),
            pad_id=pad_id,
            rebuild=cfg.rebuild and leads_machine(),
        )
    return str(path)


def _prepare(
    cfg: PretrainConfig, sources: dict, folder: str, *, for_new_model: bool = False
) -> Prepared:
    tokenizer = load_tokenizer(folder)
    if for_new_model:
        _check_positions(cfg, tokenizer.pad_token_id, folder)
    with first_alone(Path(cfg.data.folder)), cfg.remembering():
        corpora = prepare_corpora(
            sources,
            tokenizer,
            length=cfg.data.row_length,
            folder=Path(cfg.data.folder),
            rebuild=cfg.rebuild and leads_machine(),
            budget=cfg.data.validation_tokens,
            processes=cfg.data.processes or min(cores(), _MOST_PROCESSES),
        )
    return Prepared(tokenizer, folder, corpora)


def _check_rows(prepared: Prepared, cfg: PretrainConfig, what: str) -> None:
    """Check that there are rows for a step, and rows of each language to train on and to score.

    Raises:
        UserError: there are too few rows, or no held-out token can be hidden.
    """
    rows = {code: len(corpus.train) for code, corpus in prepared.corpora.items()}
    empty = [code for code, n in rows.items() if n == 0]
    if sum(rows.values()) < cfg.trainer.rows_per_step or empty:
        short = (
            f"{', '.join(empty)} has none"
            if empty
            else f"one batch needs {cfg.trainer.rows_per_step}"
        )
        raise UserError(
            f"{what} gives {sum(rows.values())} rows of {cfg.data.row_length} tokens, but "
            f"{short}; give more text, or set a smaller trainer.rows_per_step or data.row_length"
        )
    for corpus in prepared.corpora.values():
        held_out(corpus, prepared.tokenizer, cfg.objective)


def mixture_of(cfg: PretrainConfig, prepared: Prepared, *, steps: int, seed: int) -> Mixture:
    """The mixture that the configuration describes.

    Raises:
        UserError: too little text for one batch, or for ``data.max_passes`` of it to fill all
            steps.
    """
    _check_rows(prepared, cfg, "the text of the language set")
    sizes = {code: len(corpus.train) for code, corpus in prepared.corpora.items()}
    most, budget, rows = cfg.data.max_passes, steps * cfg.trainer.rows_per_step, sum(sizes.values())
    if most is not None and most * rows < budget:
        fewer = int(most * rows) // cfg.trainer.rows_per_step
        less = f", at most {fewer:,} steps (trainer.max_steps)" if fewer else ""
        raise UserError(
            f"data.max_passes is {most:g}, but {steps:,} steps read {budget:,} rows, and there "
            f"are {rows:,}: all languages together would be read {budget / rows:.2f} times. Set "
            f"data.max_passes to {_above(budget / rows)} or more{less}, or null, or give more text"
        )
    (_, alpha), *later = phases_of(cfg.data.alpha)
    shares = proportions(sizes, alpha, max_passes=most, budget_rows=budget)
    if capped := at_cap(sizes, shares, max_passes=most, budget_rows=budget):
        log.info(
            "data.max_passes=%g holds back %s; the others get their share",
            most,
            ", ".join(capped),
        )
    return Mixture(
        sizes,
        shares,
        rows_per_step=cfg.trainer.rows_per_step,
        seed=seed,
        later=[(first_step(share, steps), proportions(sizes, alpha)) for share, alpha in later],
    )


def _above(passes: float) -> str:
    """``passes`` as text, rounded up to two decimals, so that it is enough."""
    return f"{math.ceil(passes * 100) / 100:g}"


def mixed_target_counts(cfg: PretrainConfig, mixture: Mixture, prepared: Prepared) -> np.ndarray:
    """(V,) how often training predicts each token, up to a factor, over the whole mixture."""
    rows = mixture.rows_before(cfg.steps)
    return sum(
        cfg.objective.target_counts(corpus, prepared.tokenizer) * (rows[code] / len(corpus.train))
        for code, corpus in prepared.corpora.items()
    )


def batches(
    cfg: PretrainConfig,
    prepared: Prepared,
    mixture: Mixture,
    lang_ids: dict[str, int],
    *,
    seed: int,
    steps: int,
    first_step: int,
    rank: int,
    processes: int,
    distillation: Distillation | None = None,
) -> DataLoader:
    """Micro-batches from ``first_step`` on; earlier ones are never read.

    Small tensors come as arrays, see :func:`by_value`.
    """
    tokenizer = prepared.tokenizer
    stream = BatchStream(
        prepared.corpora,
        mixture,
        dict.fromkeys(prepared.corpora, cfg.objective.training(tokenizer)),
        cfg.objective.layout(tokenizer, cfg.data.attention),
        lang_ids,
        seed=seed,
        steps=steps,
        accumulate=cfg.trainer.accumulate,
        rank=rank,
        processes=processes,
        teaching=None if distillation is None else distillation.teaching,
    )
    return DataLoader(
        stream,
        batch_size=None,
        sampler=From(first_step * cfg.trainer.accumulate, len(stream)),
        collate_fn=by_value,
        num_workers=cfg.data.workers,
        worker_init_fn=leave_signals_to_the_run,
        persistent_workers=False,
    )


def by_value(batch: dict[str, Tensor]) -> dict[str, np.ndarray | Tensor]:
    """Let small tensors leave a loader worker as arrays, which are copied.

    A tensor is put into shared memory, and the handshakes for that take longer than to copy a
    megabyte. The training module makes tensors of the arrays again, without a copy.
    """
    return {
        name: value if value.nbytes > _SMALL else value.numpy() for name, value in batch.items()
    }


class From(Sampler):
    """Counts from ``first`` to ``end``. Its length is that of the whole run, for Lightning."""

    def __init__(self, first: int, end: int):
        self.first, self.end = first, end

    def __iter__(self):
        return iter(range(self.first, self.end))

    def __len__(self) -> int:
        return self.end


def consumption(mixture: Mixture, prepared: Prepared, steps: int) -> dict[str, float]:
    """What training read, exactly: ``train/tokens|padding|bytes|rows|passes/<code>``.

    Bytes are UTF-8 bytes of the documents that end in the rows read. Tokens are positions, which is
    what a step costs: ``<s>``, ``</s>`` and padding are included; the number of padding tokens is
    given too.
    """
    figures: dict[str, float] = {}
    for code, rows in mixture.rows_before(steps).items():
        corpus = prepared.corpora[code]
        passes, blocks, rest = mixture.read_before(code, rows)
        length = corpus.manifest["settings"]["length"]
        figures[f"train/rows/{code}"] = rows
        figures[f"train/tokens/{code}"] = rows * length
        figures[f"train/passes/{code}"] = rows / len(corpus.train)
        for name in ("bytes", "padding"):
            once = corpus.manifest["statistics"]["train"][name]
            figures[f"train/{name}/{code}"] = passes * once + corpus.train.total(name, blocks, rest)
    return figures


def training_settings(cfg: PretrainConfig) -> dict:
    """How a run trains, for manifests and cards: settings of ``task``, ``data`` and ``trainer``.

    They are named by the last part of their keys. What may differ between two equal runs, such as
    the folder of a tokenizer, is left out.
    """
    found: dict[str, object] = {"task": cfg.task.name}
    for key, value in identity(asdict(cfg)).items():
        part, _, name = key.partition(".")
        if (
            part in ("task", "data", "trainer")
            and "." not in name
            and name not in _SAID_OTHERWISE
            and key not in MAY_CHANGE
        ):
            assert name not in found, f"two settings are called {name}"
            found[name] = value
    found["tokenizer"] = cfg.data.tokenizer and Path(cfg.data.tokenizer).name
    if digests := teacher_facts(cfg):
        name = cfg.task.teacher
        found["teacher"] = Path(name).name if Path(name).exists() else name
        found["teacher_digest"] = digests["teacher"]
    found["recipe"] = {key: value for key, value in asdict(cfg.recipe).items() if key != "steps"}
    return {**found, "steps": cfg.steps, "seed": cfg.seed}
