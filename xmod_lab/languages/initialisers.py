"""Methods that initialise the rows of a new embedding table.

A method sees the base's table and both tokenizers. It returns the ids of the new tokens that it
has rows for, and the rows. It only reads the base's table. All other rows are drawn from
N(mean, sd) of the base's rows, per dimension. The methods, by name:

    random         no rows from the base: N(0, initializer_range)
    mean           the base's mean, for every token
    overlap        tokens that both vocabularies spell alike keep their rows
                   (UNKs Everywhere, Pfeiffer et al. 2021)
    overlap_fuzzy  also tokens that differ in case, accents or the word-start mark only
    subword_mean   else: the mean of the old tokens that spell the new one
    focus          else: a mixture of the rows that were kept (FOCUS, Dobler & de Melo 2023).
                   It needs gensim, and reads the training text three times, before the first step
    script_mean    else: drawn from N(mean, covariance) of the base's tokens in the same script
    omp            else: a sparse sum of the rows that were kept, by orthogonal matching pursuit
                   (Goddard & Fernandes Neto 2025). It reads the training text once

All methods from ``overlap`` on first keep the rows of the tokens that are spelt alike. Tokens of
all kinds of vocabularies are compared in one spelling, see :mod:`xmod_lab.text.spelling`.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from fontTools.unicodedata import script
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xmod_lab.choices import EMBEDDING_INITS, check_names
from xmod_lab.languages.focus import auxiliary_vectors, mixtures
from xmod_lab.languages.pursuit import cooccurrence_vectors, pursue
from xmod_lab.text.spelling import WORD_START, ordinary_tokens, parts_of

_NO_SCRIPT = ("Zyyy", "Zinh", "Zzzz")  # common to all scripts, inherited, unknown

# V tokens of the new vocabulary, O of the old one, D model


@dataclass(frozen=True)
class InitInputs:
    """What a method may read.

    Args:
        base: (O, D) the base's table in float32 on the CPU.
        old, new: the tokenizer of the base, and that of the new language.
        shared: new id -> old id of the tokens that both vocabularies spell alike, without special
            tokens.
        rows: returns (R, T) token ids of the language's training text; for methods that need text.
        generator: the only source of random numbers.
    """

    base: Tensor
    old: PreTrainedTokenizerBase
    new: PreTrainedTokenizerBase
    shared: dict[int, int]
    rows: Callable[[], np.ndarray]
    generator: torch.Generator

    def old_tokens(self) -> dict[str, int]:
        """Spelling -> id of the base's ordinary tokens, in the order of their ids."""
        return ordinary_tokens(self.old)

    def new_tokens(self) -> dict[int, str]:
        """Id -> spelling of the new ordinary tokens that are not shared."""
        return {i: token for token, i in ordinary_tokens(self.new).items() if i not in self.shared}


Rows = tuple[list[int], Tensor]  # ids of new tokens (n), their rows (n, D)


def no_rows(m: InitInputs) -> Rows:
    """Nothing is derived."""
    return [], m.base.new_empty(0, m.base.shape[1])


def overlap_fuzzy(m: InitInputs) -> Rows:
    """The row of the old token with the same letters.

    If there are several, the least different one: the word-start mark counts most, then accents,
    then case, then the lower id.
    """
    alike = defaultdict(list)
    for token, old_id in m.old_tokens().items():
        alike[letters(token)].append((token, old_id))
    alike.pop("", None)  # tokens without letters: a word-start mark or an accent alone
    found = {}
    for new_id, token in m.new_tokens().items():
        found[new_id] = min(
            ((_differences(token, other), i) for other, i in alike[letters(token)]), default=None
        )
    chosen = {new_id: best[1] for new_id, best in found.items() if best}
    return list(chosen), m.base[list(chosen.values())]


def letters(token: str) -> str:
    """``token`` without word-start mark, accents and case: ``▁Été`` -> ``ete``."""
    return _without_accents(token.removeprefix(WORD_START)).casefold()


def _without_accents(token: str) -> str:
    """Marks that belong to one script stay, e.g. the virama of Devanagari: they are part of the
    word."""
    return "".join(c for c in unicodedata.normalize("NFKD", token) if script(c) != "Zinh")


def _differences(one: str, other: str) -> tuple[bool, bool, bool]:
    """Whether two tokens with the same letters differ in the word-start mark, accents, case."""
    a, b = one.removeprefix(WORD_START), other.removeprefix(WORD_START)
    return (
        one.startswith(WORD_START) != other.startswith(WORD_START),
        a.casefold() != b.casefold(),
        a != b,
    )


def subword_mean(m: InitInputs) -> Rows:
    """The mean of the old tokens into which the old tokenizer splits the new token.

    A new token with letters that the old tokenizer does not know gets no row.
    """
    parts, unknown = parts_of(m.old), m.old.unk_token_id
    spelt = {}
    for new_id, token in m.new_tokens().items():
        ids = parts(token)
        if ids and unknown not in ids:
            spelt[new_id] = ids
    if not spelt:
        return no_rows(m)
    return list(spelt), torch.stack([m.base[ids].mean(0) for ids in spelt.values()])


def focus(m: InitInputs) -> Rows:
    """Sparse mixtures of the shared tokens' rows, weighted by the similarity of fastText vectors.

    The vectors are trained on the new text, see :mod:`xmod_lab.languages.focus`. A token that is
    too rare to have a vector gets no row.
    """
    names = {i: token for token, i in ordinary_tokens(m.new).items()}
    vectors = auxiliary_vectors(m.rows(), names, seed=m.generator.initial_seed() % 2**32)
    known = [i for i in m.shared if i in vectors]
    wanted = [i for i in m.new_tokens() if i in vectors]
    if not known or not wanted:
        return no_rows(m)
    donors = m.base[[m.shared[i] for i in known]]
    return wanted, mixtures(
        np.stack([vectors[i] for i in wanted]), np.stack([vectors[i] for i in known]), donors
    )


def script_mean(m: InitInputs) -> Rows:
    """Drawn from the normal distribution of the base's tokens in the script of the new token.

    A token in a script that the base does not have gets no row.
    """
    of_script = defaultdict(list)
    for token, old_id in m.old_tokens().items():
        of_script[script_of(token)].append(old_id)
    wanted = defaultdict(list)
    for new_id, token in m.new_tokens().items():
        wanted[script_of(token)].append(new_id)
    ids, rows = [], []
    for name in sorted(wanted.keys() & of_script.keys()):
        ids += wanted[name]
        rows.append(_normal(m.base[of_script[name]], len(wanted[name]), m.generator))
    return (ids, torch.cat(rows)) if ids else no_rows(m)


def script_of(token: str) -> str:
    """ISO 15924 code of the script of most characters of ``token``; at a tie, the first one.

    ``Zyyy`` (common) for signs and digits.
    """
    found = Counter(name for c in token if (name := script(c)) not in _NO_SCRIPT)
    return found.most_common(1)[0][0] if found else "Zyyy"


def _normal(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, D) drawn from N(mean, covariance) of ``rows`` (n, D); a single row is repeated."""
    rows = rows.double()
    centred = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
    # the symmetric root: it does not depend on the signs of the eigenvectors
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    noise = torch.randn(count, rows.shape[1], generator=generator, dtype=torch.float64)
    return (rows.mean(0) + noise @ root).float()


def omp(m: InitInputs) -> Rows:
    """Sparse sums of the shared tokens' rows, found by orthogonal matching pursuit.

    The sums are found between vectors of the new text, see :mod:`xmod_lab.languages.pursuit`. A
    token that is too rare to have a vector gets no row.
    """
    tokens = ordinary_tokens(m.new)
    vectors, known = cooccurrence_vectors(m.rows(), len(m.new), ordinary=list(tokens.values()))
    anchors = [i for i in m.shared if known[i]]
    wanted = [i for i in m.new_tokens() if known[i]]
    if not anchors or not wanted:
        return no_rows(m)
    donors = m.base[[m.shared[i] for i in anchors]]
    return wanted, pursue(vectors[wanted], vectors[anchors], donors)


METHODS: dict[str, Callable[[InitInputs], Rows]] = {
    "random": no_rows,
    "mean": no_rows,
    "overlap": no_rows,
    "overlap_fuzzy": overlap_fuzzy,
    "subword_mean": subword_mean,
    "focus": focus,
    "script_mean": script_mean,
    "omp": omp,
}
BLANK = ("random", "mean")  # copy the rows of special tokens only
check_names(METHODS, EMBEDDING_INITS, "EMBEDDING_INITS")
