"""What a model fills in: held-out passages with one piece hidden and its likeliest pieces there, for people to look at.

    samples.json   code -> passages: {"before", "hidden", "after", "rank", "likeliest": [[piece, probability], ...]}

``rank`` is that of the hidden piece, from 1. A causal model sees what is before the piece alone. Nothing is random.
"""

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from xmod_lab.languages.initialisers import WORD_START
from xmod_lab.model import XmodLanguageModel
from xmod_lab.scoring.held_out import Scorer, on_device

SAMPLES = "samples.json"
_PASSAGES, _LIKELIEST = 3, 5  # of a language; pieces that are shown
_ROWS = 64  # of held-out text, in which passages are looked for
_SHORTEST, _AROUND = (
    5,
    60,
)  # pieces of a passage; characters on either side of the hidden piece that are kept


def filled(
    model: XmodLanguageModel,
    scorers: dict[str, Scorer],
    tokenizer: PreTrainedTokenizerBase,
    *,
    accelerator: str,
) -> dict[str, list[dict]]:
    """Samples of every language of ``scorers``, which share ``tokenizer``, as in samples.json; in evaluation mode."""
    was_training = model.training
    model.eval()
    with on_device(model, accelerator):
        found = {
            code: _samples(model, code, scorer.rows, tokenizer) for code, scorer in scorers.items()
        }
    model.train(was_training)
    return found


def _samples(
    model: XmodLanguageModel, code: str, rows: np.ndarray, tokenizer: PreTrainedTokenizerBase
) -> list[dict]:
    """``rows`` (R, T) of held-out text."""
    places = []
    for ids in _passages(rows[:_ROWS], tokenizer):
        place = _place(ids, tokenizer)
        if place is not None:
            places.append((ids, place))
    chosen = dict.fromkeys(i * len(places) // _PASSAGES for i in range(_PASSAGES)) if places else ()
    return [_sample(model, code, *places[i], tokenizer) for i in chosen]


def _passages(rows: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """Passages, of those that are cut the last parts, without special pieces around them."""
    stream = rows.ravel()
    ends = np.flatnonzero(stream == tokenizer.eos_token_id)
    starts = np.flatnonzero(stream == tokenizer.bos_token_id)
    starts = starts[
        np.searchsorted(starts, ends) - 1
    ]  # a part without an end lies before another start
    return [
        stream[start + 1 : end]
        for start, end in zip(starts, ends, strict=True)
        if _SHORTEST < end - start
    ]


def _place(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Which piece of a passage is hidden: in the middle of those that are a word of three letters or more, else of those with
    letters; ``None`` where there is none, or where the passage has a piece that the vocabulary cannot spell."""
    if np.isin(ids, tokenizer.all_special_ids).any():
        return None
    pieces = tokenizer.convert_ids_to_tokens(ids.tolist())
    starts = [piece.startswith(WORD_START) for piece in pieces] + [True]
    words = [piece.removeprefix(WORD_START) for piece in pieces]
    whole = [
        i
        for i, word in enumerate(words)
        if starts[i] and starts[i + 1] and len(word) >= 3 and word.isalpha()
    ]
    found = [i for i in whole if i] or [
        i for i, word in enumerate(words) if i and word.isalpha()
    ]  # not the first one
    return found[len(found) // 2] if found else None


@torch.inference_mode()
def _sample(
    model: XmodLanguageModel,
    code: str,
    ids: np.ndarray,
    place: int,
    tokenizer: PreTrainedTokenizerBase,
) -> dict:
    """``ids`` (S,) of which the one at ``place`` is hidden."""
    causal = model.config.is_decoder
    shown = [tokenizer.bos_token_id, *ids.tolist(), tokenizer.eos_token_id]
    shown = (
        shown[: place + 1]
        if causal
        else [*shown[: place + 1], tokenizer.mask_token_id, *shown[place + 2 :]]
    )
    with torch.autocast(model.device.type, enabled=False):
        logits = model(torch.tensor([shown], device=model.device), lang_ids=[code]).logits[
            0, -1 if causal else place + 1
        ]
    probabilities = logits.float().softmax(-1)
    best = probabilities.topk(_LIKELIEST)
    pieces = tokenizer.convert_ids_to_tokens(best.indices.tolist())
    hidden = int(ids[place])
    before, after = (
        tokenizer.decode(ids[:place].tolist()),
        tokenizer.decode(ids[place + 1 :].tolist()),
    )
    return {
        "before": before if len(before) <= _AROUND else "…" + before[-_AROUND:],
        "hidden": tokenizer.convert_ids_to_tokens(hidden),
        "after": after if len(after) <= _AROUND else after[:_AROUND] + "…",
        "rank": int((probabilities > probabilities[hidden]).sum()) + 1,
        "likeliest": [[p, round(v, 4)] for p, v in zip(pieces, best.values.tolist(), strict=True)],
    }
