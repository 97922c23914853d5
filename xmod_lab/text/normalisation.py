"""What the normalisation of a vocabulary changes in a text, and how many bits restore it.

A character is *changed* if the vocabulary reads another one in its place, or none: full-width
letters, ligatures, joiners that become spaces, capitals if case is folded. Canonical composition
(NFC) is not a change: text is composed when it is read.

``respelling_bits`` is the length of a code for the original, given what is read. For everything
that is read in place of something else, it codes which of its occurrences stood for which character
(log2 of the multinomial coefficient), and each changed character once in its raw bytes. If a
normalisation makes a text easier to predict, bits per byte pay here for what it removed. Only the
normaliser of a tokenizer is considered, and not what its pre-tokenizer or its tokens drop.
"""

import math
import re
import sys
import unicodedata
from collections import Counter, defaultdict

import numpy as np
from transformers import PreTrainedTokenizerBase

KINDS = ("dropped", "made spaces", "joined", "case", "form")
SPACES = " ▁"  # "▁" is the space in the tokens of SentencePiece
_SEVERAL = re.compile("  +")
_SHOWN = 8


class Normalisation:
    """Counts of the characters of a text, and what a tokenizer reads in their place.

    ``passages``: how many have a changed character. ``joined``: repeated spaces, if they are
    dropped.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        normalizer = tokenizer.backend_tokenizer.normalizer
        self._normalize = str if normalizer is None else normalizer.normalize_str
        self._head = self._normalize("11")[:-1]  # digits compose with nothing
        self._images: dict[str, str] = {}
        self._joins = self._normalize("1  1") == self._normalize("1 1")
        # by the number of a character: how often it occurs, and whether it is changed
        self._counts = np.zeros(sys.maxunicode + 1, dtype=np.int64)
        self._changes = np.zeros(sys.maxunicode + 1, dtype=bool)
        self.joined = self.passages = 0

    def count(self, passages: list[str]) -> None:
        """Count the characters of ``passages``; each has some."""
        characters = np.frombuffer("".join(passages).encode("utf-32-le"), dtype="<u4")
        counts = np.bincount(characters)
        known = self._counts[: len(counts)]
        for number in np.flatnonzero((counts > 0) & (known == 0)).tolist():
            self._changes[number] = self.image(chr(number)) != chr(number)
        known += counts
        ends = np.cumsum([len(passage) for passage in passages])
        changed = np.zeros(len(passages), dtype=bool)
        places = np.flatnonzero(self._changes[characters])
        changed[np.searchsorted(ends, places, side="right")] = True
        for number, passage in enumerate(passages if self._joins else ()):
            if "  " in passage:
                self.joined += len(passage) - len(_SEVERAL.sub(" ", passage))
                changed[number] = True
        self.passages += int(changed.sum())

    @property
    def written(self) -> Counter[str]:
        """How often each character occurs."""
        found = np.flatnonzero(self._counts)
        return Counter(dict(zip(map(chr, found), self._counts[found].tolist(), strict=True)))

    def record(self) -> dict:
        """The counts, for :meth:`add`."""
        found = np.flatnonzero(self._counts)
        return {
            "characters": [found.tolist(), self._counts[found].tolist()],
            "joined": self.joined,
            "passages": self.passages,
        }

    def add(self, record: dict, times: int = 1) -> None:
        """Add counts that were made elsewhere; with ``times`` -1, take them away."""
        characters, counts = record["characters"]
        self._counts[characters] += times * np.array(counts, dtype=np.int64)
        self.joined += times * record["joined"]
        self.passages += times * record["passages"]

    def image(self, character: str) -> str:
        """What is read in place of ``character`` between others: itself if nothing changes."""
        if character not in self._images:
            image = self._normalize(f"1{character}1")[len(self._head) : -1]
            if image and not image.strip(SPACES):
                image = " "
            self._images[character] = character if image.strip(" ") == character else image
        return self._images[character]

    def changed(self) -> dict[str, int]:
        """The changed characters, and how often each occurs; the most frequent first."""
        return {c: n for c, n in self.written.most_common() if self.image(c) != c}

    def summary(self) -> dict:
        """For a manifest: ``changed``, how many characters of each kind; ``changed_most``, the most
        frequent as [character, what is read, count]; ``changed_passages``; ``respelling_bits``."""
        changed = self.changed()
        kinds = Counter({"joined": self.joined})
        for character, count in changed.items():
            kinds[kind(character, self.image(character))] += count
        most = [[c, self.image(c), n] for c, n in list(changed.items())[:_SHOWN]]
        return {
            "changed": {name: kinds[name] for name in KINDS if kinds[name]},
            "changed_most": most,
            "changed_passages": self.passages,
            "respelling_bits": round(self._bits(changed), 1),
        }

    def _bits(self, changed: dict[str, int]) -> float:
        read, groups = Counter(), defaultdict(list)
        for character, count in self.written.items():
            for c in self.image(character):
                read[c] += count
        for character, count in changed.items():
            groups[self.image(character)].append(count)
        if self.joined:
            groups[""].append(self.joined)
        bits = 8.0 * sum(len(character.encode()) for character in changed)
        for image, counts in groups.items():
            if image:  # at most so many places
                places = min(read[c] // image.count(c) for c in set(image))
            else:
                places = read.total() + sum(counts)
            bits += (
                _log2_factorial(places)
                - _log2_factorial(places - sum(counts))
                - sum(map(_log2_factorial, counts))
            )
        return bits


def kind(character: str, image: str) -> str:
    """One of KINDS: what happens to a character that is read as ``image``."""
    if not image:
        return "dropped"
    if not image.strip(SPACES):
        return "form" if character.isspace() else "made spaces"
    return "case" if character.casefold() == image.casefold() else "form"


def named(character: str) -> str:
    """How a character is shown: itself if it is visible, else its number."""
    visible = unicodedata.category(character)[0] in "LNPS"
    return character if visible else f"U+{ord(character):04X}"


def read_as(image: str) -> str:
    """What is read in place of a character, as it is shown."""
    return (
        "nothing" if not image else "".join(map(named, image)) if image.strip(SPACES) else "space"
    )


def _log2_factorial(n: int) -> float:
    return math.lgamma(n + 1) / math.log(2)
