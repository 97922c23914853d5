"""Likelihoods, piece by piece: of each row, and with every piece hidden alone (pseudo-log-likelihood, Salazar et al. 2020)."""

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from xmod_lab.model import IGNORE, XmodLanguageModel
from xmod_lab.scoring.held_out import Scorer, Targets

_ROWS = 32  # whose copies are made at once

# R rows, T positions, C copies of rows


def hidden_once(
    rows: np.ndarray, part: np.ndarray, mask_id: int
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Copies of ``rows`` (R, T), in which together every piece is hidden once: copy k of a row hides those whose ``part``
    (R, T) is k, and none where it is negative.

    Returns:
        (C,) the row that each is a copy of, and (inputs, labels) of each.
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
    """(R, T) the copy in which each ordinary piece is hidden, -1 for the others.

    ``by_passage``: pieces see their own passage alone, so that hiding one in each passage of a row at once is the same as
    hiding one at a time.
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
    """(R,) nats of every known piece of the held-out rows, each hidden alone; and (R,) how many there are. The pieces of a word see
    each other: the shorter they are, the less they cost, so that vocabularies do not compare by it."""
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
