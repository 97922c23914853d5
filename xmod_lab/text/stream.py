"""Text as a stream of tokens on the disk, memory-mapped, and the rows that are cut from it.

    <split>.tokens      ids of all passages, one after the other: 16 bits each if the vocabulary has
                        fewer than 65,536 tokens, else 32; no special tokens
    <split>.ends        (P,) int64: where each passage ends in it
    <split>.sizes       (P,) uint32: UTF-8 bytes of each passage
    <split>.documents   (D,) int64: how many passages end with each document

Rows of one length are a plan beside it, which is made from the lengths of the passages alone:

    rows-<length>/<split>.parts     (N,) int64: parts of passages in the order of the rows, see
                                    :mod:`xmod_lab.text.packing`
    rows-<length>/<split>.starts    (R + 1,) int64: where the parts of each row begin
    rows-<length>/<split>.bytes     (R + 1,) int64: bytes of the passages that end before each row
    rows-<length>/<split>.padding   (R + 1,) int64: empty positions before each row
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xmod_lab.text.packing import best_fit, fields_of, parts_of

FILES = {"ends": "<i8", "sizes": "<u4", "documents": "<i8"}
PLAN = {"parts": "<i8", "starts": "<i8", "bytes": "<i8", "padding": "<i8"}
_AT_ONCE = 1 << 18  # passages whose lengths are read at once
_CLOSED = 1 << 14  # rows that are written at once

# R rows, T positions of a row, P passages, N parts


def token_type(vocabulary: int) -> str:
    """The type of the ids of a vocabulary of so many tokens."""
    return "<u2" if vocabulary < 1 << 16 else "<u4"


def mapped(file: Path, dtype: str) -> np.ndarray:
    """A file of numbers, memory-mapped."""
    if file.stat().st_size == 0:  # cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(file, dtype=dtype, mode="r").view(np.ndarray)


def save_array(file: Path, array: np.ndarray) -> None:
    """Write a small array, which :func:`numpy.load` reads."""
    content = io.BytesIO()
    np.save(content, array)  # in memory: on a full disk NumPy's own writer loses the error number
    file.write_bytes(content.getbuffer())


class Specials(NamedTuple):
    """Ids that stand around passages and after them."""

    bos: int
    eos: int
    pad: int


@dataclass(frozen=True)
class Rows:
    """The rows of one split, cut when they are read.

    Args:
        stream: folder of the stream.
        length: T, positions of a row.
        dtype: of the ids.
    """

    stream: Path
    split: str
    length: int
    dtype: str
    specials: Specials
    # name of a file -> its numbers, as they lie in memory
    _views: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self._plan("starts")) - 1

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), T) int64 token ids."""
        rows, length = np.asarray(rows, dtype=np.int64), self.length
        starts = self._plan("starts")
        first, held = starts[rows], starts[rows + 1] - starts[rows]
        begin, tokens, ends = fields_of(self._plan("parts")[_ranges(first, held)])
        positions = tokens + 1 + ends
        before = np.cumsum(positions) - positions
        # the parts of the first row begin at 0, those of the next at T, ...
        row = np.repeat(np.arange(len(rows)), held)
        places = before - before[np.cumsum(held) - held][row] + row * length
        found = np.full(len(rows) * length, self.specials.pad, dtype=np.int64)
        found[places] = self.specials.bos
        found[_ranges(places + 1, tokens)] = self._stream("tokens")[_ranges(begin, tokens)]
        found[(places + positions - 1)[ends > 0]] = self.specials.eos
        return found.reshape(len(rows), length)

    @property
    def bytes(self) -> np.ndarray:
        """(R,) UTF-8 bytes of the passages that end in each row."""
        return np.diff(self._plan("bytes"))

    @property
    def padding(self) -> np.ndarray:
        """(R,) empty positions of each row."""
        return np.diff(self._plan("padding"))

    def total(self, name: str, blocks: list[slice], rows: np.ndarray) -> int:
        """The ``bytes`` or ``padding`` of blocks of rows and of single ``rows`` together."""
        before = self._plan(name)
        return int(
            sum(before[block.stop] - before[block.start] for block in blocks)
            + (before[rows + 1] - before[rows]).sum()
        )

    def _stream(self, name: str) -> np.ndarray:
        if name not in self._views:
            file = self.stream / f"{self.split}.{name}"
            self._views[name] = mapped(file, FILES.get(name, self.dtype))
        return self._views[name]

    def _plan(self, name: str) -> np.ndarray:
        if name not in self._views:
            file = self.stream / plan_name(self.length) / f"{self.split}.{name}"
            self._views[name] = mapped(file, PLAN[name])
        return self._views[name]

    def __getstate__(self) -> dict:
        """For a loader's worker that is not forked: without the views, which would be copied."""
        return {**vars(self), "_views": {}}


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers from each start on, so many as its count, one range after the other."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum())


def plan_name(length: int) -> str:
    """The folder of the rows of this length."""
    return f"rows-{length}"


@dataclass
class Plan:
    """The plan of the rows of one split while it is made. ``cut``: passages longer than a row."""

    stream: Path
    split: str
    length: int
    cut: int = 0

    @cached_property
    def ends(self) -> np.ndarray:
        """(P,) where the passages end in the stream."""
        return mapped(self.stream / f"{self.split}.ends", FILES["ends"])

    @cached_property
    def sizes(self) -> np.ndarray:
        """(P,) bytes of the passages."""
        return mapped(self.stream / f"{self.split}.sizes", FILES["sizes"])

    def write(self, folder: Path) -> dict[str, int]:
        """Write the files; returns the numbers of ``rows``, of ``padding`` and of passages
        ``cut``."""
        rows = best_fit(self._parts(), self.length)
        total = dict.fromkeys(("starts", "bytes", "padding"), 0)
        count = 0
        with (
            (folder / f"{self.split}.parts").open("wb") as parts,
            (folder / f"{self.split}.starts").open("wb") as starts,
            (folder / f"{self.split}.bytes").open("wb") as sizes,
            (folder / f"{self.split}.padding").open("wb") as padding,
        ):
            streams = {"starts": starts, "bytes": sizes, "padding": padding}
            for stream in streams.values():
                stream.write(np.zeros(1, "<i8"))
            while closed := list(islice(rows, _CLOSED)):
                parts.write(np.fromiter(chain.from_iterable(r.parts for r in closed), "<i8"))
                grown = {
                    "starts": [len(row.parts) for row in closed],
                    "bytes": [row.bytes for row in closed],
                    "padding": [row.empty for row in closed],
                }
                for name, stream in streams.items():
                    cumulative = total[name] + np.cumsum(grown[name], dtype="<i8")
                    stream.write(cumulative)
                    total[name] = int(cumulative[-1])
                count += len(closed)
        return {"rows": count, "padding": total["padding"], "cut": self.cut}

    def _parts(self) -> Iterator[tuple[int, int, int]]:
        for first in range(0, len(self.ends), _AT_ONCE):
            ends = self.ends[first : first + _AT_ONCE]
            start = self.ends[first - 1] if first else 0
            tokens = np.diff(ends, prepend=start)
            sizes = self.sizes[first : first + _AT_ONCE].astype(np.int64)
            found = parts_of(ends - tokens, tokens, sizes, self.length)
            self.cut += found.cut
            yield from zip(*(each.tolist() for each in found[:3]), strict=True)
