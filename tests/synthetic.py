"""Text of known entropy: words drawn one by one, all equally likely and equally long."""

import math
import random
import string


def words(count: int, length: int, seed: int = 1) -> list[str]:
    """So many different words of ``length`` letters."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        found["".join(draw.choices(string.ascii_lowercase, k=length))] = None
    return list(found)


def text(vocabulary: list[str], passages: int, size: int, seed: int) -> list[str]:
    """``passages`` of ``size`` words.

    Each word occurs (nearly) as often as any other, so no lucky guess costs less than the entropy.
    """
    draw, bag = random.Random(seed), []
    while len(bag) < passages * size:
        bag += draw.sample(vocabulary, len(vocabulary))
    bag = bag[: passages * size]
    draw.shuffle(bag)
    return [" ".join(bag[i : i + size]) for i in range(0, len(bag), size)]


def entropy(vocabulary: list[str], size: int) -> float:
    """Bits per byte of a passage of ``size`` words, spaces between them."""
    return size * math.log2(len(vocabulary)) / (size * (len(vocabulary[0]) + 1) - 1)
