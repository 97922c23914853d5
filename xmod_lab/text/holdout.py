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

In both cases it has at most ``data.validation_tokens``. If a text would give more, the documents
(of given text: the passages) with the lowest keys are held out: keys are hashes, so these are from
all over the text. The others of a share are training text.
"""

import hashlib
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

VALIDATION_TOKENS = 1_000_000  # of held-out text, at most
_FEWEST = 8  # documents
# the first passages of a document decide on its side, up to one that ends beyond so many characters
DECIDE, DECIDE_CHARACTERS = 1_000, 2**25
_MANY = 2**20  # keys of candidates before those beyond the budget are dropped


class _LettersOnly(dict):
    """For ``str.translate``: keeps letters and the marks on them, and drops all else."""

    def __missing__(self, number: int) -> int | None:
        self[number] = number if unicodedata.category(chr(number))[0] in "LM" else None
        return self[number]


_LETTERS = _LettersOnly()


def letters_of(passage: str) -> str:
    """The letters of ``passage`` and the marks on them: no case, numbers, spaces, punctuation."""
    return passage.casefold().translate(_LETTERS)


def key_bytes(content: bytes) -> bytes:
    """The eight bytes, the lowest first, of the :func:`exact_key` of a passage in UTF-8."""
    return hashlib.blake2b(content, digest_size=8).digest()


def exact_key(passage: str) -> int:
    """A 64-bit key of a passage."""
    return int.from_bytes(key_bytes(passage.encode()), "little")


def letters_key(passage: str) -> int:
    """A 64-bit key of the letters of a passage: passages that differ only in numbers, case, spaces
    and punctuation share it. Without letters: :func:`exact_key`."""
    return exact_key(letters_of(passage) or passage)


def are_documents(documents: int, lines: int, share: float) -> bool:
    """Whether .txt files with ``documents`` blocks between blank lines are held out by block."""
    return documents < lines and documents * share >= _FEWEST


def bound_of(share: float) -> int:
    """Documents with a key below it are the held-out ``share``."""
    return math.ceil(share * 2**64)


def bound_within(keys: np.ndarray, tokens: np.ndarray, budget: int) -> int | None:
    """The bound below which the keys (N,) have at most ``budget`` of the ``tokens`` (N,), and at
    least one document; ``None``: all of them have no more."""
    order = np.argsort(keys, kind="stable")
    over = int(np.searchsorted(np.cumsum(tokens[order]), budget, side="right"))
    if over == len(keys):
        return None
    lowest, first_over = int(keys[order[0]]), int(keys[order[over]])
    return max(first_over, lowest + 1)


class Lowest:
    """Keys below a bound with their tokens. The bound is lowered when they pass the budget."""

    def __init__(self, bound: int, budget: int):
        self.bound, self.budget = bound, budget
        self._found: list[tuple[int, int]] = []

    def add(self, key: int, tokens: int) -> None:
        if key < self.bound:
            self._found.append((key, tokens))
            if len(self._found) == _MANY:
                self._found = [(k, n) for k, n in self.finish().tolist() if k < self.bound]

    def finish(self) -> np.ndarray:
        """(N, 2) uint64 keys and tokens, after the bound was lowered."""
        found = np.array(self._found, dtype="<u8").reshape(-1, 2)
        bound = bound_within(found[:, 0], found[:, 1], self.budget)
        if bound is not None:
            self.bound = min(self.bound, bound)
        return found[found[:, 0] <= self.bound - 1]


class Candidates:
    """What may be held out of a text, as it is read: by passages, and by documents.

    Args:
        file: takes the passages as [number, text] lines.
        bound: no key above it is held out.
        budget: tokens that are held out, at most.
    """

    def __init__(self, file: Path, bound: int, budget: int):
        self.passages, self.documents = Lowest(bound, budget), Lowest(bound, budget)
        self.first_bound, self.file = bound, file
        self.stream = file.open("w", encoding="utf-8")

    def add_text(self, number: int, text: str, key: int, document: int) -> None:
        """Write a passage if it may be held out by its own key, or by that of its document."""
        if key < self.passages.bound or document < self.documents.bound:
            self.stream.write(f"{json.dumps([number, key, document, text])}\n")

    def finish(self) -> dict[str, np.ndarray]:
        """Keep only what is within the bounds, after the stream was closed. Returns the keys and
        tokens of both kinds."""
        found = {"held_passages": self.passages.finish(), "held_documents": self.documents.finish()}
        if min(self.passages.bound, self.documents.bound) < self.first_bound:
            wider = self.file.rename(self.file.with_suffix(".all"))
            with wider.open(encoding="utf-8") as lines:
                with self.file.open("w", encoding="utf-8") as kept:
                    for line in lines:
                        _, key, document, _ = json.loads(line)
                        if key < self.passages.bound or document < self.documents.bound:
                            kept.write(line)
            wider.unlink()
        return found


def sides(documents: Iterable[Iterable[str]], bound: int) -> Iterator[tuple[str, bool, bool]]:
    """Each passage; whether its document has a key below ``bound``; whether it is all of that."""
    for document in documents:
        passages = iter(document)
        head, size = [], 0
        for passage in islice(passages, DECIDE):
            head.append(passage)
            if (size := size + len(passage)) > DECIDE_CHARACTERS:
                break
        below = letters_key("\n".join(head)) < bound if bound else False
        for passage in chain(head, passages):
            yield passage, below, len(head) == 1
