"""FOCUS (Dobler & de Melo, EMNLP 2023): new rows are sparse mixtures of the base's rows.

The new text is the only language resource. fastText vectors are trained on it, tokenised by the
new tokenizer. So the vectors of all new tokens, shared or not, lie in one space. A token that is
not shared gets a convex combination of the shared tokens' rows. Its weights are the sparsemax of
the cosines between its vector and theirs (section 3 of the paper).
"""

import logging
import zlib

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)
_MIN_COUNT = 10  # occurrences that a token needs, as in the authors' code
# The other settings of fastText, defaults included. CBOW is closer to masked modelling than
# skip-gram.
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
_BUCKETS = 2**17  # of character n-grams; the default of 2 million would take 800 MB
_AT_ONCE = 1024  # new tokens; memory is bounded by _AT_ONCE × shared tokens

# R rows of T tokens, N new tokens, K shared tokens, D model


def auxiliary_vectors(
    rows: np.ndarray, names: dict[int, str], *, seed: int
) -> dict[int, np.ndarray]:
    """Id -> fastText vector, for every token that is frequent enough in ``rows``.

    The vectors are the same in every process.

    Args:
        rows: (R, T) token ids. Ids that are not in ``names``, such as the ends of documents, cut
            the text into sentences.
        names: id -> spelling of the tokens.
    """
    from gensim.models import FastText  # an optional extra

    logging.getLogger("gensim").setLevel(logging.ERROR)
    sentences = _sentences(rows, names)
    counts = np.bincount(rows.ravel(), minlength=max(names, default=0) + 1)
    frequent = [i for i in names if counts[i] >= _MIN_COUNT]
    if not frequent:
        return {}
    log.info(
        "focus: before the first step, vectors are trained on %s tokens of the training text, "
        "in %d passes; no other method reads it",
        f"{sum(map(len, sentences)):,}",
        _SETTINGS["epochs"],
    )
    model = FastText(
        sentences,
        **_SETTINGS,
        min_count=_MIN_COUNT,
        bucket=_BUCKETS,
        seed=seed,
        workers=1,  # with several workers the result varies
        hashfxn=lambda text: zlib.crc32(text.encode()),  # Python's hash differs per process
    )
    return {i: model.wv[names[i]] for i in frequent}


def _sentences(rows: np.ndarray, names: dict[int, str]) -> list[list[str]]:
    sentences: list[list[str]] = []
    for row in rows.tolist():
        sentences.append([])
        for token in row:
            if token in names:
                sentences[-1].append(names[token])
            elif sentences[-1]:
                sentences.append([])
    return [sentence for sentence in sentences if sentence]


def mixtures(wanted: np.ndarray, known: np.ndarray, donors: Tensor) -> Tensor:
    """(N, D) convex combinations of the rows ``donors``.

    Args:
        wanted: (N, size) vectors of the new tokens.
        known: (K, size) vectors of the shared tokens.
        donors: (K, D) rows of the shared tokens in the base's table.
    """
    a, b = (
        torch.nn.functional.normalize(torch.from_numpy(v).float(), dim=1) for v in (wanted, known)
    )
    return torch.cat([sparsemax(part @ b.T) @ donors for part in a.split(_AT_ONCE)])


def sparsemax(z: Tensor) -> Tensor:
    """(N, K) the point of the probability simplex that is nearest to each row of ``z`` (N, K).

    Martins & Astudillo 2016, algorithm 1.
    """
    ordered = z.sort(1, descending=True).values
    excess = ordered.cumsum(1) - 1
    support = (ordered * torch.arange(1, z.shape[1] + 1) > excess).sum(1, keepdim=True)
    threshold = excess.gather(1, support - 1) / support
    return (z - threshold).clamp(min=0)
