"""FOCUS (Dobler & de Melo, EMNLP 2023): new rows as sparse mixtures of rows that the base has, with no other language
resource than the new text.

fastText vectors are trained on the text as the new tokenizer cuts it, so that all its pieces, shared or not, lie in one
space. A piece that is not shared gets the convex combination of the shared pieces' rows whose weights are the sparsemax of
the cosines between its vector and theirs (section 3 of the paper).
"""

import logging
import zlib

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)
_MIN_COUNT = 10  # how often a piece has to occur, as in the authors' code
# the rest of its settings, those that fastText has by default included: CBOW, which is nearer to masked modelling than skip-gram
_SETTINGS = {
    "sg": 0,
    "vector_size": 100,
    "negative": 10,
    "epochs": 3,
    "alpha": 0.05,
    "sample": 1e-4,
    "window": 5,
    "min_n": 3,
    "max_n": 6,
}
_BUCKETS = 2**17  # of letter groups; fastText's 2 million are for words, and would take 800 MB
_AT_ONCE = 1024  # new pieces, so that memory is bounded by _AT_ONCE × shared pieces

# R rows of T pieces, N new pieces, K shared pieces, D model


def auxiliary_vectors(
    rows: np.ndarray, names: dict[int, str], *, seed: int
) -> dict[int, np.ndarray]:
    """Id -> fastText vector of every piece in ``names`` that is frequent enough in ``rows`` (R, T); the same in every
    process.

    Other ids, the ends of passages among them, cut the text into sentences.
    """
    from gensim.models import FastText  # an optional extra

    logging.getLogger("gensim").setLevel(logging.ERROR)
    sentences = _sentences(rows, names)
    counts = np.bincount(rows.ravel(), minlength=max(names, default=0) + 1)
    frequent = [i for i in names if counts[i] >= _MIN_COUNT]
    if not frequent:
        return {}
    log.info(
        "focus: before the first step, vectors are trained on %s pieces of the training text, in %d passes; no other method "
        "reads it",
        f"{sum(map(len, sentences)):,}",
        _SETTINGS["epochs"],
    )
    model = FastText(
        sentences,
        **_SETTINGS,
        min_count=_MIN_COUNT,
        bucket=_BUCKETS,
        seed=seed,
        workers=1,  # several would race
        hashfxn=_hash,
    )
    return {i: model.wv[names[i]] for i in frequent}


def _hash(text: str) -> int:
    """Python's own differs from process to process."""
    return zlib.crc32(text.encode())


def _sentences(rows: np.ndarray, names: dict[int, str]) -> list[list[str]]:
    sentences: list[list[str]] = []
    for row in rows.tolist():
        sentences.append([])
        for piece in row:
            if piece in names:
                sentences[-1].append(names[piece])
            elif sentences[-1]:
                sentences.append([])
    return [sentence for sentence in sentences if sentence]


def mixtures(wanted: np.ndarray, known: np.ndarray, donors: Tensor) -> Tensor:
    """(N, D) convex combinations of ``donors`` (K, D), for vectors ``wanted`` (N, size) and ``known`` (K, size)."""
    a, b = (
        torch.nn.functional.normalize(torch.from_numpy(v).float(), dim=1) for v in (wanted, known)
    )
    return torch.cat([sparsemax(part @ b.T) @ donors for part in a.split(_AT_ONCE)])


def sparsemax(z: Tensor) -> Tensor:
    """The nearest point to each row of ``z`` (N, K) on the probability simplex (Martins & Astudillo 2016, algorithm 1)."""
    ordered = z.sort(1, descending=True).values
    excess = ordered.cumsum(1) - 1
    support = (ordered * torch.arange(1, z.shape[1] + 1) > excess).sum(1, keepdim=True)
    threshold = excess.gather(1, support - 1) / support
    return (z - threshold).clamp(min=0)
