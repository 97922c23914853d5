"""A baseline of language recognition from spelling alone: naive Bayes on character n-grams.

It reads the same training text and uses no neural model. A slot that recognises its language no
better has shown nothing that counting letters does not.
"""

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from xmod_lab.scoring.languages import ScoredLanguage
from xmod_lab.tasks.ngrams import ngrams

LONGEST = 3  # characters of an n-gram
# of each language's training text; more changes nothing, and large corpora take no longer
_CHARACTERS = 300_000


def ngram_costs(
    languages: list[ScoredLanguage],
    sentences: dict[str, list[str]],
    slots: list[str],
    longest: int = LONGEST,
) -> dict[str, np.ndarray]:
    """Nats of each sentence by the n-grams of the training text of each slot's languages.

    A slot of several languages has the lowest cost of theirs. All languages are equally likely
    beforehand.

    Returns:
        language of ``sentences`` -> (N, slots).
    """
    counter = CountVectorizer(analyzer=lambda text: ngrams(text, longest))
    seen = counter.fit_transform(_first(language) for language in languages)
    model = MultinomialNB(fit_prior=False).fit(seen, np.arange(len(languages)))
    costs = {}
    for code, texts in sentences.items():
        nats = -model.predict_joint_log_proba(counter.transform(texts))  # (N, languages)
        own = [np.flatnonzero([language.slot == slot for language in languages]) for slot in slots]
        costs[code] = np.stack([nats[:, places].min(1) for places in own], axis=1)
    return costs


def _first(language: ScoredLanguage) -> str:
    """The first training passages without duplicates, a line each, of _CHARACTERS together."""
    found, size = {}, 0
    blocks = language.scorer.corpus.held_out_by == "document"
    for passage in language.source.passages("train", blocks=blocks):
        if passage in found:
            continue
        found[passage] = None
        size += len(passage)
        if size >= _CHARACTERS:
            break
    return "\n".join(found)
