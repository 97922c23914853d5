"""Which passages are held out, and which of these are in the training text as well.

A share of a text is held out by document. A document is a row of jsonl, a table or a dataset, or a
line of a .txt file. If blank lines or the ends of files divide the .txt files into blocks, a block
is a document, provided that at least ``_FEWEST`` blocks are expected in the share.

The letters of a document alone decide on which side it goes: copies with other numbers, case or
punctuation go to the same side. In a .txt file of blocks, a held-out passage may still stand in a
block of the other side (a heading, a notice): such passages are left out of the held-out text, and
counted.

Held-out text that is given is read as it is. It is counted how many of its passages are training
text, by their letters.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

_FEWEST = 8  # documents
_LINES = 1_000  # the first lines of a document decide on its side
_NEW = 2**20  # keys that are not sorted yet


class _LettersOnly(dict):
    """For ``str.translate``: keeps letters and the marks on them, and drops all else."""

    def __missing__(self, number: int) -> int | None:
        self[number] = number if unicodedata.category(chr(number))[0] in "LM" else None
        return self[number]


_LETTERS = _LettersOnly()


def letters_of(passage: str) -> str:
    """The letters of ``passage`` and the marks on them: no case, numbers, spaces, punctuation."""
    return passage.casefold().translate(_LETTERS)


def exact_key(passage: str) -> int:
    """A 64-bit key of a passage."""
    return int.from_bytes(hashlib.blake2b(passage.encode(), digest_size=8).digest(), "little")


def letters_key(passage: str) -> int:
    """A 64-bit key of the letters of a passage: passages that differ only in numbers, case, spaces
    and punctuation share it. Without letters: :func:`exact_key`."""
    return exact_key(letters_of(passage) or passage)


class Keys:
    """A set of 64-bit keys with 8 bytes each, and 16 while new keys are sorted in. A Python set
    takes ten times as much: 10 GB for a hundred million passages."""

    def __init__(self) -> None:
        self._new: set[int] = set()
        self._sorted = np.empty(0, dtype=np.uint64)

    def add(self, key: int) -> None:
        self._new.add(key)
        if len(self._new) == _NEW:
            new = np.fromiter(self._new, dtype=np.uint64, count=_NEW)
            self._sorted = np.union1d(self._sorted, new)
            self._new.clear()

    def __contains__(self, key: int) -> bool:
        if key in self._new:
            return True
        place = int(self._sorted.searchsorted(np.uint64(key)))
        return place < len(self._sorted) and int(self._sorted[place]) == key


def are_documents(documents: int, lines: int, share: float) -> bool:
    """Whether .txt files with ``documents`` blocks between blank lines are held out by block."""
    return documents < lines and documents * share >= _FEWEST


def one_side(documents: Iterable[Iterable[str]], share: float, *, held_out: bool) -> Iterator[str]:
    """Passages of one side: of the held-out ``share`` of ``documents``, or of the others."""
    for document in documents:
        passages = iter(document)
        head = list(islice(passages, _LINES))
        if (letters_key("\n".join(head)) < share * 2**64) == held_out:
            yield from head
            yield from passages
        else:
            for _ in passages:
                pass
