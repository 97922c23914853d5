"""A baseline of language recognition from spelling alone: naive Bayes on character n-grams.

It reads the same training text and uses no neural model. A slot that recognises its language no
better has shown nothing that counting letters does not. ``lang_ids=auto`` recognises by the same
n-grams, see :mod:`xmod_lab.text.recognition`.
"""

from collections.abc import Iterator

import numpy as np

from xmod_lab.languages.recognition import first_characters
from xmod_lab.scoring.languages import ScoredLanguage
from xmod_lab.text.recognition import Profile, Recogniser


def ngram_costs(
    languages: list[ScoredLanguage], sentences: dict[str, list[str]], slots: list[str]
) -> dict[str, np.ndarray]:
    """Nats of each sentence by the n-grams of the training text of each slot's languages.

    A slot of several languages has the lowest cost of theirs. All languages are equally likely
    beforehand.

    Returns:
        language of ``sentences`` -> (N, slots).
    """
    profiles = {one.code: Profile.learn(_first(one)) for one in languages}
    recogniser = Recogniser(profiles)
    costs = {}
    for code, texts in sentences.items():
        nats = recogniser.nats(texts)  # (N, languages)
        own = [np.flatnonzero([language.slot == slot for language in languages]) for slot in slots]
        costs[code] = np.stack([nats[:, places].min(1) for places in own], axis=1)
    return costs


def _first(language: ScoredLanguage) -> Iterator[str]:
    """The first training passages without duplicates, until they have 300,000 characters."""
    blocks = language.scorer.corpus.held_out_by == "document"
    return first_characters(language.source.passages("train", blocks=blocks))
