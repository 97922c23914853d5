"""Which stretches of a passage are hidden together when it is scored: chosen in the text, whatever vocabulary reads it.

A passage is cut into stretches that no usual vocabulary joins in one piece: before white space, and where letters of a script meet
digits, punctuation and other signs that all scripts share (Unicode's script Common). So ``on 12 May, at`` is ``on``, `` 12``, `` May``,
``,``, `` at``. In scripts without spaces a stretch is what stands between two signs, a phrase: what parts its words differs from one
vocabulary to the next. The stretches are dealt out to ``SETS`` sets in an order that a seed and the passage's bytes decide; each set is
hidden once, about 15 % of a passage of seven stretches or more, a larger share of a shorter one.
"""

import hashlib
import unicodedata
from functools import lru_cache

import numpy as np
from fontTools.unicodedata import script

SETS = 7  # of which each hides about 15 % of a passage
_SEED = b"15"
# what vocabularies read as a space beside white space itself: see xmod_lab.text.tokenizer
_BLANK = frozenset("\u061c\u200b\u200c\u200e\u200f▁\ufeff\ufffd")
_LETTERS_ALL_THE_SAME = (
    "\u30fc"  # the mark of long vowels, between kana, which SentencePiece takes for one
)
_ANY, _SIGN, _LETTER, _SPACE = range(4)


def starts_of(text: str) -> np.ndarray:
    """(S,) where each stretch of ``text`` begins, counted in characters; the first is 0. White space belongs to what follows it."""
    starts, before = [], _SPACE
    for place, character in enumerate(text):
        kind = _kind(character)
        if kind == _ANY:  # an accent goes with what it stands on
            kind = before
        if not starts or (kind != before and before != _SPACE):
            starts.append(place)
        before = kind
    return np.array(starts, dtype=np.int64)


def deal(text: str, stretches: int) -> np.ndarray:
    """(S,) the set of each of the ``stretches`` of ``text``, from 0 to ``SETS``; sets differ by one stretch at most."""
    digest = hashlib.blake2b(text.encode(), digest_size=16, key=_SEED).digest()
    order = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32)).permutation(stretches)
    return order % SETS


def borders(piece: str, space: str) -> tuple[bool, int, int]:
    """Whether ``piece`` begins a stretch by itself, and the kinds of its first and its last character; ``space`` is how its vocabulary
    writes one."""
    plain = piece.replace(space, " ")
    kinds = [kind for c in plain if (kind := _kind(c)) not in (_ANY, _SPACE)]
    return plain.startswith(" "), *((kinds[0], kinds[-1]) if kinds else (_ANY, _ANY))


@lru_cache(1 << 16)
def _kind(character: str) -> int:
    if character.isspace() or character in _BLANK:
        return _SPACE
    last = unicodedata.normalize("NFKC", character)[-1:]
    if last in _LETTERS_ALL_THE_SAME:
        return _LETTER
    name = script(last)
    return _ANY if name == "Zinh" else _SIGN if name in ("Zyyy", "Zzzz") else _LETTER
