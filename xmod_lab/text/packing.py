"""Passages into rows: each passage whole, between ``<s>`` and ``</s>``, in the open row it fills
best.

This is best fit (Johnson et al. 1974) over a bounded number of open rows: memory is bounded, and
the passages are read once. Of natural text 1 to 3 % of the positions stay empty, see ``padding``
in the table of the prepared text.

A passage longer than a row is cut into parts. Each part begins with ``<s>``; all but the last fill
their row, and only the last ends with ``</s>``. So a passage and its end can be read back from the
rows, and a code for the rows is a code for the text.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

_OPEN = 256  # open rows; with more of them the padding changes by less than a tenth
_SHORTEST = 3  # positions of a passage with one token


@dataclass
class PackedRow:
    """``ids``, without padding; ``bytes``: UTF-8 bytes of the passages that end in the row."""

    ids: list[int] = field(default_factory=list)
    bytes: int = 0

    def padded(self, length: int, pad_id: int) -> np.ndarray:
        """(``length``,) int32 ids."""
        row = np.full(length, pad_id, dtype=np.int32)
        row[: len(self.ids)] = self.ids
        return row


def parts_of_passage(ids: list[int], length: int, bos_id: int, eos_id: int) -> list[list[int]]:
    """A passage between ``<s>`` and ``</s>``, in parts if it is longer than ``length``, see
    above."""
    parts, start = [], 0
    while len(ids) - start > length - 2:
        parts.append([bos_id, *ids[start : start + length - 1]])
        start += length - 1
    return [*parts, [bos_id, *ids[start:], eos_id]]


def best_fit(
    parts: Iterable[tuple[list[int], int]], length: int, *, open_rows: int = _OPEN
) -> Iterator[PackedRow]:
    """Rows of at most ``length`` ids, in the order in which they are closed. The same parts in the
    same order give the same rows.

    Args:
        parts: (ids, bytes) of what stays together, at most ``length`` ids each.
        open_rows: how many rows may be open; if there are more, the fullest is closed.
    """
    by_room: dict[int, list[PackedRow]] = {}  # free positions -> open rows
    # bit r of rooms: some open row has r free positions; count: open rows
    rooms = count = 0

    def take(room: int) -> PackedRow:
        nonlocal rooms, count
        row = by_room[room].pop()
        count -= 1
        if not by_room[room]:
            rooms ^= 1 << room
        return row

    for ids, size in parts:
        fitting = rooms >> len(ids)
        room = len(ids) + _lowest(fitting) if fitting else length
        row = take(room) if fitting else PackedRow()
        row.ids += ids
        row.bytes += size
        room -= len(ids)
        if room < _SHORTEST:
            yield row
            continue
        by_room.setdefault(room, []).append(row)
        rooms |= 1 << room
        count += 1
        if count > open_rows:
            yield take(_lowest(rooms))
    while rooms:
        yield take(_lowest(rooms))


def _lowest(bits: int) -> int:
    """Number of the lowest bit that is set."""
    return (bits & -bits).bit_length() - 1
