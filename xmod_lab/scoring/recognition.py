"""Recognition: the slot with the lowest loss tells the language of a text. Chance is 1 / slots.

Rows: held-out rows in the vocabulary of their own language, with the same tokens hidden for every
slot. A language with its own vocabulary could be told by that alone: for it, this only shows
whether its slot is the best for its text.

Sentences: held-out passages as plain text. Every language reads them with its own vocabulary and
slot, and the fewest bits win. Bytes that a vocabulary cannot spell cost 8 bits each. Every language
predicts the same stretches of the text, see :mod:`xmod_lab.scoring.passages`.

Languages that are not given: the slot of each text is chosen by its spelling
(:mod:`xmod_lab.text.recognition`) or by the fewest bits. What wrong choices cost is told in bits
per byte, beside the given language on the same sentences.
"""

import logging
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from xmod_lab.model import XmodLanguageModel
from xmod_lab.scoring.held_out import named_with_interval
from xmod_lab.scoring.languages import ScoredLanguage
from xmod_lab.scoring.passages import Passages
from xmod_lab.tasks.statistics import difference, mean_share, share_of
from xmod_lab.tasks.task_metrics import Metric, by_column, mean_of_columns
from xmod_lab.text.objectives import Objective, objective_of
from xmod_lab.text.recognition import (
    NEAREST,
    NO_LETTERS,
    Recognised,
    Recogniser,
    decided,
    probabilities,
    words_of,
)

log = logging.getLogger(__name__)

# language of the text -> slot with the lowest loss -> how many texts
Confusion = dict[str, dict[str, int]]


def confusion(costs: dict[str, np.ndarray], slots: list[str]) -> Confusion:
    """How often each slot costs least, from ``costs`` (N, slots) of each language.

    The first of equal slots counts.
    """
    counts = {
        code: np.bincount(cost.argmin(1), minlength=len(slots)) for code, cost in costs.items()
    }
    return {code: dict(zip(slots, count.tolist(), strict=True)) for code, count in counts.items()}


def recognition_figures(what: str, found: Confusion, own: dict[str, str]) -> dict[str, float]:
    """Figures of recognition, under ``recognition/<what>/``.

    ``accuracy/<code>`` and the mean over languages, ``accuracy``, each with its interval over
    sentences or rows; ``chance``; and the confusions, ``count/<text>/<slot>``.

    Args:
        own: the slot of each language.
    """
    where = f"recognition/{what}"
    figures = {
        f"{where}/count/{code}/{slot}": n for code, row in found.items() for slot, n in row.items()
    }
    right = {code: row[own[code]] for code, row in found.items()}
    numbers = {code: sum(row.values()) for code, row in found.items()}
    for code in found:
        figures |= share_of(right[code], numbers[code]).figures(f"{where}/accuracy/{code}")
    mean = mean_share(list(right.values()), list(numbers.values()))
    figures |= mean.figures(f"{where}/accuracy")
    figures[f"{where}/chance"] = 1 / len(next(iter(found.values())))
    return figures


def against_ngrams(
    costs: dict[str, np.ndarray],
    spelt: dict[str, np.ndarray],
    slots: list[str],
    own: dict[str, str],
) -> dict[str, float]:
    """The mean accuracy by slots minus that by n-grams, paired by sentence.

    Args:
        costs, spelt: (N, slots) of each language, by slots and by n-grams, of the same sentences.
    Returns:
        ``recognition/sentences/against/ngrams``, with ``…/low``, ``…/high`` and ``…/p``.
    """

    def counts(found: dict[str, np.ndarray]) -> np.ndarray:  # a column for each language
        hits = np.full((sum(map(len, found.values())), len(found)), np.nan)
        start = 0
        for column, (code, cost) in enumerate(found.items()):
            right = cost.argmin(1) == slots.index(own[code])
            hits[start : start + len(cost), column] = right
            start += len(cost)
        return by_column(hits)[None, None]

    gap = difference(counts(costs), counts(spelt), Metric(None, mean_of_columns))
    return gap.figures("recognition/sentences/against/ngrams")


def sentence_costs(
    model: XmodLanguageModel, languages: list[ScoredLanguage]
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """What the sentences of each language cost when the language of each slot reads them.

    Languages that share a slot count as one: the one that needs fewer bits.

    Returns:
        (N, slots) bits for each language, and its N sentences.
    """
    texts = {language.code: language.sentences() for language in languages}
    everything = [text for part in texts.values() for text in part]
    readers = {one.code: one.tokenizer for one in languages}
    read, fits = language_bits(model, readers, everything, languages[0].scorer.objective)
    bits: dict[str, np.ndarray] = {}
    for one in languages:
        cost = read[one.code]
        bits[one.slot] = np.minimum(bits[one.slot], cost) if one.slot in bits else cost
    if not fits.all():
        log.warning(
            "%d of %d sentences are longer than the model's %d positions "
            "and left out of the recognition",
            (~fits).sum(),
            len(fits),
            model.config.positions,
        )
    table, costs, sentences, start = np.stack(list(bits.values()), axis=1), {}, {}, 0
    for code, part in texts.items():
        kept = slice(start, start + len(part))
        if fits[kept].any():
            costs[code] = table[kept][fits[kept]]
            sentences[code] = [text for text, fit in zip(part, fits[kept], strict=True) if fit]
        start += len(part)
    return costs, sentences


def language_bits(
    model: XmodLanguageModel,
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    texts: list[str],
    objective: Objective,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What texts cost when each language reads them with its vocabulary and its slot.

    Args:
        tokenizers: code -> tokenizer of the languages that read.
        texts: composed (NFC).
    Returns:
        Code -> (N,) bits; and (N,) whether the text fits into one row in every vocabulary.
    """
    bits, fits = {}, np.ones(len(texts), dtype=bool)
    for code, tokenizer in tqdm(tokenizers.items(), "texts read by", leave=False, disable=None):
        read = Passages(code, texts, tokenizer, objective, length=model.config.positions)
        windows = np.bincount([window.passage for window in read.windows], minlength=len(fits))
        fits &= windows == 1
        bits[code] = read.bits(model)
    return bits, fits


def recognise_by_loss(model: XmodLanguageModel, texts: Sequence[str]) -> list[Recognised]:
    """The language of each text whose vocabulary and slot need the fewest bits.

    Languages with one slot and one vocabulary cost the same; the first is the answer. A text is
    unknown if it has no letters, or if no language is more likely than all others together.
    """
    own, base = model.config.vocabularies or {}, None
    tokenizers, slots = {}, set()
    for code in model.languages:
        if code in own:
            tokenizers[code] = model.tokenizer_for(code)
        elif model.lang_id(code) not in slots:
            tokenizers[code] = base = base or model.tokenizer_for(code)
            slots.add(model.lang_id(code))
    composed = [unicodedata.normalize("NFC", text) for text in texts]
    objective = objective_of(model.config.is_decoder)()
    bits, _ = language_bits(model, tokenizers, composed, objective)
    return decided_by_bits(list(bits), np.stack(list(bits.values()), axis=1), texts)


def decided_by_bits(
    names: Sequence[str], bits: np.ndarray, texts: Sequence[str]
) -> list[Recognised]:
    """The answer for each text, of languages or slots ``names``, by its ``bits`` (N, names)."""
    found = [decided(names, probabilities(row * math.log(2))) for row in bits]
    return [
        one if words_of(text) else Recognised(one.code, one.probability, NO_LETTERS)
        for one, text in zip(found, texts, strict=True)
    ]


@dataclass(frozen=True)
class SlotChoice:
    """How the slot of a sentence is chosen.

    Args:
        lang_ids: ``auto`` by ``recogniser``, ``auto-loss`` by the fewest bits.
        default: the language of unknown sentences, or NEAREST.
    """

    lang_ids: str
    recogniser: Recogniser | None
    default: str | None


def choose_slots(
    choice: SlotChoice,
    bits: dict[str, np.ndarray],
    sentences: dict[str, list[str]],
    slots: list[str],
    own: dict[str, str],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The slot that is chosen for each sentence, and whether the sentence is unknown.

    Args:
        bits: (N, slots) of each language of ``sentences``.
        own: the slot of each language.
    Returns:
        For each language (N,) places in ``slots``, where -1 is an unknown sentence without a
        default; and (N,) bool, also where an unknown sentence takes the default.
    """
    found, unknown = {}, {}
    for code, texts in sentences.items():
        if choice.recogniser is not None:
            answers = choice.recogniser.recognise(texts)
            names = [own[one.code] for one in answers]
        else:
            answers = decided_by_bits(slots, bits[code], texts)
            names = [one.code for one in answers]
        nearest = choice.default == NEAREST
        unknown[code] = np.array([one.unknown is not None for one in answers])
        known = ~unknown[code] | nearest
        usual = -1 if nearest or choice.default is None else slots.index(own[choice.default])
        found[code] = np.array(
            [slots.index(n) if k else usual for n, k in zip(names, known, strict=True)]
        )
    return found, unknown


UNKNOWN = "unknown"  # in place of a slot


def auto_figures(
    bits: dict[str, np.ndarray],
    sentences: dict[str, list[str]],
    chosen: dict[str, np.ndarray],
    unknown: dict[str, np.ndarray],
    slots: list[str],
    own: dict[str, str],
) -> tuple[Confusion, dict[str, float]]:
    """How often the chosen slot is the right one, and what it costs where it is not.

    Args:
        chosen, unknown: see :func:`choose_slots`.
    Returns:
        How often each slot was chosen, and figures: as :func:`recognition_figures` under
        ``recognition/auto`` (an unknown sentence without a default counts as wrong);
        ``recognition/auto/unknown/<code>``, the share of unknown sentences, with a default too;
        ``auto/bpb/<code>`` and
        ``auto/given/bpb/<code>``, bits per byte of the sentences that are not unknown, through the
        chosen slot and through the given one; and ``auto/against/given/<code>``, their difference,
        with its interval over sentences.
    """
    found = {
        code: {name: int((places == i).sum()) for i, name in enumerate(slots)}
        | {UNKNOWN: int((places < 0).sum())}
        for code, places in chosen.items()
    }
    figures = recognition_figures("auto", found, own)
    figures["recognition/auto/chance"] = 1 / len(slots)
    figures |= {f"recognition/auto/unknown/{c}": float(one.mean()) for c, one in unknown.items()}
    for code, places in chosen.items():
        rows = np.flatnonzero(places >= 0)
        if not len(rows):
            continue
        sizes = np.array([len(sentences[code][i].encode()) for i in rows])
        auto = bits[code][rows, places[rows]]
        given = bits[code][rows, slots.index(own[code])]
        for name, sums in (
            (f"auto/bpb/{code}", auto),
            (f"auto/given/bpb/{code}", given),
            (f"auto/against/given/{code}", auto - given),
        ):
            figures |= named_with_interval(name, sums, sizes)
    return found, figures
