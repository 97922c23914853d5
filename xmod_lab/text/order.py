"""The order in which a pass reads the rows of a language: a function of (seed, language, pass,
place), without a permutation in memory.

Rows are read in blocks of ``BLOCK`` neighbours, so that a disk can stream: the blocks are shuffled,
and so are the rows within each. A shuffle is a keyed bijection (a Feistel network over a rectangle
of numbers, with cycle walking; Black and Rogaway 2002).
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

BLOCK = 1 << 16  # rows; of 128 tokens, 16 MB
_ROUNDS = 6
_FACTOR, _MASK = 0xFF51AFD7ED558CCD, (1 << 64) - 1  # of MurmurHash3's finaliser


@dataclass(frozen=True)
class Shuffle:
    """A bijection of the numbers below ``size``. ``keys``: one 64-bit number a round."""

    size: int
    side: int  # numbers are pairs below it
    keys: tuple[int, ...]

    @classmethod
    def of(cls, size: int, *name: object) -> "Shuffle":
        """The shuffle of ``size`` numbers with this name."""
        digest = hashlib.blake2b("/".join(map(str, name)).encode(), digest_size=8 * _ROUNDS)
        keys = np.frombuffer(digest.digest(), dtype="<u8").tolist()
        return cls(size, math.isqrt(max(0, size - 1)) + 1, tuple(keys))

    def __getitem__(self, number: int) -> int:
        side = self.side
        while True:
            left, right = divmod(number, side)
            for key in self.keys:
                mixed = (right ^ key) * _FACTOR & _MASK
                mixed = (mixed ^ mixed >> 33) * _FACTOR & _MASK
                left, right = right, (left + (mixed >> 33)) % side
            number = left * side + right
            if number < self.size:
                return number

    def place(self, number: int) -> int:
        """The number that this bijection takes to ``number``."""
        side = self.side
        while True:
            left, right = divmod(number, side)
            for key in reversed(self.keys):
                mixed = (left ^ key) * _FACTOR & _MASK
                mixed = (mixed ^ mixed >> 33) * _FACTOR & _MASK
                left, right = (right - (mixed >> 33)) % side, left
            number = left * side + right
            if number < self.size:
                return number


class Order:
    """The orders of the ``size`` rows of language ``code``, one a pass."""

    def __init__(self, seed: int, code: str, size: int):
        self.name, self.size = (seed, code), size
        self.blocks = -(-size // BLOCK)
        self._empty = self.blocks * BLOCK - size  # rows that the last block lacks
        self._pass: tuple[int, Shuffle, int] = (-1, Shuffle.of(1), 0)
        self._block: tuple[int, int, Shuffle] = (-1, -1, Shuffle.of(1))

    def row(self, number: int, place: int) -> int:
        """The row that pass ``number`` reads at ``place``."""
        block, within = self._block_at(number, place)
        if self._block[:2] != (number, block):
            size = min(BLOCK, self.size - block * BLOCK)
            self._block = number, block, Shuffle.of(size, *self.name, number, block)
        return block * BLOCK + self._block[2][within]

    def first(self, number: int, rows: int) -> tuple[list[slice], np.ndarray]:
        """The first ``rows`` rows of pass ``number``: blocks that are read whole, and the rest."""
        whole, place = [], 0
        while place < rows:
            block, _ = self._block_at(number, place)
            start, end = block * BLOCK, min(self.size, (block + 1) * BLOCK)
            if place + end - start > rows:
                break
            whole.append(slice(start, end))
            place += end - start
        rest = [self.row(number, i) for i in range(place, rows)]
        return whole, np.array(rest, dtype=np.int64)

    def _block_at(self, number: int, place: int) -> tuple[int, int]:
        """The block that pass ``number`` reads at ``place``, and the place within it."""
        if self.blocks == 1:
            return 0, place
        if self._pass[0] != number:
            blocks = Shuffle.of(self.blocks, *self.name, number, "blocks")
            # the last block may be short, and stands anywhere
            self._pass = number, blocks, (blocks.place(self.blocks - 1) + 1) * BLOCK - self._empty
        _, blocks, end_of_short = self._pass
        if place >= end_of_short:
            place += self._empty
        return blocks[place // BLOCK], place % BLOCK
