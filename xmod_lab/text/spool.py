"""The training text of a language in a file, without duplicates; of a large text a part, so that a
vocabulary is learnt from it in bounded memory."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from xmod_lab.files import scratch_folder
from xmod_lab.text.holdout import exact_key
from xmod_lab.text.source import Source

MAX_BYTES = 200_000_000  # SentencePiece holds its training text in memory, several times over
_NEW = 2**20  # keys that are not sorted yet


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

    Args:
        bytes, passages: what the file has.
        halvings: how often half of the text was dropped, so that the file stays small.
    """

    source: Source
    file: Path
    bytes: int = 0
    passages: int = 0
    halvings: int = 0

    def fill(self) -> None:
        """Read the text once. Raises UserError if it cannot be used, or has no training text."""
        seen = Keys()
        stream = self.file.open("w", encoding="utf-8")
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: stream.close())
            for passage in self.source.passages("train"):
                key = exact_key(passage)
                if key >> (64 - self.halvings) or self.source.drop_duplicates and key in seen:
                    continue
                seen.add(key)
                self._add(stream, passage)
                if self.bytes > 2 * MAX_BYTES:
                    stream.close()
                    stream, seen = self._halve()

    def _add(self, stream: TextIO, passage: str) -> None:
        stream.write(f"{passage}\n")
        self.bytes += len(passage.encode())
        self.passages += 1

    def _halve(self) -> tuple[TextIO, Keys]:
        """Drop the upper half of the keys; returns the file to go on with, and the keys in it."""
        larger, seen = self.file.rename(self.file.with_suffix(".larger")), Keys()
        self.halvings += 1
        self.bytes = self.passages = 0
        stream = self.file.open("w", encoding="utf-8")
        with larger.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                passage = line.removesuffix("\n")
                key = exact_key(passage)
                if not key >> (64 - self.halvings):
                    seen.add(key)
                    self._add(stream, passage)
        larger.unlink()
        return stream, seen

    def read(self) -> Iterator[str]:
        """The passages in the file, in the order of the text."""
        with self.file.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                yield line.removesuffix("\n")


@contextlib.contextmanager
def spooled(source: Source, folder: Path) -> Iterator[Iterator[str]]:
    """The passages of the training text of ``source``, which lie under ``folder`` meanwhile."""
    with scratch_folder(folder / "text") as scratch:
        spool = Spool(source, scratch / "text")
        spool.fill()
        yield spool.read()
