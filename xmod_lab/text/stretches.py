"""Which stretches of a passage are masked together when it is scored: chosen in the text, so that
they are the same for every vocabulary.

A passage is cut where hardly any vocabulary joins two characters in one token: before white space,
and between letters of a script and digits, punctuation or other signs that all scripts share
(Unicode's script Common). So ``on 12 May, at`` becomes ``on``, `` 12``, `` May``, ``,``, `` at``.
In scripts without spaces a stretch is a phrase between two signs, since vocabularies cut such a
phrase into words in different ways.

A seed and the bytes of the passage divide the stretches among ``SETS`` sets. Each set is masked
once: about 15 % of a passage with seven stretches or more, and a larger share of a shorter one.
"""

import hashlib
import unicodedata
from functools import lru_cache

import numpy as np
from fontTools.unicodedata import script

SETS = 7  # each masks about 15 % of a passage
_SEED = b"15"
# what vocabularies read as a space, besides white space: see xmod_lab.text.unigram
_BLANK = frozenset("\u061c\u200b\u200c\u200e\u200f▁\ufeff\ufffd")
_ALSO_LETTERS = "\u30fc"  # the mark of long vowels between kana; SentencePiece treats it as one
_ANY, _SIGN, _LETTER, _SPACE = range(4)


def starts_of(text: str) -> np.ndarray:
    """(S,) where each stretch of ``text`` begins, in characters; the first is 0. White space
    belongs to the stretch after it."""
    starts, before = [], _SPACE
    for place, character in enumerate(text):
        kind = _kind(character)
        if kind == _ANY:  # an accent belongs to the character under it
            kind = before
        if not starts or (kind != before and before != _SPACE):
            starts.append(place)
        before = kind
    return np.array(starts, dtype=np.int64)


def deal(text: str, stretches: int) -> np.ndarray:
    """(S,) the set of each of the ``stretches`` of ``text``, from 0 to ``SETS - 1``. Sizes of sets
    differ by at most one."""
    digest = hashlib.blake2b(text.encode(), digest_size=16, key=_SEED).digest()
    order = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32)).permutation(stretches)
    return order % SETS


def borders(piece: str, space: str) -> tuple[bool, int, int]:
    """Whether the token ``piece`` begins a stretch by itself, and the kinds of its first and last
    character. ``space``: how its vocabulary writes a space."""
    plain = piece.replace(space, " ")
    kinds = [kind for c in plain if (kind := _kind(c)) not in (_ANY, _SPACE)]
    return plain.startswith(" "), *((kinds[0], kinds[-1]) if kinds else (_ANY, _ANY))


@lru_cache(1 << 16)
def _kind(character: str) -> int:
    if character.isspace() or character in _BLANK:
        return _SPACE
    last = unicodedata.normalize("NFKC", character)[-1:]
    if last in _ALSO_LETTERS:
        return _LETTER
    name = script(last)
    return _ANY if name == "Zinh" else _SIGN if name in ("Zyyy", "Zzzz") else _LETTER
