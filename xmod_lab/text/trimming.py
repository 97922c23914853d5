"""Tokenizers with fewer tokens, which split a text as before.

What stays: the tokens that the text uses, special and added tokens, single characters, and a
reserve of the most frequent others. Vocabularies are in the order of frequency, so the reserve are
the lowest ids. The order of ids stays, and they are numbered anew.

Why the text is split as before, for each kind of model:

    Unigram    the best split of a line is still there, and there are fewer others. The score of an
               unknown character depends on the lowest score of all, so that token stays too
    BPE        the merges that lead to a token stay. The merges that are left out were never made
    WordPiece  the longest token that fits is still the longest
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError
from xmod_lab.files import build_folder
from xmod_lab.foreign import tokenizer_digest
from xmod_lab.text.tokenizer import as_fast

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_MARKS = ("▁", "##", "Ġ")  # of the start or the inside of a word

# V tokens


def tokens_to_keep(
    tokenizer: PreTrainedTokenizerBase, counts: np.ndarray, *, reserve: int
) -> list[int]:
    """The ids that stay, in ascending order.

    Args:
        counts: (V,) how often the text uses each token.
        reserve: how many tokens stay that nothing else keeps.
    """
    backend = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    spelling = {i: token for token, i in tokenizer.get_vocab().items()}
    kept = {*np.flatnonzero(counts).tolist(), *tokenizer.all_special_ids}
    kept |= backend.get_added_tokens_decoder().keys()
    kept |= {i for i, token in spelling.items() if _is_character(token)}
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        kept.add(int(np.argmin(scores)))
    kept |= _ways(kept, spelling, model)
    reserved = [i for i in sorted(spelling) if i not in kept][:reserve]
    kept |= {*reserved, *_ways(reserved, spelling, model)}
    return sorted(kept)


def _ways(ids: Iterable[int], spelling: dict[int, str], model: dict) -> set[int]:
    """The tokens that BPE makes on its way to the tokens ``ids``."""
    if model["type"] != "BPE":
        return set()
    ranks, numbers = _ranks(model), model["vocab"]
    pairs = (pair for i in ids for pair in merges_of(spelling[i], ranks))
    return {numbers[first + second] for first, second in pairs}


def _is_character(token: str) -> bool:
    for mark in _MARKS:
        token = token.removeprefix(mark) if token != mark else token
    return len(token) <= 1 or _BYTE.fullmatch(token) is not None


def _ranks(model: dict) -> dict[tuple[str, str], int]:
    """The merges of a BPE model, the first one first."""
    pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    return {(first, second): rank for rank, (first, second) in enumerate(pairs)}


def merges_of(token: str, ranks: dict[tuple[str, str], int]) -> list[tuple[str, str]]:
    """The merges that lead from the characters of ``token`` to it, in their order."""
    parts, made = list(token), []
    while len(parts) > 1:
        pairs = list(zip(parts, parts[1:], strict=False))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        made.append(best)
        joined, at = [], 0
        while at < len(parts):
            if tuple(parts[at : at + 2]) == best:
                joined.append(parts[at] + parts[at + 1])
                at += 2
            else:
                joined.append(parts[at])
                at += 1
        parts = joined
    return made


def renumbered(tokenizer: PreTrainedTokenizerBase, order: list[int]) -> PreTrainedTokenizerBase:
    """The tokenizer with the tokens ``order``, by their old ids; their new ids are 0, 1, ...

    Raises:
        UserError: its model is not Unigram, BPE or WordPiece.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, new = state["model"], {old: i for i, old in enumerate(order)}
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][old] for old in order if old < len(model["vocab"])]
        model["unk_id"] = new[model["unk_id"]] if model["unk_id"] is not None else None
    elif model["type"] in ("BPE", "WordPiece"):
        ids = model["vocab"]
        model["vocab"] = {token: new[old] for token, old in ids.items() if old in new}
        if model["type"] == "BPE":
            ranks = _ranks(model)
            model["merges"] = [
                [first, second]
                for first, second in ranks
                if {first, second, first + second} <= model["vocab"].keys()
            ]
    else:
        raise UserError(
            f"give a tokenizer of kind Unigram, BPE or WordPiece: this one is {model['type']}"
        )
    for added in state["added_tokens"]:
        added["id"] = new[added["id"]]
    state["added_tokens"].sort(key=lambda added: added["id"])
    _renumber_specials(state["post_processor"], new)
    return as_fast(Tokenizer.from_str(json.dumps(state)), like=tokenizer)


def with_padding(tokenizer: PreTrainedTokenizerBase, pad_id: int) -> PreTrainedTokenizerBase:
    """The tokenizer with the padding ``pad_id``, as positions of a base need it.

    The padding and the token with that id change places.

    Raises:
        UserError: it has fewer tokens.
    """
    if tokenizer.pad_token_id == pad_id:
        return tokenizer
    order = list(range(len(tokenizer)))
    if pad_id >= len(order):
        raise UserError(
            f"give a tokenizer of more than {pad_id} tokens: the base pads with the id {pad_id}"
        )
    order[tokenizer.pad_token_id], order[pad_id] = pad_id, tokenizer.pad_token_id
    return renumbered(tokenizer, order)


def _renumber_specials(processor: dict | None, new: dict[int, int]) -> None:
    """Number the special tokens anew that a post-processor puts around a text."""
    if processor is None:
        return
    for inner in processor.get("processors", []):
        _renumber_specials(inner, new)
    for role in ("sep", "cls"):
        if role in processor:
            name, old = processor[role]
            processor[role] = [name, new[old]]
    if isinstance(processor.get("special_tokens"), dict):
        for special in processor["special_tokens"].values():
            special["ids"] = [new[old] for old in special["ids"]]


def saved(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """A folder with ``tokenizer`` in ``folder``, named by what it does. It is made once."""
    digest = hashlib.sha256(tokenizer_digest(tokenizer).encode()).hexdigest()
    target = folder / f"tokenizer-{digest[:16]}"
    build_folder(target, lambda scratch: tokenizer.save_pretrained(scratch))
    return target
