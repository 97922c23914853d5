"""Orthogonal matching pursuit: new rows are sparse sums of the base's rows.

Goddard & Fernandes Neto 2025 ("Training-Free Tokenizer Transplantation via Orthogonal Matching
Pursuit", arXiv 2506.06607) write a new token as a sparse sum of shared tokens in a space that has
both, and take the same sum of the shared tokens' rows in the base. Their space is the embedding
table of another model with the new vocabulary. A new language has no such model. Its space is made
here from its own text: positive mutual information of tokens and their neighbours, reduced to a few
dimensions (Levy & Goldberg 2014). Nothing but torch and NumPy is needed, and nothing is random.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

_WINDOW = 5  # neighbours on either side
_CONTEXTS = 1024  # the most frequent tokens count as neighbours
_SIZE = 128  # dimensions of the vectors
_SMOOTHING = 0.75  # exponent of the neighbours' frequencies (Levy et al. 2015)
_MIN_COUNT = 10  # occurrences that a token needs, as in focus
_ANCHORS = 16  # shared tokens in a sum; the authors take 64 in spaces of thousands of dimensions
_AT_ONCE = 512  # new tokens; memory is bounded by _AT_ONCE × shared tokens
_RIDGE = 1e-6  # keeps the least squares solvable if two anchors have one direction

# R rows of T tokens, V vocabulary, C contexts, N new tokens, K shared tokens, D model


def cooccurrence_vectors(
    rows: np.ndarray, size: int, *, ordinary: list[int]
) -> tuple[Tensor, np.ndarray]:
    """(V, at most 128) vectors of tokens that are used alike, and (V,) which tokens have one.

    Args:
        rows: (R, T) token ids. Ids that are not ``ordinary`` cut the text into sentences.
        size: V.
    """
    is_word = np.zeros(size, dtype=bool)
    is_word[ordinary] = True
    counts = np.bincount(rows.ravel(), minlength=size) * is_word
    known = counts >= _MIN_COUNT
    vectors = torch.zeros(size, _SIZE)
    frequent = np.argsort(-counts, kind="stable")[:_CONTEXTS]
    frequent = frequent[known[frequent]]
    if not len(frequent):
        return vectors, known
    place = np.full(size, -1)  # of a token among those that are known
    place[known] = np.arange(known.sum())
    context = np.full(size, -1)
    context[frequent] = np.arange(len(frequent))
    table = np.zeros(int(known.sum()) * len(frequent), dtype=np.float32)
    for token, other in _neighbours(rows, is_word):
        both = (place[token] >= 0) & (context[other] >= 0)
        keys, found = np.unique(
            place[token[both]] * len(frequent) + context[other[both]], return_counts=True
        )
        table[keys] += found
    joint = torch.from_numpy(table).view(-1, len(frequent)).double()  # (known, C)
    of_token, of_context = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True) ** _SMOOTHING
    expected = of_token * (of_context / of_context.sum())
    informative = (joint / expected.clamp(min=1e-12)).clamp(min=1).log()
    values, directions = torch.linalg.eigh(informative.T @ informative)
    values, directions = values[-_SIZE:].clamp(min=1e-12), directions[:, -_SIZE:]
    reduced = informative @ directions * values**-0.25  # U · sqrt(S)
    vectors[torch.from_numpy(known), : reduced.shape[1]] = reduced.float()
    return vectors, known


def _neighbours(rows: np.ndarray, is_word: np.ndarray):
    """Pairs of arrays: tokens, and a neighbour of each, in both directions."""
    words = is_word[rows]
    sentence = np.cumsum(~words, axis=1)  # changes at everything that is no ordinary token
    for distance in range(1, min(_WINDOW, rows.shape[1] - 1) + 1):
        near = words[:, distance:] & words[:, :-distance]
        near &= sentence[:, distance:] == sentence[:, :-distance]
        left, right = rows[:, :-distance][near], rows[:, distance:][near]
        yield left, right
        yield right, left


def pursue(wanted: Tensor, anchors: Tensor, donors: Tensor) -> Tensor:
    """(N, D) for each new token a sum of at most 16 rows of ``donors``.

    Each step takes the anchor whose direction the rest points to most, and then fits the weights of
    all anchors taken so far by least squares.

    Args:
        wanted: (N, size) vectors of the new tokens.
        anchors: (K, size) vectors of the shared tokens; their lengths do not count.
        donors: (K, D) rows of the shared tokens in the base's table.
    """
    directions = normalize(anchors.double(), dim=1)
    return torch.cat(
        [_pursue(part, directions, donors) for part in wanted.double().split(_AT_ONCE)]
    )


def _pursue(wanted: Tensor, directions: Tensor, donors: Tensor) -> Tensor:
    target = normalize(wanted, dim=1)
    rest, taken = target, torch.empty(len(target), 0, dtype=torch.long)
    weights = target.new_zeros(len(target), 0)
    for _ in range(min(_ANCHORS, len(directions))):
        likeness = (rest @ directions.T).abs().scatter(1, taken, -1.0)
        taken = torch.cat([taken, likeness.argmax(1, keepdim=True)], dim=1)
        chosen = directions[taken]  # (n, taken, size)
        gram = chosen @ chosen.mT + _RIDGE * torch.eye(taken.shape[1], dtype=target.dtype)
        weights = torch.linalg.solve(gram, (chosen @ target[..., None]).squeeze(-1))
        rest = target - (weights[:, None] @ chosen).squeeze(1)
    return (weights[..., None].to(donors.dtype) * donors[taken]).sum(1)
