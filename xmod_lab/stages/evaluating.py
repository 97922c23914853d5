"""All figures of one model, in the order in which they are shown."""

import logging
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from xmod_lab.codes import resolve
from xmod_lab.config.schema import EvaluateConfig, EvaluationConfig
from xmod_lab.errors import UserError
from xmod_lab.languages.recognition import recogniser_of
from xmod_lab.languages.sentence_encoding import is_encoder, open_encoder
from xmod_lab.metrics import read_metrics
from xmod_lab.model import XmodForSentenceVectors, XmodLanguageModel
from xmod_lab.model_folders import model_folder
from xmod_lab.scoring.evaluation_tables import (
    auto_table,
    before_table,
    language_table,
    recognition_table,
    retrieval_tables,
    slot_table,
)
from xmod_lab.scoring.held_out import named_with_interval, on_device
from xmod_lab.scoring.languages import ScoredLanguage, codes_of_columns, readers, slots_of
from xmod_lab.scoring.likelihood import pseudo_likelihood
from xmod_lab.scoring.naive_bayes import ngram_costs
from xmod_lab.scoring.recognition import (
    Confusion,
    SlotChoice,
    against_ngrams,
    auto_figures,
    choose_slots,
    confusion,
    recognition_figures,
    sentence_costs,
)
from xmod_lab.scoring.retrieval import (
    Retrieval,
    against,
    fixed_state,
    ngram_figures,
    ngram_retrieval,
    retrieval_figures,
    retrieve,
    state_names,
)
from xmod_lab.scoring.wrong_slots import Matrix, slot_figures, slot_matrix
from xmod_lab.stages.opening import Opened
from xmod_lab.stages.task_data import task_model
from xmod_lab.tables import csv_text
from xmod_lab.tasks.sentences import Sentences
from xmod_lab.text.objectives import EXACT, PSEUDO, objective_of
from xmod_lab.text.parallel import Parallel
from xmod_lab.text.recognition import NEAREST, Recogniser
from xmod_lab.text.tokenizer import composing

log = logging.getLogger(__name__)
_MOST = 690.0  # nats; JSON can hold the exponential
_COMPARED = ("target", "centred")  # arms that are compared with n-grams and with a control


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation has found.

    Args:
        figures: of metrics.json; the other fields are what they were made of.
        passages: by language, the bits of each held-out passage.
        states: names of the states of the layers.
    """

    figures: dict[str, float]
    matrix: Matrix
    recognised: dict[str, Confusion]
    retrieved: dict[str, list[Retrieval]]
    passages: dict[str, dict]
    states: list[str]

    def csv_files(self) -> dict[str, str]:
        """slots.csv, recognition.csv and retrieval.csv: a value a row."""
        if "val/exact" not in self.figures:  # of a sentence encoder
            return self._retrieval_file()
        kind = (EXACT if self.figures["val/exact"] else PSEUDO).word
        losses = [
            {"text": text, "slot": slot, "loss": loss, "likelihood": kind}
            for text, row in self.matrix.items()
            for slot, loss in row.items()
        ]
        counts = [
            {"of": what, "text": text, "slot": slot, "count": count}
            for what, table in self.recognised.items()
            for text, row in table.items()
            for slot, count in row.items()
        ]
        files = {
            "slots.csv": csv_text(losses, ("text", "slot", "loss", "likelihood")),
            "recognition.csv": csv_text(counts, ("of", "text", "slot", "count")),
        }
        return files | self._retrieval_file()

    def _retrieval_file(self) -> dict[str, str]:
        pairs = [
            {"set": name, **result.record()}
            for name, results in self.retrieved.items()
            for result in results
        ]
        return {"retrieval.csv": csv_text(pairs)} if pairs else {}


def evaluate(
    opened: Opened,
    parallels: list[Parallel],
    *,
    pll: bool,
    layer: int | None = None,
    control: Opened | None = None,
    choice: SlotChoice | None = None,
) -> Evaluation:
    """Compute everything and print the tables. The model is left as it was.

    Args:
        choice: also read each sentence through the slot that this chooses.
        layer: at which retrieval is compared; default: see
            :func:`xmod_lab.scoring.retrieval.fixed_state`.
        control: a model to compare retrieval with, on the same sentences.
    Raises:
        UserError: a loss is not finite; the model lacks the layer; the control lacks a language of
            a file that the model has.
    """
    fixed_state(opened.model, layer)
    read = {parallel.name: _readers(opened, parallel) for parallel in parallels}
    controls = {}
    if control is not None:
        fixed_state(control.model, layer)
        controls = {
            parallel.name: _control_readers(control, parallel, read[parallel.name])
            for parallel in parallels
        }
    model, languages = opened.model, opened.languages
    codes, slots = [s.code for s in languages], slots_of(languages)
    own = {s.code: s.slot for s in languages}
    likelihood = objective_of(model.config.is_decoder).likelihood
    matrix, rows = slot_matrix(model, languages)
    figures: dict[str, float] = {"val/exact": int(likelihood.exact)}
    passages = {}
    for language in languages:
        loss = matrix[language.code][language.slot]
        if not math.isfinite(loss):
            raise UserError(
                "take an older checkpoint, or another model: the loss of "
                f"{opened.name} is {loss} on the text of {language.code}; its weights are damaged, "
                "or it diverged in training"
            )
        scorer, code = language.scorer, language.code
        predicted = scorer.predicted[scorer.predicted > 0]
        figures |= _losses("val", code, rows[code][:, slots.index(language.slot)], predicted)
        bits = scorer.passages.bits(model)
        passages[code] = scorer.passages.record(bits)
        figures |= scorer.bits_figures(bits, "val") | scorer.unigram()
        if pll and not likelihood.exact:
            figures |= _losses("pll", code, *pseudo_likelihood(model, scorer, language.tokenizer))
    if pll and likelihood.exact:
        log.info(
            "evaluate.pll is for masked models; the likelihoods of this model are exact already"
        )
    language_table(figures, codes, likelihood.table_title)
    figures |= _before(opened, figures)

    recognised = {}
    if len(slots) > 1:
        figures |= slot_figures(matrix, languages, rows)
        slot_table(matrix, languages, figures)
        recognised, found = _recognition(model, languages, slots, rows, choice)
        figures |= found
        recognition_table(recognised, figures, own)
        if choice is not None:
            auto_table(recognised.get("auto", {}), figures, choice.lang_ids, choice.default)
    else:
        log.info(
            "the languages with text share one slot (%s): there are no wrong slots, and none to "
            "recognise",
            slots[0],
        )

    other = None if control is None else control.model
    retrieved, found = _retrieval(model, parallels, read, layer, other, controls)
    figures |= found
    return Evaluation(figures, matrix, recognised, retrieved, passages, state_names(model))


def open_encoders(
    cfg: EvaluateConfig,
) -> tuple[XmodForSentenceVectors, XmodForSentenceVectors | None]:
    """The sentence encoder ``cfg.base``, and ``evaluate.control`` if it is set.

    A control that is no sentence encoder, such as the base, is read as the encoder is.
    """
    if cfg.evaluate.lang_ids != "given":
        raise UserError(
            f"leave evaluate.lang_ids out, or give a language model: {cfg.base} is a sentence "
            "encoder, and slots are chosen for held-out text, of which it has no likelihood"
        )
    model, name = open_encoder(cfg.base), cfg.evaluate.control
    if name is None or not cfg.evaluate.parallel:
        return model.float(), None
    if is_encoder(name):
        return model.float(), open_encoder(name).float()
    control = task_model(model_folder(name), Sentences(asdict(model.settings)), seed=0)
    return model.float(), control.float()


def evaluate_encoder(
    cfg: EvaluateConfig,
    model: XmodForSentenceVectors,
    parallels: list[Parallel],
    control: XmodForSentenceVectors | None,
) -> Evaluation:
    """The retrieval of a sentence encoder, with its pooling and its prefix.

    It has no likelihoods, so nothing else is scored.

    Raises:
        UserError: the model lacks the layer; the control lacks a language of a file that the model
            has; no file has sentences in two languages of the model.
    """
    layer = cfg.evaluate.layer
    fixed_state(model, layer)
    read = {parallel.name: _columns(model, parallel) for parallel in parallels}
    controls = {}
    if control is not None:
        fixed_state(control, layer)
        controls = {parallel.name: _columns(control, parallel) for parallel in parallels}
        for name, columns in read.items():
            if lost := [column for column in columns if column not in controls[name]]:
                raise UserError(
                    f"take another evaluate.control: it does not read {', '.join(lost)} of {name}, "
                    "which the model reads"
                )
    with on_device(model, cfg.trainer.accelerator):
        retrieved, figures = _retrieval(model, parallels, read, layer, control, controls)
    if not figures:
        raise UserError(
            "give files of translations with two languages of the model or more, "
            f"evaluate.parallel=[my.tsv]: it has {', '.join(model.languages)}"
        )
    return Evaluation(figures, {}, {}, retrieved, {}, state_names(model))


def _columns(
    model: XmodForSentenceVectors, parallel: Parallel
) -> dict[str, tuple[str, PreTrainedTokenizerBase]]:
    """The columns of ``parallel`` that the encoder reads, each with code and tokenizer."""
    codes, skipped = codes_of_columns(model.config, parallel.sentences, [])
    _tell_skipped(parallel, skipped)
    return {column: (code, composing(model.tokenizer_for(code))) for column, code in codes.items()}


def _tell_skipped(parallel: Parallel, skipped: dict[str, str]) -> None:
    for column, why in skipped.items():
        log.info("%s: column '%s' is skipped: %s", parallel.name, column, why)


def _retrieval(
    model: XmodLanguageModel | XmodForSentenceVectors,
    parallels: list[Parallel],
    read: dict[str, dict],
    layer: int | None,
    control: XmodLanguageModel | XmodForSentenceVectors | None,
    controls: dict[str, dict],
) -> tuple[dict[str, list[Retrieval]], dict[str, float]]:
    """Print the tables of every file, and return the results by file and all figures.

    Args:
        read, controls: by file, its columns as the model and as the control read them.
    """
    fixed = fixed_state(model, layer)
    retrieved: dict[str, list[Retrieval]] = {}
    figures: dict[str, float] = {}
    for parallel in parallels:
        name, columns = parallel.name, read[parallel.name]
        results = retrieve(model, parallel, columns)
        if not results:
            log.warning(
                "%s: no two languages of the model have two sentences in common; no retrieval",
                name,
            )
            continue
        retrieved[name] = results
        compared = [r for r in results if r.state == fixed]
        figures |= retrieval_figures(name, results, fixed)
        figures |= _baselines(parallel, columns, compared)
        figures[f"retrieval/{name}/layer"] = int(fixed.removeprefix("layer"))
        if control is not None:
            at = fixed_state(control, layer)
            figures |= _control(control, parallel, columns, controls[name], compared, at)
        retrieval_tables(name, figures, [code for code, _ in columns.values()], state_names(model))
    return retrieved, figures


def _recognition(
    model: XmodLanguageModel,
    languages: list[ScoredLanguage],
    slots: list[str],
    rows: dict[str, np.ndarray],
    choice: SlotChoice | None,
) -> tuple[dict[str, Confusion], dict[str, float]]:
    """Which slot each row and sentence is taken for, beside n-grams, and the figures of that.

    Args:
        rows: by language (R, slots), nats of each row through each slot.
        choice: see :func:`evaluate`.
    """
    own = {language.code: language.slot for language in languages}
    bits, sentences = sentence_costs(model, languages)
    spelt = ngram_costs(languages, sentences, slots) if sentences else {}
    recognised: dict[str, Confusion] = {}
    figures: dict[str, float] = {}
    for what, costs in (("rows", rows), ("sentences", bits), ("ngrams", spelt)):
        if not costs:  # no sentence fits the positions, which was said
            continue
        recognised[what] = confusion(costs, slots)
        figures |= recognition_figures(what, recognised[what], own)
    if sentences:
        figures |= against_ngrams(bits, spelt, slots, own)
    if sentences and choice is not None:
        chosen, unknown = choose_slots(choice, bits, sentences, slots, own)
        recognised["auto"], found = auto_figures(bits, sentences, chosen, unknown, slots, own)
        figures |= found
    return recognised, figures


def slot_choice(opened: Opened, cfg: EvaluationConfig) -> SlotChoice | None:
    """How slots are chosen, among those of the languages with text; ``None``: they are given.

    Raises:
        UserError: nothing is kept beside the model to recognise languages by.
        UnknownLanguageError: the default language has no text, or the model lacks it.
    """
    if cfg.lang_ids == "given":
        return None
    codes = [language.code for language in opened.languages]
    default = cfg.default_language
    default = default if default in (None, NEAREST) else resolve(default, codes)
    recogniser = None
    if cfg.lang_ids == "auto":
        kept = recogniser_of(opened.model).profiles
        recogniser = Recogniser({code: kept[code] for code in codes if code in kept})
    return SlotChoice(cfg.lang_ids, recogniser, default)


def _baselines(parallel: Parallel, columns: dict, compared: list[Retrieval]) -> dict[str, float]:
    """Figures of n-grams, and of ``compared`` against them and against the queries' slot."""
    spelt = ngram_retrieval(parallel, columns)
    figures = ngram_figures(parallel.name, spelt)
    figures |= against(parallel.name, "ngrams", compared, spelt, _COMPARED)
    if through := [r for r in compared if r.arm == "source"]:
        figures |= against(parallel.name, "source", compared, through, ("target",))
    return figures


def _control(
    control: XmodLanguageModel | XmodForSentenceVectors,
    parallel: Parallel,
    columns: dict,
    theirs: dict,
    compared: list[Retrieval],
    at: str,
) -> dict[str, float]:
    """Figures of the control, and of ``compared`` against it.

    Args:
        columns, theirs: the columns as the model and as the control read them.
        at: the state of the control that is compared.
    """
    name = parallel.name
    found = retrieve(control, parallel, theirs, arms=_COMPARED)
    # the control may spell codes otherwise
    same = {theirs[column][0]: code for column, (code, _) in columns.items()}
    found = [replace(r, query=same[r.query], candidates=same[r.candidates]) for r in found]
    figures = retrieval_figures(f"{name}/control", found, at)
    found = [r for r in found if r.state == at]
    return figures | against(name, "control", compared, found, _COMPARED)


def _readers(opened: Opened, parallel: Parallel) -> dict:
    """The columns of ``parallel`` that a model reads, each with code and tokenizer."""
    columns, skipped = readers(
        opened.model, opened.languages, list(parallel.sentences), opened.tokenizer
    )
    _tell_skipped(parallel, skipped)
    return columns


def _control_readers(control: Opened, parallel: Parallel, columns: dict) -> dict:
    """The same columns, as the control reads them."""
    found, skipped = readers(control.model, control.languages, list(columns), control.tokenizer)
    if skipped:
        raise UserError(
            f"add {', '.join(skipped)} to it (python -m xmod_lab.pretrain base={control.name} "
            f"+lang=…), or take another control: evaluate.control {control.name} does not read "
            f"{', '.join(skipped)} of {parallel.name}, which the model reads "
            f"({next(iter(skipped.values()))})"
        )
    return found


def _losses(prefix: str, code: str, nats: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """The figures of a language: loss with interval, perplexity, number of predicted tokens.

    Args:
        nats, tokens: of each row, (R,).
    """
    found = named_with_interval(f"{prefix}/loss/{code}", nats, tokens)
    perplexity = math.exp(min(found[f"{prefix}/loss/{code}"], _MOST))
    return found | {
        f"{prefix}/perplexity/{code}": perplexity,
        f"{prefix}/pieces/{code}": int(tokens.sum()),
    }


def _before(opened: Opened, figures: dict[str, float]) -> dict[str, float]:
    """The base's figures before an extension. Logs whether the run's figures were reproduced."""
    try:
        recorded = read_metrics(Path(opened.name) / "metrics.json")
    except UserError as error:
        log.warning("nothing is compared with what the run recorded: %s", error)
        recorded = {}
    scored = [f"val/{unit}/{s.code}" for s in opened.languages for unit in ("loss", "bpb")]
    gaps = [abs(recorded[name] - figures[name]) for name in scored if name in recorded]
    if gaps:
        log.info(
            "the figures that the run recorded itself: %s",
            "equal to the last bit"
            if not any(gaps)
            else f"they differ by up to {max(gaps):.1e} "
            "(other hardware or software rounds otherwise)",
        )
    added = set(opened.added)
    old = [
        s.code
        for s in opened.languages
        if s.code not in added
        and all(f"before/val/{unit}/{s.code}" in recorded for unit in ("loss", "bpb"))
    ]
    if not added or not old:
        return {}
    before = {
        f"before/{name}": recorded[f"before/{name}"]
        for name in scored
        if name.split("/")[-1] in old
    }
    same = before_table(before, figures, old, (EXACT if figures["val/exact"] else PSEUDO).name)
    log.info(
        "figures of the base's languages before and now: %s",
        "equal to the last bit" if same else "NOT ALL EQUAL",
    )
    return before
