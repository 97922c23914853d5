"""Initialises the embedding table of an added language from the base's table and both tokenizers.

Tokens are matched by spelling, and rows are copied by id. The base's table is only read. Special
tokens (``<s>``, ``</s>``, ``<mask>`` ...) always get the base's rows, because the frozen layers
know them. The row of the padding token is zero. The methods are in
:mod:`xmod_lab.languages.initialisers`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError, nearest
from xmod_lab.languages.initialisers import BLANK, METHODS, InitInputs
from xmod_lab.model import XmodLanguageModel, seeded_generator
from xmod_lab.text.spelling import ordinary_tokens

_SPECIALS = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")


@dataclass(frozen=True)
class InitReport:
    """How a table was initialised.

    Args:
        method: a name in :data:`xmod_lab.languages.initialisers.METHODS`.
        pieces: rows of the table.
        copied: rows that are copies of rows of the base.
        derived: rows that the method made from rows of the base.
        overlap: share of the text's tokens that have copied rows.
        coverage: share of the text's tokens that have copied or derived rows.
    """

    method: str
    pieces: int
    copied: int
    derived: int
    overlap: float
    coverage: float

    @property
    def drawn(self) -> int:
        """Rows that are neither copied nor derived."""
        return self.pieces - self.copied - self.derived


def initialise_vocabulary(
    model: XmodLanguageModel,
    code: str,
    old: PreTrainedTokenizerBase,
    new: PreTrainedTokenizerBase,
    *,
    method: str,
    token_counts: np.ndarray,
    rows: Callable[[], np.ndarray],
    seed: int = 0,
) -> InitReport:
    """Fill the table and the output bias of ``code`` in place. Equal arguments give equal results.

    The output bias is initialised with the log frequency of each token in the text. An untrained
    output layer would learn this first.

    Args:
        old, new: the base's tokenizer, and that of ``code``.
        method: a name in :data:`xmod_lab.languages.initialisers.METHODS`.
        token_counts: (V,) how often each new token occurs in the language's training text.
        rows: returns (R, T) token ids of that text; called if the method reads the text.
    Raises:
        UserError: ``method`` is unknown, or the new tokenizer lacks a special token of the base's.
    """
    if method not in METHODS:
        raise UserError(
            f"embedding_init is '{method}'; allowed are {', '.join(METHODS)}."
            f"{nearest(method, METHODS)}"
        )
    base = model.get_input_embeddings().weight.detach().float().cpu()  # (O, D)
    specials, pad = special_pairs(old, new), model.config.pad_token_id
    shared = {} if method in BLANK else shared_tokens(old, new)
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
    derived, values = METHODS[method](InitInputs(base, old, new, shared, rows, generator))
    if len(values) != len(derived):
        raise ValueError(
            f"embedding_init '{method}' returned {len(values):,} rows for {len(derived):,} ids"
        )
    table[derived] = values
    table[list(copied)] = base[list(copied.values())]
    table[pad] = 0
    vocabulary = model.base_model.embeddings.vocabularies[code]
    biases, first = log_frequency(token_counts), (model.config.extended or {}).get(code)
    with torch.no_grad():
        if first is None:
            vocabulary.word_embeddings.weight.copy_(table)
            vocabulary.bias.copy_(biases)
        else:  # the base's tokens keep their rows, and the new biases have the level of theirs
            theirs = model.lm_head.decoder.bias.detach().float().cpu()[:first]
            share = torch.from_numpy(token_counts[:first]).double() + 1e-9
            level = ((theirs - biases[:first]) * share).sum() / share.sum()
            vocabulary.new_embeddings.weight.copy_(table[first:])
            vocabulary.bias.copy_(biases[first:] + level)
    overlap, more = (
        float(token_counts[ids].sum() / max(1, token_counts.sum()))
        for ids in (list(copied), derived)
    )
    return InitReport(method, len(table), len(copied), len(derived), overlap, overlap + more)


def shared_tokens(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> dict[int, int]:
    """New id -> old id of every ordinary token that both vocabularies spell alike, in the order of
    the new ids."""
    known = ordinary_tokens(old)
    return {i: known[token] for token, i in ordinary_tokens(new).items() if token in known}


def special_pairs(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> dict[int, int]:
    """New id -> old id of the special tokens, by their role.

    Raises:
        UserError: the new tokenizer lacks one of them.
    """
    pairs = {}
    for role in _SPECIALS:
        name = getattr(old, role)
        if getattr(new, role) is None:
            raise UserError(
                f"train the new tokenizer with '{name}': it has no {role}, the base has this one"
            )
        pairs[new.convert_tokens_to_ids(getattr(new, role))] = old.convert_tokens_to_ids(name)
    return pairs


def log_frequency(token_counts: np.ndarray) -> Tensor:
    """(V,) log of each token's share of the text, with add-one smoothing."""
    smoothed = torch.from_numpy(token_counts).double() + 1
    return (smoothed / smoothed.sum()).log().float()
