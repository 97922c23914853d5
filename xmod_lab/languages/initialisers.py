"""Methods by which the rows of a new embedding table begin, given the base's table and both tokenizers.

A method answers which of the pieces in question it has rows for, and which rows; it reads the base's table and writes
nothing. What it has no row for is drawn from N(mean, sd) of the base's rows, per dimension. By name:

    random         no rows from the base: N(0, initializer_range)
    mean           the base's mean, for every piece
    overlap        pieces that both vocabularies spell alike keep their rows (UNKs Everywhere, Pfeiffer et al. 2021)
    overlap_fuzzy  also those that differ in case, accents or the mark of a word's start alone
    subword_mean   else: the mean of the old pieces that spell the new one
    focus          else: a mixture of the rows that were kept (FOCUS, Dobler & de Melo 2023); needs gensim, and reads the
                   training text three times before the first step, which no other method does
    script_mean    else: drawn from N(mean, covariance) of the base's pieces in the same script

From ``overlap`` on all methods begin with the pieces that are spelt alike.
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

from xmod_lab.languages.focus import auxiliary_vectors, mixtures

WORD_START = "▁"
_NO_SCRIPT = ("Zyyy", "Zinh", "Zzzz")  # common to all scripts, inherited, unknown

# V pieces of the new vocabulary, O of the old one, D model


@dataclass(frozen=True)
class Material:
    """What a method may read.

    Args:
        base: (O, D) the base's table in float32 on the CPU.
        shared: new id -> old id of the pieces that both vocabularies spell alike, special pieces left out.
        rows: gives (R, T) piece ids of the language's training text; called by those that need text.
        generator: the only source of chance.
    """

    base: Tensor
    old: PreTrainedTokenizerBase
    new: PreTrainedTokenizerBase
    shared: dict[int, int]
    rows: Callable[[], np.ndarray]
    generator: torch.Generator

    def old_pieces(self) -> dict[str, int]:
        """Ordinary pieces of the base by spelling, in the order of their ids."""
        return ordinary_pieces(self.old)

    def new_pieces(self) -> dict[int, str]:
        """Ordinary pieces that are not shared, by id."""
        return {i: piece for piece, i in ordinary_pieces(self.new).items() if i not in self.shared}


Rows = tuple[list[int], Tensor]  # ids of new pieces (n), their rows (n, D)


def no_rows(m: Material) -> Rows:
    """Nothing is derived."""
    return [], m.base.new_empty(0, m.base.shape[1])


def overlap_fuzzy(m: Material) -> Rows:
    """The old piece of the same letters; of several the one that differs least: first in the mark of a word's start, then
    in accents, then in case, then the one with the lowest id."""
    alike = defaultdict(list)
    for piece, old_id in m.old_pieces().items():
        alike[letters(piece)].append((piece, old_id))
    alike.pop("", None)  # a mark or an accent alone is no letter
    found = {}
    for new_id, piece in m.new_pieces().items():
        found[new_id] = min(
            ((_differences(piece, other), i) for other, i in alike[letters(piece)]), default=None
        )
    chosen = {new_id: best[1] for new_id, best in found.items() if best}
    return list(chosen), m.base[list(chosen.values())]


def letters(piece: str) -> str:
    """``piece`` without the mark of a word's start, accents and case: ``▁Été`` -> ``ete``."""
    return _without_accents(piece.removeprefix(WORD_START)).casefold()


def _without_accents(piece: str) -> str:
    """Marks of one script alone, such as the vowel killers of India's, are no accents: they are parts of words."""
    return "".join(c for c in unicodedata.normalize("NFKD", piece) if script(c) != "Zinh")


def _differences(one: str, other: str) -> tuple[bool, bool, bool]:
    """Whether two pieces of the same letters differ in the mark, in accents, in case."""
    a, b = one.removeprefix(WORD_START), other.removeprefix(WORD_START)
    return (
        one.startswith(WORD_START) != other.startswith(WORD_START),
        a.casefold() != b.casefold(),
        a != b,
    )


def subword_mean(m: Material) -> Rows:
    """The mean of the old pieces that the old tokenizer's model cuts the new piece into; none where it does not know all of
    its letters."""
    model, unknown = m.old.backend_tokenizer.model, m.old.unk_token_id
    spelt = {}
    for new_id, piece in m.new_pieces().items():
        ids = [
            token.id for token in model.tokenize(piece)
        ]  # the model alone: no "▁" is put in front
        if ids and unknown not in ids:
            spelt[new_id] = ids
    if not spelt:
        return no_rows(m)
    return list(spelt), torch.stack([m.base[ids].mean(0) for ids in spelt.values()])


def focus(m: Material) -> Rows:
    """Sparse mixtures of the shared pieces' rows, by the likeness of vectors trained on the new text (see
    :mod:`xmod_lab.languages.focus`); none for pieces too rare to have such a vector."""
    names = {i: piece for piece, i in ordinary_pieces(m.new).items()}
    vectors = auxiliary_vectors(m.rows(), names, seed=m.generator.initial_seed() % 2**32)
    known = [i for i in m.shared if i in vectors]
    wanted = [i for i in m.new_pieces() if i in vectors]
    if not known or not wanted:
        return no_rows(m)
    donors = m.base[[m.shared[i] for i in known]]
    return wanted, mixtures(
        np.stack([vectors[i] for i in wanted]), np.stack([vectors[i] for i in known]), donors
    )


def script_mean(m: Material) -> Rows:
    """Drawn from the normal distribution of the base's pieces in the script of the new one; none where the base has none."""
    of_script = defaultdict(list)
    for piece, old_id in m.old_pieces().items():
        of_script[script_of(piece)].append(old_id)
    wanted = defaultdict(list)
    for new_id, piece in m.new_pieces().items():
        wanted[script_of(piece)].append(new_id)
    ids, rows = [], []
    for name in sorted(wanted.keys() & of_script.keys()):
        ids += wanted[name]
        rows.append(_normal(m.base[of_script[name]], len(wanted[name]), m.generator))
    return (ids, torch.cat(rows)) if ids else no_rows(m)


def script_of(piece: str) -> str:
    """ISO 15924 code of the script that most characters of ``piece`` belong to, the first of them if there are several;
    ``Zyyy`` (common) for signs and digits."""
    found = Counter(name for c in piece if (name := script(c)) not in _NO_SCRIPT)
    return found.most_common(1)[0][0] if found else "Zyyy"


def _normal(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, D) drawn from N(mean, covariance) of ``rows`` (n, D); of a single row, that row."""
    rows = rows.double()
    centred = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
    root = (
        vectors * values.clamp(min=0).sqrt() @ vectors.T
    )  # symmetric: whatever signs the eigenvectors come with
    noise = torch.randn(count, rows.shape[1], generator=generator, dtype=torch.float64)
    return (rows.mean(0) + noise @ root).float()


def ordinary_pieces(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Id by spelling of the pieces that are not special, in the order of their ids."""
    special = set(tokenizer.all_special_ids)
    return {
        piece: i
        for piece, i in sorted(tokenizer.get_vocab().items(), key=lambda p: p[1])
        if i not in special
    }


METHODS: dict[str, Callable[[Material], Rows]] = {
    "random": no_rows,
    "mean": no_rows,
    "overlap": no_rows,
    "overlap_fuzzy": overlap_fuzzy,
    "subword_mean": subword_mean,
    "focus": focus,
    "script_mean": script_mean,
}
BLANK = ("random", "mean")  # keep no row of the base but those of special subwords
