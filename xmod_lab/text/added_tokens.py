"""Adds tokens of a language to a tokenizer. Its own tokens keep their ids.

The new tokens are learnt as BPE learns them, but from what the tokenizer makes of a word, not from
its characters: the two neighbours that stand together most often become a token, again and again.
So every new token is made of tokens that are there, and text that has none is split as before.
Characters that the tokenizer does not know become tokens first.

    BPE        the merges come after those that are there
    Unigram    a new token has a score above that of the split that it stands for
    WordPiece  the longest token that fits is taken, as before
"""

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError
from xmod_lab.text.spelling import WORD_START
from xmod_lab.text.tokenizer import as_fast

_LEAST = 5  # times that two neighbours must stand together
_MARGIN = 0.1  # nats by which a new Unigram token is likelier than its split

Merge = tuple[str, str]


def extended(
    tokenizer: PreTrainedTokenizerBase, passages: Iterable[str], *, tokens: int
) -> PreTrainedTokenizerBase:
    """``tokenizer`` with at most ``tokens`` new tokens for the text ``passages``.

    Raises:
        UserError: it has added tokens after those of its model, or no new token is found.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, known = state["model"], tokenizer.get_vocab()
    if len(model["vocab"]) != len(known):
        raise UserError(
            "set vocabulary=own: the base's tokenizer has added tokens after those of its model, "
            "so it cannot be extended"
        )
    inside = model.get("continuing_subword_prefix") or ""
    counts = _words(tokenizer, passages)
    letters = _letters(tokenizer, counts, inside)[:tokens]
    _add(model, letters, scores=dict.fromkeys(letters, _lowest(model)))
    spelling = as_fast(Tokenizer.from_str(json.dumps(state)), like=tokenizer)
    parts = {word: _split(spelling, word) for word in counts}
    merges = learn(
        [(split, counts[word]) for word, split in parts.items() if split],
        [*known, *letters],
        tokens=tokens - len(letters),
        inside=inside,
    )
    there = {*known, *letters}
    new = list(dict.fromkeys(t for m in merges if (t := joined(*m, inside)) not in there))
    if not new and not letters:
        raise UserError(
            "set vocabulary=keep: the text has no tokens that the base lacks and that occur often"
        )
    scores = {}
    if model["type"] == "Unigram":
        scores, lowest = dict(map(tuple, model["vocab"])), _lowest(model)
        for first, second in merges:
            score = scores[first] + scores[second] + _MARGIN
            scores.setdefault(joined(first, second, inside), max(score, lowest))
    _add(model, new, scores=scores)
    if model["type"] == "BPE":
        model["merges"] += [list(merge) for merge in merges]
    return as_fast(Tokenizer.from_str(json.dumps(state)), like=tokenizer)


def _lowest(model: dict) -> float:
    """The lowest score of a Unigram model; zero for others, which have no scores."""
    return min(score for _, score in model["vocab"]) if model["type"] == "Unigram" else 0.0


def _add(model: dict, tokens: list[str], *, scores: dict[str, float]) -> None:
    """Give ``tokens`` the next ids. ``scores``: those of Unigram."""
    if model["type"] == "Unigram":
        model["vocab"] += [[token, scores[token]] for token in tokens]
    else:
        first = len(model["vocab"])
        model["vocab"] |= {token: first + number for number, token in enumerate(tokens)}


def _letters(tokenizer: PreTrainedTokenizerBase, counts: Counter[str], inside: str) -> list[str]:
    """Characters of the text that are no tokens yet, the most frequent first."""
    known, found = tokenizer.get_vocab(), Counter()
    for word, count in counts.items():
        if not _split(tokenizer, word):
            for number, character in enumerate(word):
                found[character if number == 0 or not inside else inside + character] += count
    lacking = [(-n, token) for token, n in found.items() if n >= _LEAST and token not in known]
    return [token for _, token in sorted(lacking)]


def joined(first: str, second: str, inside: str) -> str:
    """Two neighbours as one token; ``inside``: the mark of tokens inside a word, or nothing."""
    return first + (second.removeprefix(inside) if inside else second)


def _words(tokenizer: PreTrainedTokenizerBase, passages: Iterable[str]) -> Counter[str]:
    """How often the text has each word, as the tokenizer's model gets it."""
    backend, counts = tokenizer.backend_tokenizer, Counter()
    for passage in passages:
        text = backend.normalizer.normalize_str(passage) if backend.normalizer else passage
        pieces = [text]
        if backend.pre_tokenizer:
            pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        for piece in pieces:
            first, *others = piece.split(WORD_START)
            counts.update([first] if first else [])
            counts.update(WORD_START + word for word in others)
    return counts


def _split(tokenizer: PreTrainedTokenizerBase, word: str) -> list[str]:
    """The tokens of a word; nothing if one is unknown."""
    model = tokenizer.backend_tokenizer.model
    found = [(part.id, part.value) for part in model.tokenize(word)]
    if any(i == tokenizer.unk_token_id for i, _ in found):
        return []
    values = [value for _, value in found]
    # Unigram gives the text of a token, which is its name
    return (
        tokenizer.convert_ids_to_tokens([i for i, _ in found])
        if isinstance(model, models.Unigram)
        else values
    )


def learn(
    words: list[tuple[list[str], int]], known: Iterable[str], *, tokens: int, inside: str = ""
) -> list[Merge]:
    """The merges that make at most ``tokens`` tokens that are not ``known``, the first one first.

    Of merges that are as frequent, the first by spelling comes first.

    Args:
        words: each word's tokens, and how often it occurs.
    """
    words = [(list(parts), count) for parts, count in words]
    counts: Counter[Merge] = Counter()
    places: dict[Merge, set[int]] = defaultdict(set)
    for number, (parts, count) in enumerate(words):
        for pair in zip(parts, parts[1:], strict=False):
            counts[pair] += count
            places[pair].add(number)
    queue = [(-count, pair) for pair, count in counts.items() if count >= _LEAST]
    heapq.heapify(queue)
    there, made, new = {*known}, [], 0
    while queue and new < tokens:
        negative, pair = heapq.heappop(queue)
        if counts[pair] != -negative:  # it has changed since, and is in the queue again
            continue
        token = joined(*pair, inside)
        new += token not in there
        there.add(token)
        made.append(pair)
        changed: set[Merge] = set()
        for number in sorted(places.pop(pair)):
            parts, count = words[number]
            for old in zip(parts, parts[1:], strict=False):
                counts[old] -= count
                changed.add(old)
            _merge(parts, pair, token)
            for now in zip(parts, parts[1:], strict=False):
                counts[now] += count
                places[now].add(number)
                changed.add(now)
        counts[pair] = 0
        for each in changed:
            if each != pair and counts[each] >= _LEAST:
                heapq.heappush(queue, (-counts[each], each))
    return made


def _merge(parts: list[str], pair: Merge, token: str) -> None:
    """Replace each ``pair`` in ``parts`` by ``token``, from left to right, in place."""
    at = 0
    while at < len(parts) - 1:
        if (parts[at], parts[at + 1]) == pair:
            parts[at : at + 2] = [token]
        at += 1
