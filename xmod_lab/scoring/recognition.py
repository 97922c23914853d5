"""Recognition: the slot with the lowest loss tells the language of a text. Chance is 1 / slots.

Rows: held-out rows in the vocabulary of their own language, with the same tokens hidden for every
slot. A language with its own vocabulary could be told by that alone: for it, this only shows
whether its slot is the best for its text.

Sentences: held-out passages as plain text. Every language reads them with its own vocabulary and
slot, and the fewest bits win. Bytes that a vocabulary cannot spell cost 8 bits each. Every language
predicts the same stretches of the text, see :mod:`xmod_lab.scoring.passages`.
"""

import logging

import numpy as np
from tqdm import tqdm

from xmod_lab.model import XmodLanguageModel
from xmod_lab.scoring.languages import ScoredLanguage
from xmod_lab.scoring.passages import Passages
from xmod_lab.tasks.statistics import difference, mean_share, share_of
from xmod_lab.tasks.task_metrics import Metric, by_column, mean_of_columns

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
    longest = model.config.positions
    everything = [text for part in texts.values() for text in part]
    bits: dict[str, np.ndarray] = {}
    fits = np.ones(len(everything), dtype=bool)
    for reader in tqdm(languages, "sentences read by", leave=False, disable=None):
        goal = reader.scorer.objective
        read = Passages(reader.code, everything, reader.tokenizer, goal, length=longest)
        windows = np.bincount([window.passage for window in read.windows], minlength=len(fits))
        fits &= windows == 1
        cost = read.bits(model)  # (N of all languages,)
        bits[reader.slot] = np.minimum(bits[reader.slot], cost) if reader.slot in bits else cost
    if not fits.all():
        log.warning(
            "%d of %d sentences are longer than the model's %d positions "
            "and left out of the recognition",
            (~fits).sum(),
            len(fits),
            longest,
        )
    table, costs, sentences, start = np.stack(list(bits.values()), axis=1), {}, {}, 0
    for code, part in texts.items():
        kept = slice(start, start + len(part))
        if fits[kept].any():
            costs[code] = table[kept][fits[kept]]
            sentences[code] = [text for text, fit in zip(part, fits[kept], strict=True) if fit]
        start += len(part)
    return costs, sentences


def padded(sentences: list[list[int]], tokenizer) -> np.ndarray:
    """(N, T) ids: ``<s>``, the tokens of a sentence, ``</s>``, then padding."""
    rows = np.full(
        (len(sentences), max(map(len, sentences)) + 2), tokenizer.pad_token_id, dtype=np.int64
    )
    for row, ids in zip(rows, sentences, strict=True):
        row[: len(ids) + 2] = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return rows
