"""The order of rows: a bijection of every pass, alike for every place, without a permutation."""

import numpy as np
import pytest

from xmod_lab.text import order as module
from xmod_lab.text.order import Order, Shuffle


@pytest.mark.parametrize("size", [1, 2, 3, 7, 49, 50, 65, 1000])
def test_a_shuffle_and_its_inverse_are_bijections(size):
    shuffle = Shuffle.of(size, 15, "en", 0)
    images = [shuffle[i] for i in range(size)]
    assert sorted(images) == list(range(size))
    assert [shuffle.place(i) for i in images] == list(range(size))


def test_every_row_is_as_likely_at_every_place_and_neighbours_part():
    """Over 4,000 keys: chi-square of (place, row), and of what two neighbouring places read."""
    size, keys = 11, 4000
    images = np.array([[Shuffle.of(size, 1, "en", k)[i] for i in range(size)] for k in range(keys)])
    for places in range(size):
        counts = np.bincount(images[:, places], minlength=size)
        assert ((counts - keys / size) ** 2 / (keys / size)).sum() < 33  # 10 degrees, p = 3e-4
    steps = np.bincount((images[:, 1] - images[:, 0]) % size, minlength=size)[1:]
    assert ((steps - keys / 10) ** 2 / (keys / 10)).sum() < 31  # 9 degrees


@pytest.mark.parametrize("size", [5, 8, 16, 17, 31, 100])
def test_a_pass_reads_every_row_once_in_blocks_of_neighbours(size, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)
    order, other, passes = Order(3, "en", size), Order(4, "en", size), []
    for number in range(3):
        rows = [order.row(number, place) for place in range(size)]
        assert sorted(rows) == list(range(size))
        runs = np.flatnonzero(np.diff(np.array(rows) // 8)) + 1  # where another block begins
        assert len(runs) == -(-size // 8) - 1
        for count in range(size + 1):
            blocks, rest = order.first(number, count)
            read = [i for block in blocks for i in range(block.start, block.stop)] + rest.tolist()
            assert sorted(read) == sorted(rows[:count]) and len(rest) < 8
        passes.append(rows)
    assert passes[0] != passes[1] or size < 5
    assert passes[0] != [other.row(0, place) for place in range(size)]
