"""Scores of answers as the scripts of their data sets give them, 0 to 1.

SQuAD's script knows English alone: it drops ``a``, ``an``, ``the`` and ASCII punctuation, and compares words between spaces. XQuAD is
scored by it in every language, as its authors do. MLQA has a script of its own (Lewis et al. 2020), which drops the articles of each
language and all of Unicode's punctuation, and takes each Chinese character as a word.
"""

import re
import string
import unicodedata
from collections import Counter

from torchmetrics.functional.text import squad

_ARTICLES = {  # of the languages of MLQA; Hindi and Chinese have none
    "en": "a an the",
    "es": "un una unos unas el la los las",
    "de": "ein eine einen einem eines einer der die das den dem des",
    "vi": "của là cái chiếc những",
}
_DROPPED = {
    language: re.compile(rf"\b({words.replace(' ', '|')})\b")
    for language, words in _ARTICLES.items()
}
_DROPPED["ar"] = re.compile(
    "ال"
)  # the article, which is no word of its own; dropped within words too, as MLQA does
# MLQA's, and as it would be for languages that it lacks: a character of a script without spaces is a word
_ALONE = {"zh": re.compile("[\u4e00-\u9fa5]")} | dict.fromkeys(
    ("ja", "yue", "th", "lo", "km", "my"),
    re.compile("[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]"),
)


def squad_score(name: str, predicted: str, gold: list[str]) -> float:
    """``exact_match`` or ``f1`` of SQuAD 1.1, the best over the gold answers; by torchmetrics."""
    target = {"answers": {"text": gold, "answer_start": [0] * len(gold)}, "id": "0"}
    return float(squad({"prediction_text": predicted, "id": "0"}, target)[name]) / 100


def mlqa_score(name: str, predicted: str, gold: list[str], code: str) -> float:
    """``exact_match`` or ``f1`` of MLQA in the language of ``code``, the best over the gold answers. Of a language that MLQA lacks no
    articles are dropped."""
    said, given = mlqa_words(predicted, code), [mlqa_words(text, code) for text in gold]
    return max(
        float(said == words) if name == "exact_match" else _f1(said, words) for words in given
    )


def mlqa_words(text: str, code: str) -> list[str]:
    """The words of ``text`` that are compared."""
    language = re.split("[-_]", code)[0]
    text = "".join(c for c in text.lower() if not _is_punctuation(c))
    if language in _DROPPED:
        text = _DROPPED[language].sub(" ", text)
    if language in _ALONE:
        text = _ALONE[language].sub(r" \g<0> ", text)
    return text.split()


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _f1(said: list[str], words: list[str]) -> float:
    same = sum((Counter(said) & Counter(words)).values())
    return 2 * same / (len(said) + len(words)) if same else 0.0
