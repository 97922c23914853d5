"""Likelihoods, piece by piece: of each row, and with every piece hidden alone (pseudo-log-likelihood, Salazar et al. 2020)."""

import numpy as np
import torch
from torch.nn.functional import cross_entropy, linear
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from xmod_lab.model import IGNORE, XmodLanguageModel
from xmod_lab.training.scoring import Score, Scorer, Targets

_LOGITS = 1 << 26  # at once: 256 MiB
_ROWS = 32  # whose copies are made at once

# R rows, T positions, C copies of rows, M labelled positions, V vocabulary


@torch.inference_mode()
def row_nats(model: XmodLanguageModel, targets: Targets) -> np.ndarray:
    """(R,) nats of the labelled pieces of each row, summed; in float32 and evaluation mode, on the model's device.

    The mean over all of them is :meth:`Targets.loss`, but for the last bits.
    """
    assert not model.training
    table = model.base_model.embeddings.table(model.config.languages[model.lang_id(targets.code)])
    weight, bias = model.output_matrix(table)
    total = np.zeros(len(targets.rows))
    with torch.autocast(model.device.type, enabled=False):
        for part, batch in targets.batches(model):
            labels = batch.pop("labels")
            if model.config.is_decoder:
                labels = torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORE)], dim=1)
            owners, places = (labels != IGNORE).nonzero(as_tuple=True)
            states = model.lm_head.transform(
                model.base_model(**batch, use_cache=False).last_hidden_state[owners, places]
            )  # (M, D)
            wanted = labels[owners, places]
            nats = [
                cross_entropy(linear(x, weight, bias).float(), y, reduction="none")
                for x, y in zip(states.split(_LOGITS // len(bias)), wanted.split(_LOGITS // len(bias)), strict=True)
            ]
            np.add.at(total[part], owners.cpu().numpy(), torch.cat(nats).double().cpu().numpy())
    return total


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


def one_at_a_time(rows: np.ndarray, tokenizer: PreTrainedTokenizerBase, *, by_passage: bool) -> np.ndarray:
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


def pseudo_likelihood(model: XmodLanguageModel, scorer: Scorer, tokenizer: PreTrainedTokenizerBase) -> Score:
    """Every known piece of the held-out text, each hidden alone; bits per byte as in :mod:`xmod_lab.training.scoring`."""
    part = one_at_a_time(scorer.rows, tokenizer, by_passage=scorer.layout.attention == "document")
    nats = 0.0
    starts = range(0, len(part), _ROWS)
    for start in tqdm(starts, f"pseudo-likelihood of {scorer.code}", leave=False, disable=None):
        rows = scorer.rows[start : start + _ROWS]
        owners, masked = hidden_once(rows, part[start : start + _ROWS], tokenizer.mask_token_id)
        if masked:
            nats += float(row_nats(model, Targets(scorer.code, rows[owners], masked, scorer.layout)).sum())
    pieces = int((part >= 0).sum())
    score = scorer.score_of(nats / pieces)
    return Score(score.loss, score.bpb, pieces)
