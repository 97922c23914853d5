"""Metrics of labelled tasks, as functions of sums over examples.

A resampled set of examples is scored from the same counts, without counting again.
"""

import importlib.util
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# N examples, C classes, D counts of an example


@dataclass(frozen=True)
class Metric:
    """A score between 0 and 1; a higher one is better.

    Args:
        counts: gold answers and predictions, both (N,) -> (N, D) float, what each example adds.
        reduce: sums of counts, (..., D) -> scores (...).
    """

    counts: Callable[[list, list], np.ndarray]
    reduce: Callable[[np.ndarray], np.ndarray]

    def score(self, gold: list, predicted: list) -> float:
        """The score of one set of predictions."""
        return float(self.reduce(self.counts(gold, predicted).sum(0)))


def share(sums: np.ndarray) -> np.ndarray:
    """Points and their maximum, (..., 2) -> the share (...)."""
    return sums[..., 0] / sums[..., 1]


def by_column(hits: np.ndarray) -> np.ndarray:
    """Counts (N, 2D) for :func:`mean_of_columns`, from ``hits`` (N, D).

    A hit is nan where an example is not in a column.
    """
    there = ~np.isnan(hits)
    return np.concatenate([np.where(there, hits, 0), there], axis=1).astype(float)


def mean_of_columns(sums: np.ndarray) -> np.ndarray:
    """(..., 2D), the hits and the examples of each of D columns -> (...), the mean share."""
    hits, there = np.split(sums, 2, axis=-1)
    return (hits / np.maximum(there, 1)).mean(-1)


def accuracy() -> Metric:
    """Share of the examples that have the gold answer as prediction."""

    def counts(gold: list, predicted: list) -> np.ndarray:
        return np.array([(g == p, 1) for g, p in zip(gold, predicted, strict=True)], float)

    return Metric(counts, share)


def macro_f1(classes: int) -> Metric:
    """Mean of the classes' F1 over classes in gold or predictions, as scikit-learn computes it."""

    def counts(gold: list, predicted: list) -> np.ndarray:
        one_of = np.eye(classes)
        g, p = one_of[np.asarray(gold, int)], one_of[np.asarray(predicted, int)]
        return np.concatenate([g * p, g + p], axis=1)  # (N, 2C): hits; gold and predicted

    def reduce(sums: np.ndarray) -> np.ndarray:
        hits, both = np.split(sums, 2, axis=-1)
        f1 = 2 * hits / np.maximum(both, 1)
        return f1.sum(-1) / np.maximum((both > 0).sum(-1), 1)

    return Metric(counts, reduce)


def span_fault() -> str | None:
    """Why this installation cannot score spans, with the remedy; None: it can."""
    if importlib.util.find_spec("seqeval") is None:
        return "the F1 of spans needs seqeval; pip install 'xmod_lab[tagging]'"
    return None


def span_f1(labels: list[str]) -> Metric:
    """F1 of typed spans over all examples, by seqeval (CoNLL 2000). ``labels``: by class number."""
    from seqeval.metrics.sequence_labeling import get_entities

    def spans(tags: list[int]) -> set:
        return set(get_entities([labels[tag] for tag in tags]))

    def counts(gold: list, predicted: list) -> np.ndarray:
        pairs = [(spans(g), spans(p)) for g, p in zip(gold, predicted, strict=True)]
        return np.array([(len(g & p), len(g) + len(p)) for g, p in pairs], float)

    return Metric(counts, lambda sums: 2 * sums[..., 0] / np.maximum(sums[..., 1], 1))


def answer_metric(name: str, code: str) -> Metric:
    """A metric of extractive answers: for each question the best score over its gold answers.

    ``exact_match`` and ``f1`` are those of SQuAD's script. It drops the English articles and ASCII
    punctuation, and compares words between spaces. XQuAD's authors use it for every language.
    ``mlqa_exact_match`` and ``mlqa_f1`` are those of MLQA (Lewis et al. 2020) in the language
    ``code``: they drop the articles of that language and all Unicode punctuation, and a Chinese
    character is a word.
    """

    def counts(gold: list[list[str]], predicted: list[str]) -> np.ndarray:
        pairs = zip(predicted, gold, strict=True)
        if name.startswith("mlqa_"):
            scores = [_mlqa_score(name, said, answers, code) for said, answers in pairs]
        else:
            scores = [_squad_score(name, said, answers) for said, answers in pairs]
        return np.array([(score, 1) for score in scores], float)

    return Metric(counts, share)


def _squad_score(name: str, predicted: str, gold: list[str]) -> float:
    from torchmetrics.functional.text import squad  # here: it imports torch

    target = {"answers": {"text": gold, "answer_start": [0] * len(gold)}, "id": "0"}
    return float(squad({"prediction_text": predicted, "id": "0"}, target)[name]) / 100


_ARTICLES = {  # of the languages of MLQA; Hindi and Chinese have no articles
    "en": "a an the",
    "es": "un una unos unas el la los las",
    "de": "ein eine einen einem eines einer der die das den dem des",
    "vi": "của là cái chiếc những",
}
_DROPPED = {
    language: re.compile(rf"\b({words.replace(' ', '|')})\b")
    for language, words in _ARTICLES.items()
}
# The Arabic article is part of the next word. MLQA drops it inside words too.
_DROPPED["ar"] = re.compile("ال")
# MLQA takes each Chinese character as a word; so do we for other scripts without spaces.
_ONE_CHARACTER = {"zh": re.compile("[\u4e00-\u9fa5]")} | dict.fromkeys(
    ("ja", "yue", "th", "lo", "km", "my"),
    re.compile("[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]"),
)


def _mlqa_score(name: str, predicted: str, gold: list[str], code: str) -> float:
    said, answers = _mlqa_words(predicted, code), [_mlqa_words(text, code) for text in gold]
    if name == "mlqa_exact_match":
        return max(float(said == words) for words in answers)
    return max(_word_f1(said, words) for words in answers)


def _mlqa_words(text: str, code: str) -> list[str]:
    """The words of ``text`` that MLQA compares."""
    language = re.split("[-_]", code)[0]
    text = "".join(
        c
        for c in text.lower()
        if c not in string.punctuation and not unicodedata.category(c).startswith("P")
    )
    if language in _DROPPED:
        text = _DROPPED[language].sub(" ", text)
    if language in _ONE_CHARACTER:
        text = _ONE_CHARACTER[language].sub(r" \g<0> ", text)
    return text.split()


def _word_f1(said: list[str], words: list[str]) -> float:
    same = sum((Counter(said) & Counter(words)).values())
    return 2 * same / (len(said) + len(words)) if same else 0.0
