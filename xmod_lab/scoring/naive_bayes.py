"""What spelling alone says of the language of a sentence: naive Bayes on character n-grams of the same training text. No model is
in it; a slot that recognises its language no better has shown nothing that counting letters does not."""

from collections.abc import Iterable

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from xmod_lab.scoring.subjects import Subject
from xmod_lab.tasks.ngrams import ngrams

LONGEST = 3  # characters of an n-gram
_CHARACTERS = (
    300_000  # of each language's training text: more changes nothing, and large corpora are bounded
)


def ngram_costs(
    subjects: list[Subject],
    sentences: dict[str, list[str]],
    slots: list[str],
    longest: int = LONGEST,
) -> dict[str, np.ndarray]:
    """For each language of ``sentences`` (N, slots) nats that they cost by the counts of the training text of each slot's languages,
    of those that share a slot the fewest. All languages are as likely beforehand."""
    counter = CountVectorizer(analyzer=lambda text: ngrams(text, longest))
    seen = counter.fit_transform(_first(subject.source.passages("train")) for subject in subjects)
    model = MultinomialNB(fit_prior=False).fit(seen, np.arange(len(subjects)))
    costs = {}
    for code, texts in sentences.items():
        nats = -model.predict_joint_log_proba(counter.transform(texts))  # (N, languages)
        own = [np.flatnonzero([subject.slot == slot for subject in subjects]) for slot in slots]
        costs[code] = np.stack([nats[:, languages].min(1) for languages in own], axis=1)
    return costs


def _first(passages: Iterable[str]) -> str:
    """So many passages, a line each, as have _CHARACTERS."""
    found, size = [], 0
    for passage in passages:
        found.append(passage)
        size += len(passage)
        if size >= _CHARACTERS:
            break
    return "\n".join(found)
