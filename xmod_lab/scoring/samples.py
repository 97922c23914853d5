"""What a model fills in: held-out passages with one masked token, and its likeliest tokens there.

They are for people to look at. Nothing is random.

    samples.json   code -> passages: {"before", "hidden", "after", "rank",
                                      "likeliest": [[token, probability], ...]}

``rank`` is that of the masked token (``hidden``), from 1. A causal model sees only what is before.
"""

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from xmod_lab.model import XmodLanguageModel
from xmod_lab.scoring.held_out import Scorer, on_device
from xmod_lab.text.spelling import WORD_START, spellings

SAMPLES = "samples.json"
_PASSAGES, _LIKELIEST = 3, 5  # of a language; tokens that are shown
_ROWS = 64  # of held-out text, from which passages are taken
_SHORTEST = 5  # tokens of a passage
_AROUND = 60  # characters that are kept on either side of the masked token


def filled(
    model: XmodLanguageModel,
    scorers: dict[str, Scorer],
    tokenizer: PreTrainedTokenizerBase,
    *,
    accelerator: str,
) -> dict[str, list[dict]]:
    """Samples of every language of ``scorers``, which share ``tokenizer``, as in samples.json.

    The model is in evaluation mode meanwhile.
    """
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
    """Passages without the special tokens around them; of a passage that is cut, its last part."""
    stream = rows.ravel()
    ends = np.flatnonzero(stream == tokenizer.eos_token_id)
    starts = np.flatnonzero(stream == tokenizer.bos_token_id)
    # a part without an end lies before another start
    starts = starts[np.searchsorted(starts, ends) - 1]
    return [
        stream[start + 1 : end]
        for start, end in zip(starts, ends, strict=True)
        if _SHORTEST < end - start
    ]


def _place(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Which token of a passage is masked; ``None`` if no token fits, or if the passage has <unk>.

    The middle one of the tokens that are whole words of three letters or more, else of those that
    are only letters; never the first token.
    """
    if np.isin(ids, tokenizer.all_special_ids).any():
        return None
    tokens = spellings(tokenizer, ids.tolist())
    starts = [token.startswith(WORD_START) for token in tokens] + [True]
    words = [token.removeprefix(WORD_START) for token in tokens]
    whole = [
        i
        for i, word in enumerate(words)
        if starts[i] and starts[i + 1] and len(word) >= 3 and word.isalpha()
    ]
    found = [i for i in whole if i] or [i for i, word in enumerate(words) if i and word.isalpha()]
    return found[len(found) // 2] if found else None


@torch.inference_mode()
def _sample(
    model: XmodLanguageModel,
    code: str,
    ids: np.ndarray,
    place: int,
    tokenizer: PreTrainedTokenizerBase,
) -> dict:
    """The sample of ``ids`` (S,) with the one at ``place`` masked."""
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
    tokens = tokenizer.convert_ids_to_tokens(best.indices.tolist())
    hidden = int(ids[place])
    before = tokenizer.decode(ids[:place].tolist())
    after = tokenizer.decode(ids[place + 1 :].tolist())
    return {
        "before": before if len(before) <= _AROUND else "…" + before[-_AROUND:],
        "hidden": tokenizer.convert_ids_to_tokens(hidden),
        "after": after if len(after) <= _AROUND else after[:_AROUND] + "…",
        "rank": int((probabilities > probabilities[hidden]).sum()) + 1,
        "likeliest": [[p, round(v, 4)] for p, v in zip(tokens, best.values.tolist(), strict=True)],
    }
