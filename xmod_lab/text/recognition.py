"""Which language a text is in, by its spelling: naive Bayes on character n-grams.

Each language has a profile of its own: how often n-grams occur in its training text, and how badly
its held-out text fits that. No profile knows of another, so a language comes and goes with its
profile, and the profiles of the others stay as they are.

A text costs each language the nats of its n-grams, and the cheapest language is the answer. The
probabilities of the answer count each character once (its n-grams overlap), and all languages are
equally likely beforehand. A text is unknown if

- it has no letters, or none of them is in any profile (a script that no language has);
- it costs the cheapest language more, for each n-gram, than ``1 - REFUSED`` of the held-out text of
  that language of the same length, with some slack for text of another kind;
- the probability of the answer is below ``SURE``.

A profile is written as JSON, without code. ``total``: n-grams of the training text. ``ngrams``: how
often the most frequent ones occur. ``limits``: the most nats for an n-gram, for texts of LENGTHS
characters.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np

from xmod_lab.codes import slot_fault
from xmod_lab.errors import UserError, shown

LONGEST = 3  # characters of an n-gram
LENGTHS = (4, 8, 16, 32, 64, 128)  # characters of the held-out pieces that limits are measured on
# how far text of another kind may lie beyond that, in distances from the middle to that
SLACK = 0.5
REFUSED = 0.02  # share of the held-out pieces of a language that limits without slack refuse
SURE = 0.5  # the least probability of an answer
FORMAT = 1
NO_LETTERS = "it has no letters"
NEAREST = "nearest"  # in place of a default language: unknown texts get the cheapest one
_NGRAMS = 8_000  # kept of each language: the most frequent
_PASSAGES = 1_000  # of held-out text that limits are measured on
_PIECES = 20  # held-out pieces of a length, at least, to measure a limit
_FLOOR = math.log(5e-7)  # log probability of an n-gram that a profile does not have
_MOST_NGRAMS, _MOST_COUNT = 100_000, 1 << 53  # of a profile in a file


def ngrams(text: str, longest: int = 4) -> list[str]:
    """Every run of 1 to ``longest`` characters of ``text`` (composed, NFC), with repetitions."""
    text = unicodedata.normalize("NFC", text)
    return [text[i : i + n] for n in range(1, longest + 1) for i in range(len(text) - n + 1)]


class _Letters(dict):
    """Translates letters and their marks to themselves, and all else to a space."""

    def __missing__(self, character: int) -> int:
        letter = unicodedata.category(chr(character))[0] in "LM"
        self[character] = character if letter else ord(" ")
        return self[character]


_LETTERS = _Letters()


def words_of(text: str) -> str:
    """The words of ``text`` in lower case, without digits and signs, one space around each."""
    words = unicodedata.normalize("NFKC", text).lower().translate(_LETTERS).split()
    return f" {' '.join(words)} " if words else ""


@dataclass(frozen=True)
class Profile:
    """The spelling of one language; see the head of this module."""

    total: int
    ngrams: dict[str, int]
    limits: tuple[float, ...] = (math.inf,) * len(LENGTHS)

    @classmethod
    def learn(cls, passages: Iterable[str], held_out: Sequence[str] = ()) -> "Profile":
        """Count the n-grams of ``passages``, and measure limits on ``held_out``, if it is given."""
        counts: Counter[str] = Counter()
        for passage in passages:
            counts.update(ngrams(words_of(passage), LONGEST))
        # of equal counts the first in the alphabet, whatever the order of the text
        kept = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_NGRAMS]
        profile = cls(counts.total(), dict(sorted(kept)))
        return cls(profile.total, profile.ngrams, _limits(profile, held_out))

    def gains(self) -> dict[str, float]:
        """n-gram -> how many nats less it costs than an n-gram that the profile does not have."""
        floor = math.exp(_FLOOR)
        return {g: math.log(n / self.total + floor) - _FLOOR for g, n in self.ngrams.items()}

    def limit(self, characters: int) -> float:
        """The most nats for an n-gram of a text of so many characters."""
        return float(np.interp(math.log(max(characters, 1)), np.log(LENGTHS), self.limits))

    def record(self) -> dict:
        """As JSON. An infinite limit is null."""
        limits = [None if math.isinf(limit) else round(limit, 4) for limit in self.limits]
        return {"total": self.total, "limits": limits, "ngrams": self.ngrams}


def _limits(profile: Profile, held_out: Sequence[str]) -> tuple[float, ...]:
    """The cost that a share of ``1 - REFUSED`` of the held-out pieces of each length keeps to, with
    slack.

    A length with few pieces has the limit of the one before. A passage gives one piece of each
    length that it has; where it begins is evenly spread over its words.
    """
    gains, limits = profile.gains(), []
    step = max(1, len(held_out) // _PASSAGES)
    passages = [words_of(passage).strip() for passage in held_out[::step]]
    for length in LENGTHS:
        costs = []
        for number, passage in enumerate(passages):
            starts = [0, *(m.end() for m in re.finditer(" ", passage))]
            starts = [start for start in starts if start + length <= len(passage)]
            if starts:
                start = starts[number % len(starts)]
                grams = ngrams(f" {passage[start : start + length].strip()} ", LONGEST)
                costs.append(-_FLOOR - sum(map(gains.get, grams, repeat(0.0))) / len(grams))
        usual = limits[-1] if limits else math.inf
        if len(costs) >= _PIECES:
            middle, most = np.quantile(costs, [0.5, 1 - REFUSED])
            # no text costs more than -_FLOOR: with that limit no text is refused
            usual = min(float(most + SLACK * (most - middle)), -_FLOOR)
        limits.append(round(usual, 4))
    return tuple(limits)


@dataclass(frozen=True)
class Recognised:
    """The answer for one text.

    Args:
        code: the cheapest language.
        probability: of ``code``, among the languages that are known.
        unknown: why the text counts as unknown, or ``None``.
    """

    code: str
    probability: float
    unknown: str | None = None

    def read_as(self, default: str | None) -> "Recognised":
        """The answer with the language ``default``, if the text is unknown."""
        if self.unknown is None or default in (None, NEAREST):
            return self
        return replace(self, code=default)


def default_named(default: str) -> str:
    """The language of unknown texts, for messages."""
    return "the nearest language" if default == NEAREST else default


def decided(codes: Sequence[str], chances: np.ndarray) -> Recognised:
    """The answer by the probabilities of ``codes``; unknown if none of them is SURE."""
    best = int(chances.argmax())
    code, probability, unknown = codes[best], float(chances[best]), None
    if probability < SURE:
        likely = " or ".join(codes[i] for i in chances.argsort()[::-1][:3])
        unknown = f"it may be {likely} ({code} has a probability of {probability:.2f})"
    return Recognised(code, probability, unknown)


def probabilities(nats: np.ndarray) -> np.ndarray:
    """Of languages that are equally likely beforehand, from what a text costs them."""
    found = np.exp(nats.min() - nats)
    return found / found.sum()


class Recogniser:
    """Tells the language of texts, among those of ``profiles`` (code -> profile).

    Raises:
        UserError: there is no profile.
    """

    def __init__(self, profiles: Mapping[str, Profile]):
        if not profiles:
            raise UserError("give the profile of a language, or more: there is none to recognise")
        self.profiles, self.codes = dict(profiles), list(profiles)
        self._gains = [profile.gains() for profile in profiles.values()]

    def nats(self, texts: Sequence[str]) -> np.ndarray:
        """(N, languages) what each text costs each language, in the order of ``codes``."""
        costs = np.zeros((len(texts), len(self.codes)))
        for row, text in enumerate(texts):
            grams = ngrams(words_of(text), LONGEST)
            gained = [sum(map(gains.get, grams, repeat(0.0))) for gains in self._gains]
            costs[row] = -_FLOOR * len(grams) - np.array(gained)
        return costs

    def recognise(self, texts: Sequence[str]) -> list[Recognised]:
        """The language of each text, and whether it counts as unknown. Nothing is refused."""
        return [
            self._answer(words_of(text), nats)
            for text, nats in zip(texts, self.nats(texts), strict=True)
        ]

    def _answer(self, words: str, nats: np.ndarray) -> Recognised:
        chances, best = probabilities(nats / LONGEST), int(nats.argmin())
        code, probability = self.codes[best], float(chances[best])
        if not words:
            return Recognised(code, probability, NO_LETTERS)
        if not any(letter in gains for letter in {*words} - {" "} for gains in self._gains):
            return Recognised(code, probability, "no language here is written with its letters")
        number = len(ngrams(words, LONGEST))
        limit = self.profiles[code].limit(len(words) - 2)
        if nats[best] / number > limit:
            why = (
                f"{code} is nearest, but its own text is nearer to it "
                f"({nats[best] / number:.1f} nats for an n-gram; allowed are {limit:.1f})"
            )
            return Recognised(code, probability, why)
        return decided(self.codes, chances)


def to_json(profiles: Mapping[str, Profile]) -> dict:
    """The content of a file with these profiles. One of text without letters is left out."""
    languages = {code: one.record() for code, one in profiles.items() if one.ngrams}
    return {"format": FORMAT, "longest": LONGEST, "languages": languages}


def from_json(content: Mapping, where: object) -> dict[str, Profile]:
    """The profiles in the ``content`` of a file, which may be of a stranger.

    Args:
        where: the file, for messages.
    Raises:
        UserError: it is of another format, or a name or a number is not allowed.
    """
    if (content.get("format"), content.get("longest")) != (FORMAT, LONGEST):
        raise UserError(
            "learn it anew: xmod_lab.learn_recognition(FOLDER), or use the version of xmod_lab "
            f"that wrote it: {where} has format {shown(content.get('format'))}, and n-grams of "
            f"{shown(content.get('longest'))} characters; this version reads format {FORMAT}, and "
            f"{LONGEST} characters"
        )
    languages = content.get("languages")
    if not isinstance(languages, dict) or (fault := next(_faults(languages), None)):
        fault = "languages is no table by code" if not isinstance(languages, dict) else fault
        raise UserError(f"delete {where}, or copy it again from where it came: {fault}")
    return {
        code: Profile(
            found["total"],
            found["ngrams"],
            tuple(math.inf if limit is None else float(limit) for limit in found["limits"]),
        )
        for code, found in languages.items()
    }


def _faults(languages: dict) -> Iterator[str]:
    for code, found in languages.items():
        if fault := slot_fault(code):
            yield fault
        elif not isinstance(found, dict) or found.keys() != {"total", "limits", "ngrams"}:
            yield f"{code} has {shown(found)}; expected total, limits and ngrams"
        elif not _is_count(found["total"]):
            yield f"total of {code} is {shown(found['total'])}; expected a number of n-grams"
        elif not isinstance(found["limits"], list) or not (
            len(found["limits"]) == len(LENGTHS) and all(map(_is_limit, found["limits"]))
        ):
            yield f"limits of {code} are {shown(found['limits'])}; expected {len(LENGTHS)} numbers"
        elif not isinstance(found["ngrams"], dict) or not (
            0 < len(found["ngrams"]) <= _MOST_NGRAMS
        ):
            yield f"ngrams of {code} are no table of 1 to {_MOST_NGRAMS:,} n-grams"
        else:
            for gram, count in found["ngrams"].items():
                if not 0 < len(gram) <= LONGEST or not _is_count(count) or count > found["total"]:
                    yield f"ngrams of {code} have {shown(count)} for {shown(gram)}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST_COUNT


def _is_limit(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and 0 <= value <= -_FLOOR + 1)
