"""Passages into rows: each whole, ``<s>`` before it and ``</s>`` behind it, in the open row that it fills best.

Best fit (Johnson et al. 1974) over rows that are filled side by side; their number is bounded, so memory is too, and the passages are
read once. Of natural text 1 to 3 % of the positions stay empty, see ``padding`` in the table of the prepared text.

A passage longer than a row is cut into parts, each of which begins with ``<s>`` and but for the last one fills its row; ``</s>`` stands
behind the last one alone. So the passage, and where it ends, can be read back from the rows: a code of the rows is one of the text.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

_OPEN = 256  # rows that are filled side by side; more leave as much empty, within a tenth
_SHORTEST = 3  # positions of a passage of one piece


@dataclass
class PackedRow:
    """``ids`` as far as the row is filled; ``bytes``: UTF-8 bytes of the passages that end in it."""

    ids: list[int] = field(default_factory=list)
    bytes: int = 0

    def padded(self, length: int, pad_id: int) -> np.ndarray:
        """(``length``,) int32."""
        row = np.full(length, pad_id, dtype=np.int32)
        row[: len(self.ids)] = self.ids
        return row


def parts_of_passage(ids: list[int], length: int, bos_id: int, eos_id: int) -> list[list[int]]:
    """A passage between ``<s>`` and ``</s>``; of one that is longer than a row of ``length`` the parts, see the head of this file."""
    parts, start = [], 0
    while len(ids) - start > length - 2:
        parts.append([bos_id, *ids[start : start + length - 1]])
        start += length - 1
    return [*parts, [bos_id, *ids[start:], eos_id]]


def best_fit(
    parts: Iterable[tuple[list[int], int]], length: int, *, open_rows: int = _OPEN
) -> Iterator[PackedRow]:
    """Rows of at most ``length`` ids, in the order in which they are closed; the same parts in the same order give the same rows.

    Args:
        parts: (ids, bytes) of what must stand together, none longer than ``length``.
        open_rows: how many may be unfinished; when there are more, the fullest is closed.
    """
    by_room: dict[int, list[PackedRow]] = {}  # positions that are left -> open rows
    rooms = count = (
        0  # bit r of rooms: there is an open row with r positions left; count: open rows
    )

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
