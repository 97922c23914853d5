"""The training text of a language in a file, without duplicates; of a large text a part, so that a
vocabulary is learnt from it in bounded memory."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xmod_lab.errors import UserError
from xmod_lab.files import scratch_folder
from xmod_lab.text.holdout import exact_key
from xmod_lab.text.source import Source, Tally

MAX_BYTES = 200_000_000  # SentencePiece holds its training text in memory, several times over
_NEW = 2**20  # keys that are not sorted yet
_BY_DOCUMENT, _BY_PASSAGE = 1, 2  # cases, added up


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


@dataclass
class Spool:
    """The training text of a language in a file. Of a large text, the passages with the lowest
    keys: they are from all over it, and copies of a passage share its key.

    Whether text is held out by document or by passage is known when all of it was read. Until then
    the file has what is training text in one of these cases.

    Args:
        halvings: how often half of the text was dropped, so that the file stays small.
    """

    source: Source
    file: Path
    halvings: int = 0

    def fill(self) -> None:
        """Read the text once. Raises UserError if it cannot be used, or has no training text."""
        tally = Tally()
        self._clear()
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: self._stream.close())
            for passage, by_document, by_passage in self.source.either_way(tally):
                key = exact_key(passage)
                if not key >> (64 - self.halvings):
                    self._add(passage, key, _BY_DOCUMENT * by_document + _BY_PASSAGE * by_passage)
                    if min(self._bytes.values(), default=0) > 2 * MAX_BYTES:
                        self._halve()
            by = self.source.held_out_of(tally.blocks, tally.lines)
            self._case = _BY_DOCUMENT if by == "document" else _BY_PASSAGE
            while self.bytes > 2 * MAX_BYTES:
                self._halve()
        if not self.passages:
            raise UserError(self.source.why_empty("train"))

    @property
    def bytes(self) -> int:
        """Bytes of the training text in the file."""
        return self._bytes[self._case]

    @property
    def passages(self) -> int:
        """Passages of the training text in the file."""
        return self._passages[self._case]

    def _clear(self) -> None:
        self._stream = self.file.open("w", encoding="utf-8")
        self._bytes, self._passages = Counter(), Counter()  # by case
        self._seen: dict[int, Keys] = {}  # by the cases of the passages

    def _add(self, passage: str, key: int, cases: int) -> None:
        """Write a passage that is training text in some ``cases``, if the file lacks it in one."""
        if self.source.drop_duplicates:
            for known, keys in self._seen.items():
                if cases & known and key in keys:
                    cases &= ~known
            if cases:
                self._seen.setdefault(cases, Keys()).add(key)
        if not cases:
            return
        self._stream.write(f"{cases}{passage}\n")
        size = len(passage.encode())
        for case in (_BY_DOCUMENT, _BY_PASSAGE):
            if cases & case:
                self._bytes[case] += size
                self._passages[case] += 1

    def _halve(self) -> None:
        """Drop the upper half of the keys."""
        self._stream.close()
        larger = self.file.rename(self.file.with_suffix(".larger"))
        self.halvings += 1
        self._clear()
        for passage, cases in _read(larger):
            key = exact_key(passage)
            if not key >> (64 - self.halvings):
                self._add(passage, key, cases)
        larger.unlink()

    def read(self) -> Iterator[str]:
        """The training text in the file, in the order of the text."""
        return (passage for passage, cases in _read(self.file) if cases & self._case)


def _read(file: Path) -> Iterator[tuple[str, int]]:
    """Each passage with its cases."""
    with file.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield line[1:].removesuffix("\n"), int(line[0])


@contextlib.contextmanager
def spooled(source: Source, folder: Path) -> Iterator[Iterator[str]]:
    """The passages of the training text of ``source``, which lie under ``folder`` meanwhile."""
    with scratch_folder(folder / "text") as scratch:
        spool = Spool(source, scratch / "text")
        spool.fill()
        yield spool.read()
