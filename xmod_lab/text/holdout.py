"""Which passages are held out, and whether what is held out is training text as well.

A share of a text is held out by document. A row of jsonl, a table or a dataset is one; so is a line of a .txt file, unless blank lines
(or the ends of files) part the lines into documents, and those are enough for a share of them to be some: at least ``_FEWEST``
are to be expected. Which side a document goes to follows from its letters alone: copies of it in which numbers, case or punctuation
differ go there too. In a .txt file of documents a held-out passage may still stand in a document of the other side (a heading, a
notice): such passages are left out of the held-out text, and counted.

Held-out text that is given is read as it is; how many of its passages are training text, by their letters, is counted.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

_FEWEST = 8  # documents
_LINES = 1_000  # of a document by which it is told
_NEW = 2**20  # keys that are not sorted yet


class _LettersOnly(dict):
    """For ``str.translate``: letters and the marks on them stay, all else goes."""

    def __missing__(self, number: int) -> int | None:
        self[number] = number if unicodedata.category(chr(number))[0] in "LM" else None
        return self[number]


_LETTERS = _LettersOnly()


def letters_of(passage: str) -> str:
    """Its letters, and the marks on them, without case, numbers, spaces and punctuation."""
    return passage.casefold().translate(_LETTERS)


def exact_key(passage: str) -> int:
    """64 bits that tell a passage from others."""
    return int.from_bytes(hashlib.blake2b(passage.encode(), digest_size=8).digest(), "little")


def letters_key(passage: str) -> int:
    """64 bits that passages have in common that differ in numbers, case, spaces and punctuation alone; of one without letters its
    :func:`exact_key`."""
    return exact_key(letters_of(passage) or passage)


class Keys:
    """A set of 64-bit keys in 8 bytes each, twice that while a million of new ones is sorted in: a set of Python's takes ten times as
    much, 10 GB for a hundred million passages."""

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
    """Whether a .txt text of so many ``lines`` in blocks between blank lines, ``documents``, is held out by block."""
    return documents < lines and documents * share >= _FEWEST


def one_side(documents: Iterable[Iterable[str]], share: float, *, held_out: bool) -> Iterator[str]:
    """Passages of the ``documents`` that are held out, ``share`` of all, or of the others."""
    for document in documents:
        passages = iter(document)
        head = list(islice(passages, _LINES))
        if (letters_key("\n".join(head)) < share * 2**64) == held_out:
            yield from head
            yield from passages
        else:
            for _ in passages:
                pass
