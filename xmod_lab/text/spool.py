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

SAMPLE = 32_000_000  # bytes; SentencePiece takes up to 27 times as many, in a process of its own
LINE = 1 << 16  # bytes of a line: SentencePiece skips longer ones
_NEW = 2**18  # keys that are not sorted yet
_CASES = _BY_DOCUMENT, _BY_PASSAGE = 1, 2  # added up


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
        most: bytes of text in the file, at most, in each case. If there is more text, about half
            of it is dropped, again and again; long passages are divided then.
    """

    source: Source
    file: Path
    most: int

    def fill(self) -> None:
        """Read the text once. Raises UserError if it cannot be used, or has no training text."""
        tally = Tally()
        self._halvings = dict.fromkeys(_CASES, 0)
        self._clear()
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: self._stream.close())
            for passage, by_document, by_passage in self.source.either_way(tally):
                self._add(passage, _BY_DOCUMENT * by_document + _BY_PASSAGE * by_passage)
                for case in _CASES:
                    while self._bytes[case] > self.most:
                        self._halve(case)
        by = self.source.held_out_of(tally.blocks, tally.lines)
        self._case = _BY_DOCUMENT if by == "document" else _BY_PASSAGE
        self._seen.clear()
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

    @property
    def halvings(self) -> int:
        """How often half of the training text was dropped."""
        return self._halvings[self._case]

    def _clear(self) -> None:
        self._stream = self.file.open("w", encoding="utf-8")
        self._bytes, self._passages = Counter(), Counter()  # by case
        self._seen: dict[int, Keys] = {}  # by the cases of the passages

    def _add(self, passage: str, cases: int) -> None:
        """Write a passage that is training text in some ``cases``, if the file lacks it in one."""
        halved = [case for case, halvings in self._halvings.items() if cases & case and halvings]
        self._put(passage, cases - sum(halved))
        for part in in_parts(passage) if halved else ():
            key = exact_key(part)
            self._put(part, sum(c for c in halved if not key >> (64 - self._halvings[c])))

    def _put(self, passage: str, cases: int) -> None:
        if self.source.drop_duplicates:
            key = exact_key(passage)
            for known, keys in self._seen.items():
                if cases & known and key in keys:
                    cases &= ~known
            if cases:
                self._seen.setdefault(cases, Keys()).add(key)
        if not cases:
            return
        self._stream.write(f"{cases}{passage}\n")
        size = len(passage.encode())
        for case in _CASES:
            if cases & case:
                self._bytes[case] += size
                self._passages[case] += 1

    def _halve(self, case: int) -> None:
        """Drop the upper half of the keys of a case."""
        self._stream.close()
        larger = self.file.rename(self.file.with_suffix(".larger"))
        self._halvings[case] += 1
        self._clear()
        for passage, cases in _read(larger):
            self._add(passage, cases)
        larger.unlink()

    def read(self, share: float = 1.0) -> Iterator[str]:
        """The training text in the file, in the order of the text. Of a ``share`` less than 1, so
        many of its passages, evenly spaced; long ones are divided first."""
        owed = 0.0
        for passage, cases in _read(self.file):
            if not cases & self._case:
                continue
            for part in [passage] if share >= 1 - 1e-9 else in_parts(passage):
                owed += share
                if owed >= 1 - 1e-9:  # if all passages are wanted, the last one is too
                    owed -= 1
                    yield part


def in_parts(passage: str) -> Iterator[str]:
    """``passage`` in parts of at most ``LINE`` bytes, cut at spaces where it has some."""
    begin, most = 0, LINE // 4  # a character has at most four bytes
    while (rest := len(passage) - begin) > LINE or (
        rest > most and len(passage[begin:].encode()) > LINE
    ):
        space = passage.rfind(" ", begin + 1, begin + most)
        end = space if space > 0 else begin + most
        yield passage[begin:end]
        begin = end
    yield passage[begin:]


def _read(file: Path) -> Iterator[tuple[str, int]]:
    """Each passage with its cases."""
    with file.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield line[1:].removesuffix("\n"), int(line[0])


@contextlib.contextmanager
def spooled(source: Source, folder: Path, most: int) -> Iterator[Iterator[str]]:
    """The passages of the training text of ``source``, which lie under ``folder`` meanwhile: of
    about ``most`` bytes, if it has more."""
    with scratch_folder(folder / "text") as scratch:
        spool = Spool(source, scratch / "text", 2 * most)
        spool.fill()
        yield spool.read(min(1.0, most / spool.bytes))
