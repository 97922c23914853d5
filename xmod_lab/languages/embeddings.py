"""How the embedding table of an added language begins, given the base's table and both tokenizers.

Rows are matched by piece and moved by token id; the base's table is read before anything is written, and never written
itself. Rows of the special pieces (``<s>``, ``</s>``, ``<mask>`` ...) are always the base's: the frozen body knows them;
that of the padding is zero. The methods are in :mod:`xmod_lab.languages.initialisers`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError, nearest
from xmod_lab.languages.initialisers import BLANK, METHODS, Material, ordinary_pieces
from xmod_lab.model import XmodLanguageModel, seeded_generator

_SPECIALS = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")


@dataclass(frozen=True)
class InitReport:
    """How many rows were ``copied`` from the base, how many ``derived`` from rows of it, out of ``pieces``; ``overlap``
    and ``coverage`` are the shares of the text's pieces that are copied, and that are copied or derived."""

    method: str
    pieces: int
    copied: int
    derived: int
    overlap: float
    coverage: float

    @property
    def drawn(self) -> int:
        return self.pieces - self.copied - self.derived


def initialise_vocabulary(
    model: XmodLanguageModel,
    code: str,
    old: PreTrainedTokenizerBase,
    new: PreTrainedTokenizerBase,
    *,
    method: str,
    piece_counts: np.ndarray,
    rows: Callable[[], np.ndarray],
    seed: int = 0,
) -> InitReport:
    """Fill the table and output bias of ``code`` in place; the outcome depends on the arguments alone.

    The output bias begins at the log frequency of each piece in the text, which is what an untrained output layer would
    learn first.

    Args:
        method: a name in :data:`xmod_lab.languages.initialisers.METHODS`.
        piece_counts: (V,) how often each new piece occurs in the language's training text.
        rows: gives (R, T) piece ids of that text, for the method that reads it.
    Raises:
        UserError: the new tokenizer lacks a special piece of the base's, or ``method`` is unknown.
    """
    if method not in METHODS:
        raise UserError(
            f"embedding_init is '{method}'; allowed are {', '.join(METHODS)}.{nearest(method, METHODS)}"
        )
    base = model.get_input_embeddings().weight.detach().float().cpu()  # (O, D), only read
    specials, pad = special_pairs(old, new), model.config.pad_token_id
    shared = {} if method in BLANK else shared_pieces(old, new)
    copied = {**shared, **specials}
    generator = seeded_generator(seed, code, "embedding_init", method)
    used = base[torch.arange(len(base)) != pad]
    noise = torch.randn(len(new), base.shape[1], generator=generator)
    if method == "random":
        table = noise * model.config.initializer_range
    elif method == "mean":
        table = used.mean(0).repeat(len(new), 1)
    else:
        table = used.mean(0) + used.std(0) * noise
    derived, values = METHODS[method](Material(base, old, new, shared, rows, generator))
    table[derived] = values
    table[list(copied)] = base[list(copied.values())]
    table[pad] = 0
    vocabulary = model.base_model.embeddings.vocabularies[code]
    with torch.no_grad():
        vocabulary.word_embeddings.weight.copy_(table)
        vocabulary.bias.copy_(log_frequency(piece_counts))
    overlap, more = (
        float(piece_counts[ids].sum() / max(1, piece_counts.sum()))
        for ids in (list(copied), derived)
    )
    return InitReport(method, len(table), len(copied), len(derived), overlap, overlap + more)


def shared_pieces(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> dict[int, int]:
    """New id -> old id of every ordinary piece that both vocabularies spell alike, in the order of the new ids."""
    known = ordinary_pieces(old)
    return {i: known[piece] for piece, i in ordinary_pieces(new).items() if piece in known}


def special_pairs(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> dict[int, int]:
    """New id -> old id of the special pieces, by their role."""
    pairs = {}
    for role in _SPECIALS:
        name = getattr(old, role)
        if getattr(new, role) is None:
            raise UserError(
                f"the new tokenizer has no {role}; the base's is '{name}'. Train it with that piece"
            )
        pairs[new.convert_tokens_to_ids(getattr(new, role))] = old.convert_tokens_to_ids(name)
    return pairs


def log_frequency(piece_counts: np.ndarray) -> Tensor:
    """(V,) log of each piece's share of the text, every piece counted once more than it occurs."""
    smoothed = torch.from_numpy(piece_counts).double() + 1
    return (smoothed / smoothed.sum()).log().float()
