"""What a text is like before training: its near-copies, letters and tokens, and the language it
looks like. For ``plan=true``."""

import math
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from xmod_lab.codes import meaning
from xmod_lab.errors import UserError
from xmod_lab.text.encoding import encode
from xmod_lab.text.holdout import exact_key, letters_of
from xmod_lab.text.source import Source
from xmod_lab.text.unigram import to_hugging_face, train_sentencepiece

try:  # the extra "langid"; its model is inside the package
    from py3langid.langid import MODEL_FILE, LanguageIdentifier
except ImportError:
    LanguageIdentifier = None

_READ = 1 << 26  # bytes of text that are read of a large one
_SAMPLE = 2000  # most passages that are tokenised and identified: shares are within 3 points
NO_LANGUAGE = "no language"
_WITHOUT_SPACES = (
    "Hans",
    "Hant",
    "Jpan",
    "Thai",
    "Laoo",
    "Khmr",
    "Mymr",
    "Qaag",
)  # scripts that put no spaces between words


@dataclass(frozen=True)
class Survey:
    """The training text of a language; of more than 64 MiB, a part that is read.

    Args:
        passages: how many were read.
        near_copies: passages that differ from an earlier one only in case, digits, spaces and
            punctuation.
        letters: how often each occurs.
        sample: passages, evenly spaced over the text.
    """

    code: str
    passages: int
    near_copies: int
    letters: Counter[str]
    sample: list[str]

    @property
    def near_copy_share(self) -> float:
        return self.near_copies / self.passages

    @property
    def script(self) -> str:
        """The script of most letters, by the first word of their Unicode names: Latin, Greek, Cjk
        ..."""
        names = Counter()
        for letter, count in self.letters.items():
            names[unicodedata.name(letter, "unknown").split()[0].capitalize()] += count
        return names.most_common(1)[0][0] if names else "no"


@dataclass(frozen=True)
class Spelling:
    """How a vocabulary splits a sample. ``per_word``: ``None`` in scripts without spaces between
    words."""

    pieces: int
    per_word: float | None
    per_byte: float
    unknown: float  # share of the tokens that are <unk>
    unknown_bytes: float  # share of the bytes that <unk> stands for


def survey(code: str, source: Source, passages: int, size: int, *, blocks: bool = False) -> Survey:
    """Read the training text of ``code``, or the beginnings of some ranges of a large one.

    Args:
        passages, size: how many passages and bytes it has, without duplicates.
        blocks: whether text is held out by document.
    """
    expected = passages * min(1.0, _READ / size)
    step = max(1, math.ceil(expected / _SAMPLE))
    letters = Counter()
    seen: set[int] = set()
    count, near, sample = 0, 0, []
    for passage in source.sample(_READ, size, blocks=blocks):
        exact, plain = exact_key(passage), letters_of(passage)
        if exact in seen:
            continue
        key = exact_key(plain)
        near += bool(plain) and key in seen
        seen |= {exact, key}
        letters.update(plain)
        if count % step == 0:
            sample.append(passage)
        count += 1
    without_marks = {
        letter: n for letter, n in letters.items() if unicodedata.category(letter)[0] == "L"
    }
    return Survey(code, count, near, Counter(without_marks), sample)


def spelling(found: Survey, tokenizer: PreTrainedTokenizerBase) -> Spelling:
    """How ``tokenizer`` splits the sample."""
    pieces = unknown = size = unknown_bytes = 0
    for ids, bytes_, not_spelt in encode(iter(found.sample), tokenizer):
        pieces += len(ids)
        unknown += ids.count(tokenizer.unk_token_id)
        size += bytes_
        unknown_bytes += not_spelt
    words = sum(len(passage.split()) for passage in found.sample)
    parts = meaning(found.code)
    spaced = not (parts and parts.likely[0] in _WITHOUT_SPACES)
    return Spelling(
        pieces,
        pieces / words if spaced else None,
        pieces / size,
        unknown / pieces,
        unknown_bytes / size,
    )


def own_spelling(
    found: Survey, *, vocab_size: int, byte_fallback: bool, normalization: str
) -> Spelling | None:
    """How a vocabulary of its own would split the text.

    It is trained on one half of the sample, which takes a second or two, and applied to the other
    half. ``None``: the sample is too small.

    Args:
        vocab_size: the most tokens of the vocabulary.
    """
    try:
        model = train_sentencepiece(
            found.sample[::2],
            vocab_size=vocab_size,
            byte_fallback=byte_fallback,
            normalization=normalization,
        )
    except UserError:
        return None
    rest = replace(found, sample=found.sample[1::2])
    return spelling(rest, to_hugging_face(model)) if rest.sample else None


def unknown_letters(found: Survey, tokenizer: PreTrainedTokenizerBase) -> float:
    """Share of the text's letters that no token of ``tokenizer`` has."""
    known = set("".join(tokenizer.get_vocab()).casefold())
    total = found.letters.total()
    spelt = sum(
        n
        for letter, n in found.letters.items()
        if set(unicodedata.normalize("NFKC", letter)) <= known
    )
    return 1 - spelt / total if total else 0.0


def looks_like(found: Survey) -> list[tuple[str, float]] | str:
    """Languages that the sample's passages look like, with their shares, the most frequent first.
    Passages without letters, where py3langid only guesses, count as ``NO_LANGUAGE``. A string says
    why nothing was checked: py3langid is not installed, or does not know the language in this
    script."""
    if LanguageIdentifier is None:
        return "not checked: pip install 'xmod_lab[langid]'"
    identifier, own = _identifier(), meaning(found.code)
    if own is None or (own.language, own.likely[0]) not in {
        (m.language, m.likely[0]) for m in map(meaning, identifier.labels) if m
    }:
        return f"not checked: py3langid does not know {found.code}"
    guesses = (
        identifier.classify(p)[0] if any(map(str.isalpha, p)) else NO_LANGUAGE for p in found.sample
    )
    counts = Counter(guess if meaning(guess) else NO_LANGUAGE for guess in guesses)
    return [(code, n / len(found.sample)) for code, n in counts.most_common()]


@lru_cache(maxsize=1)
def _identifier() -> "LanguageIdentifier":
    return LanguageIdentifier.from_model_file(MODEL_FILE)
