"""Pseudo-log-likelihood of rows: each token is masked alone (Salazar et al. 2020)."""

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from xmod_lab.labels import IGNORE
from xmod_lab.model import XmodLanguageModel
from xmod_lab.scoring.held_out import Scorer, Targets

_ROWS = 32  # copied at once

# R rows, T positions, C copies of rows


def hidden_once(
    rows: np.ndarray, part: np.ndarray, mask_id: int
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Copies of ``rows`` (R, T) that together mask every chosen token once.

    Args:
        part: (R, T) the copy of the row that masks the token; negative: no copy does.

    Returns:
        (C,) the row of each copy, and (inputs, labels), both (T,), of each copy.
    """
    owners, masked = [], []
    for number, (row, group) in enumerate(zip(rows, part, strict=True)):
        for k in range(group.max() + 1):
            chosen = group == k
            if chosen.any():
                owners.append(number)
                masked.append((np.where(chosen, mask_id, row), np.where(chosen, row, IGNORE)))
    return np.array(owners, dtype=int), masked


def one_at_a_time(
    rows: np.ndarray, tokenizer: PreTrainedTokenizerBase, *, by_passage: bool
) -> np.ndarray:
    """(R, T) the copy in which each ordinary token is masked, -1 for special tokens.

    ``by_passage``: tokens see their own passage alone. Then one token of each passage of a row can
    be masked in the same copy.
    """
    ordinary = ~np.isin(rows, tokenizer.all_special_ids)
    before = np.cumsum(ordinary, axis=1) - ordinary
    if by_passage:
        ends = rows == tokenizer.eos_token_id
        passage = np.cumsum(ends, axis=1) - ends
        starts = np.diff(passage, axis=1, prepend=-1) > 0
        before = before - np.maximum.accumulate(np.where(starts, before, 0), axis=1)
    return np.where(ordinary, before, -1)


def pseudo_likelihood(
    model: XmodLanguageModel, scorer: Scorer, tokenizer: PreTrainedTokenizerBase
) -> tuple[np.ndarray, np.ndarray]:
    """(R,) nats of all known tokens of the held-out rows, each masked alone, and (R,) their number.

    The tokens of a word see each other: the shorter they are, the less they cost. So vocabularies
    cannot be compared by it.
    """
    part = one_at_a_time(scorer.rows, tokenizer, by_passage=scorer.layout.attention == "document")
    nats = np.zeros(len(part))
    starts = range(0, len(part), _ROWS)
    for start in tqdm(starts, f"pseudo-likelihood of {scorer.code}", leave=False, disable=None):
        rows = scorer.rows[start : start + _ROWS]
        owners, masked = hidden_once(rows, part[start : start + _ROWS], tokenizer.mask_token_id)
        if masked:
            found = Targets(scorer.code, rows[owners], masked, scorer.layout).nats(model)
            np.add.at(nats, start + owners, found)
    return nats, (part >= 0).sum(1)
