"""How the embedding table of an added language begins, given the base's table and both tokenizers.

Rows are matched by piece and moved by token id; the base's table is read before anything is written, and never written
itself. Rows of the special pieces (``<s>``, ``</s>``, ``<mask>`` ...) are always the base's: the frozen body knows them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError
from xmod_lab.model import XmodLanguageModel, seeded_generator

EMBEDDING_INITS = ("overlap", "mean", "random")
_SPECIALS = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")


@dataclass(frozen=True)
class InitReport:
    """``copied`` rows came from the base, ``drawn`` did not; ``coverage`` is the share of the text's pieces copied."""

    method: str
    pieces: int
    copied: int
    coverage: float

    @property
    def drawn(self) -> int:
        return self.pieces - self.copied


def initialise_vocabulary(
    model: XmodLanguageModel,
    code: str,
    old: PreTrainedTokenizerBase,
    new: PreTrainedTokenizerBase,
    *,
    method: str,
    piece_counts: np.ndarray,
    seed: int = 0,
) -> InitReport:
    """Fill the table and output bias of ``code`` in place.

    ``overlap``: rows of pieces that both vocabularies know are copied, the others drawn from N(mean, sd) of the base's
    rows, per dimension (UNKs Everywhere, Pfeiffer et al. 2021, lexical overlap). ``mean``: every row is the base's mean.
    ``random``: N(0, initializer_range). The output bias begins at the log frequency of each piece in the text, which
    is what an untrained output layer would learn first.

    Args:
        piece_counts: (V,) how often each new piece occurs in the language's training text.
    Raises:
        UserError: the new tokenizer lacks a special piece of the base's, or ``method`` is unknown.
    """
    if method not in EMBEDDING_INITS:
        raise UserError(f"embedding_init is '{method}'; allowed are {', '.join(EMBEDDING_INITS)}")
    base = model.get_input_embeddings().weight.detach()
    vocabulary = model.base_model.embeddings.vocabularies[code]
    table = torch.empty_like(vocabulary.word_embeddings.weight, device="cpu", dtype=torch.float32)
    used = base[[i for i in range(len(base)) if i != model.config.pad_token_id]].float().cpu()
    generator = seeded_generator(seed, code, "embedding_init", method)
    noise = torch.randn(table.shape, generator=generator)
    if method == "overlap":
        table.copy_(used.mean(0) + used.std(0) * noise)
    elif method == "mean":
        table.copy_(used.mean(0).expand_as(table))
    else:
        table.copy_(noise * model.config.initializer_range)
    pairs = special_pairs(old, new) | (shared_pieces(old, new) if method == "overlap" else {})
    table[list(pairs)] = base[list(pairs.values())].float().cpu()
    with torch.no_grad():
        vocabulary.word_embeddings.weight.copy_(table)
        vocabulary.word_embeddings.weight[model.config.pad_token_id] = 0
        vocabulary.bias.copy_(log_frequency(piece_counts))
    covered = piece_counts[list(pairs)].sum() / max(1, piece_counts.sum())
    return InitReport(method, len(table), len(pairs), float(covered))


def shared_pieces(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> dict[int, int]:
    """New id -> old id of every piece that both vocabularies spell alike, in the order of the new ids."""
    known = old.get_vocab()
    return {i: known[piece] for piece, i in sorted(new.get_vocab().items(), key=lambda item: item[1]) if piece in known}


def special_pairs(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> dict[int, int]:
    """New id -> old id of the special pieces, by their role."""
    pairs = {}
    for role in _SPECIALS:
        name = getattr(old, role)
        if getattr(new, role) is None:
            raise UserError(f"the new tokenizer has no {role}; the base's is '{name}'. Train it with that piece")
        pairs[new.convert_tokens_to_ids(getattr(new, role))] = old.convert_tokens_to_ids(name)
    return pairs


def log_frequency(piece_counts: np.ndarray) -> Tensor:
    """(V,) log of each piece's share of the text, every piece counted once more than it occurs."""
    smoothed = torch.from_numpy(piece_counts).double() + 1
    return (smoothed / smoothed.sum()).log().float()
