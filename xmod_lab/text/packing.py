"""Passages into rows: each passage whole, between ``<s>`` and ``</s>``, in the open row it fills
best.

This is best fit (Johnson et al. 1974) over a bounded number of open rows: memory is bounded, and
only the lengths of the passages are read, once. Of natural text 1 to 3 % of the positions stay
empty, see ``padding`` in the table of the prepared text.

A passage longer than a row is cut into parts. Each part begins with ``<s>``; all but the last fill
their row, and only the last ends with ``</s>``. So a passage and its end can be read back from the
rows, and a code for the rows is a code for the text.

A part is one number of 64 bits: where it begins in the stream of tokens, how many tokens it has,
and whether it ends its passage, see :func:`fields_of`.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

_OPEN = 256  # open rows; with more of them the padding changes by less than a tenth
_SHORTEST = 3  # positions of a passage with one token
_BITS = 20  # of the tokens of a part: data.row_length is at most a million

# P passages, N parts


class Row(NamedTuple):
    """``bytes``: UTF-8 bytes of the passages that end in the row; ``empty``: its free positions."""

    parts: list[int]
    bytes: int
    empty: int


class Parts(NamedTuple):
    """Parts (N,) of passages, the positions that each takes, and the bytes of the passage that ends
    in it. ``cut``: how many passages have several parts."""

    numbers: np.ndarray
    positions: np.ndarray
    bytes: np.ndarray
    cut: int


def parts_of(starts: np.ndarray, tokens: np.ndarray, sizes: np.ndarray, length: int) -> Parts:
    """Passages between ``<s>`` and ``</s>``, in parts if they are longer than ``length``.

    Args:
        starts: (P,) where each passage begins in the stream.
        tokens: (P,) its tokens; ``sizes``: (P,) its UTF-8 bytes.
    """
    before = np.maximum(0, -(-(tokens - (length - 2)) // (length - 1)))  # parts before the last
    if not before.any():
        return Parts(_numbers(starts, tokens, 1), tokens + 2, sizes, 0)
    passage = np.repeat(np.arange(len(tokens)), before + 1)
    ends = np.cumsum(before + 1)
    place = np.arange(len(passage)) - (ends - before - 1)[passage]  # of a part in its passage
    last = place == before[passage]
    done = place * (length - 1)
    held = np.where(last, tokens[passage] - done, length - 1)
    return Parts(
        _numbers(starts[passage] + done, held, last),
        held + 1 + last,
        np.where(last, sizes[passage], 0),
        int(np.count_nonzero(before)),
    )


def _numbers(starts: np.ndarray, tokens: np.ndarray, last: np.ndarray | int) -> np.ndarray:
    return (starts.astype(np.int64) << _BITS + 1) | (tokens << 1) | last


def fields_of(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) each: where the parts begin in the stream, their tokens, and 1 where a passage ends."""
    return parts >> _BITS + 1, parts >> 1 & (1 << _BITS) - 1, parts & 1


def best_fit(
    parts: Iterable[tuple[int, int, int]], length: int, *, open_rows: int = _OPEN
) -> Iterator[Row]:
    """Rows in the order in which they are closed. The same parts in the same order give the same
    rows.

    Args:
        parts: (number, positions, bytes) of what stays together, at most ``length`` positions each.
        open_rows: how many rows may be open; if there are more, the fullest is closed.
    """
    # free positions -> open rows; a row is its bytes, and then its parts
    by_room: dict[int, list[list[int]]] = {}
    # bit r of rooms: some open row has r free positions; count: open rows
    rooms = count = 0

    def fullest() -> Row:
        nonlocal rooms, count
        room = _lowest(rooms)
        size, *held = by_room[room].pop()
        count -= 1
        if not by_room[room]:
            rooms ^= 1 << room
        return Row(held, size, room)

    for number, positions, size in parts:
        if fitting := rooms >> positions:
            room = positions + _lowest(fitting)
            rows = by_room[room]
            row = rows.pop()
            count -= 1
            if not rows:
                rooms ^= 1 << room
        else:
            row, room = [0], length
        row.append(number)
        row[0] += size
        room -= positions
        if room < _SHORTEST:
            yield Row(row[1:], row[0], room)
            continue
        by_room.setdefault(room, []).append(row)
        rooms |= 1 << room
        count += 1
        if count > open_rows:
            yield fullest()
    while rooms:
        yield fullest()


def _lowest(bits: int) -> int:
    """Number of the lowest bit that is set."""
    return (bits & -bits).bit_length() - 1
