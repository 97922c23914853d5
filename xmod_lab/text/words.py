"""Token ids of passages by their words: a word that was just read is not tokenised again.

Most tokenizers cut a text at its spaces before their model sees it, so that the tokens of a passage
are those of its words, one after the other. :func:`apart` decides that from the steps of a
tokenizer. Others get whole passages.

Passages of more than ``_LONG`` characters are tokenised in windows that overlap, because tokens
take up to 850 times the memory of their text. Where two windows have the same tokens, the first is
left for the second. Where they nowhere have, as in a run of one letter, the second goes on behind
the last token of the first.

The text is cut at a space only between two characters that the normaliser keeps apart: no white
space, control character, or mark that would join the space. Words around any other space stay
together, as do the words of a text without spaces, and are tokenised each time.
"""

import json
import logging
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from xmod_lab.text.stream import token_type
from xmod_lab.text.unigram import BLANK, CUTS, DROPPED, SPACING

log = logging.getLogger(__name__)

_KEPT = 1 << 17  # words, in each of two tables; with 32 characters 40 MB, usually 25 MB
_LONGEST = 32  # characters of a word that is kept
_SENTENCE = 16  # characters; a passage with longer words on average has no spaces between words
_TOGETHER = 64  # new words that are tokenised as one text
_LONG = 1 << 18  # characters of texts that are tokenised at once; a longer one is in windows
_WINDOW, _OVERLAP = 1 << 16, 1 << 10  # characters
_ALIKE = 8  # tokens before and after the place where one window is left for the next
_TEXTS = 1024  # that are tokenised at once, at most
_CHECKED = 64  # passages of a text that are tokenised both ways
# steps that change each character, or a character with its marks, by itself
_LOCAL = {
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Lowercase",
    "StripAccents",
    "BertNormalizer",
    "Precompiled",
    "Strip",
}
_RUNS = " {2,}"  # nothing between two characters that are kept apart by one space
_AT_SPACES = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
_FURTHER = {"Punctuation", "Digits"}


Token = tuple[int, int, int]  # its id, its first character, and the first character behind it


class Apart(NamedTuple):
    """How a tokenizer reads words.

    Args:
        mark: begins the first token of a word, and no other token; ``None``: nothing does.
        spaced: the first word of a text lacks the mark.
    """

    mark: str | None
    spaced: bool = False


def apart(tokenizer: PreTrainedTokenizerBase) -> Apart | None:
    """How ``tokenizer`` reads the words of a text, if it reads each by itself; ``None`` if it does
    not, or if its steps are not known here."""
    backend = tokenizer.backend_tokenizer
    added = backend.get_added_tokens_decoder().values()
    if backend.truncation or backend.padding or not all(token.special for token in added):
        return None
    if getattr(backend.model, "dropout", None):
        return None
    try:
        steps, cuts = _steps(backend.normalizer), _steps(backend.pre_tokenizer)
    except Exception:  # what tokenizers raises for a step that is written in Python
        return None
    own = _steps(SPACING)
    if cuts == _steps(CUTS) and steps[-len(own) :] == own:
        found, steps = Apart("▁"), steps[: -len(own)]
    else:
        found = _cut_at_spaces(cuts)
    return found if all(map(_is_local, steps)) else None


def _steps(component: object | None) -> list[dict]:
    """The steps of a normaliser or pre-tokenizer."""
    state = {"type": "Sequence"} if component is None else json.loads(component.__getstate__())
    if state["type"] != "Sequence":
        return [state]
    return state.get("normalizers") or state.get("pretokenizers") or []


def _is_local(step: dict) -> bool:
    if step["type"] != "Replace":
        return step["type"] in _LOCAL
    (kind, pattern), content = *step["pattern"].items(), step["content"]
    if kind == "String":
        return len(pattern) == 1 and pattern not in " ▁"
    return pattern in (DROPPED, BLANK) or (pattern == _RUNS and content in (" ", "▁"))


def _cut_at_spaces(cuts: list[dict]) -> Apart | None:
    names = [cut["type"] for cut in cuts]
    for cut in cuts:
        if cut["type"] == "Metaspace" and (
            cut["replacement"] != "▁" or cut["prepend_scheme"] != "always" or not cut["split"]
        ):
            return None
    if names in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        return Apart("▁")
    if names == ["ByteLevel"] and cuts[0]["use_regex"]:
        return Apart("Ġ", spaced=not cuts[0]["add_prefix_space"])
    if names and names[0] in _AT_SPACES and set(names[1:]) <= _FURTHER:
        return Apart(None)
    return None


class _Edges(dict):
    """Whether a character, at one edge of a word, stays apart from a space beside it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, first: bool):
        super().__init__({"": False})
        normalizer = tokenizer.backend_tokenizer.normalizer
        self.read = str if normalizer is None else normalizer.normalize_str
        self.first = first

    def __missing__(self, character: str) -> bool:
        self[character] = self._stays(character)
        return self[character]

    def _stays(self, character: str) -> bool:
        # a digit composes with nothing
        one, two = self.read("1"), self.read("1 1")
        if self.first:
            alone, beside = self.read(f"{character}1"), self.read(f"1 {character}1")
            lead, head = one[:-1], two[:-1]
            image = alone[len(lead) : -1]
            same = alone == f"{lead}{image}1" and beside == f"{head}{image}1"
            return same and _is_visible(character, "LNPS") and _is_visible(image[:1], "LNPS")
        alone, beside = self.read(f"1{character}"), self.read(f"1{character} 1")
        image = alone[len(one) :]
        same = alone == one + image and beside == alone + two[len(one) :]
        return same and _is_visible(character, "LNPSM") and _is_visible(image[-1:], "LNPSM")


def _is_visible(character: str, kinds: str) -> bool:
    return bool(character) and unicodedata.category(character)[0] in kinds and character != "▁"


class _Table(dict):
    """Words with their ids as bytes. ``older``: another table, with the words before these."""

    def __init__(self, older: dict[str, bytes]):
        super().__init__()
        self.older = older

    def __missing__(self, word: str) -> bytes:
        self[word] = ids = self.older[word]
        return ids


class Words:
    """Token ids of passages. What it keeps has a bound: it forgets words that were not read lately.

    Call ``check`` and ``ids`` in one thread at a time, while special tokens are text
    (``encode_special_tokens``).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._backend, self._dtype = tokenizer.backend_tokenizer, token_type(len(tokenizer))
        self._apart = apart(tokenizer)
        self._table = _Table({})
        self._opens = _Edges(tokenizer, first=True)
        self._closes = _Edges(tokenizer, first=False)
        self._begins = np.zeros(len(tokenizer), dtype=bool)
        if self._apart and self._apart.mark:
            vocabulary, mark = tokenizer.get_vocab(), self._apart.mark
            self._begins[[i for token, i in vocabulary.items() if token.startswith(mark)]] = True
            self._joins = mark in vocabulary
        else:
            self._joins = False

    def check(self, passages: list[str]) -> None:
        """Tokenise a sample as a whole too. If that differs, all that follow are tokenised so."""
        if self._apart is None:
            return
        sample = passages[:_CHECKED]
        ours, whole = self._by_words(sample), self._whole(sample)
        if ours != whole:
            different = next(p for p, a, b in zip(sample, ours, whole, strict=True) if a != b)
            log.warning(
                "text is tokenised by passages, which is slower: by words, the tokenizer reads "
                "%.200r in another way",
                different,
            )
            self._apart = None

    def ids(self, passages: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Of P passages: (N,) the ids of all, and (P,) the number of tokens of each."""
        found = self._whole(passages) if self._apart is None else self._by_words(passages)
        lengths = np.array([len(ids) for ids in found]) // np.dtype(self._dtype).itemsize
        return np.frombuffer(b"".join(found), dtype=self._dtype), lengths

    def _whole(self, texts: list[str]) -> list[bytes]:
        others = self._encodings([text for text in texts if len(text) <= _LONG])
        return [
            self._bytes(next(others).ids) if len(text) <= _LONG else self._in_windows(text)
            for text in texts
        ]

    def _in_windows(self, text: str) -> bytes:
        found: list[bytes] = []
        before: list[Token] = []
        first = 0
        for start in range(0, len(text), _WINDOW):
            begin = max(0, start - _OVERLAP)
            window = text[begin : start + _WINDOW + _OVERLAP]
            encoding = self._backend.encode(window, add_special_tokens=False)
            spans = zip(encoding.ids, encoding.offsets, strict=True)
            tokens = [(number, begin + a, begin + b) for number, (a, b) in spans]
            if start:
                end, following = _meeting(before, tokens, start)
                found.append(self._bytes([number for number, *_ in before[first:end]]))
                first = following
            before = tokens
        found.append(self._bytes([number for number, *_ in before[first:]]))
        return b"".join(found)

    def _encodings(self, texts: list[str]) -> Iterator[Encoding]:
        """Few are there at a time, because they take hundreds of times the memory of their text."""
        for some in in_batches(texts, _LONG):
            yield from self._backend.encode_batch_fast(some, add_special_tokens=False)

    def _bytes(self, ids: list[int]) -> bytes:
        return np.array(ids, dtype=self._dtype).tobytes()

    def parts(self, text: str) -> Iterator[str]:
        """A long text in parts of at most ``_WINDOW`` characters; any other is one part. Together
        they have the unknown characters of the text. They are cut at spaces, which are in none of
        them, unless there is no such space."""
        begin = 0
        while len(text) > _LONG and len(text) - begin > _WINDOW:
            end = text.rfind(" ", begin + 1, begin + _WINDOW)
            while end > 0 and not (self._closes[text[end - 1]] and self._opens[text[end + 1]]):
                end = text.rfind(" ", begin + 1, end)
            following = end + 1
            if end < 0:
                ends = range(begin + _WINDOW, begin, -1)
                end = next((n for n in ends if not unicodedata.combining(text[n])), ends[0])
                following = end
            yield text[begin:end]
            begin = following
        yield text[begin:]

    def _by_words(self, passages: list[str]) -> list[bytes]:
        if len(self._table) > _KEPT:
            self._table.older = {}
            self._table = _Table(self._table)
        found: list[bytes] = [b""] * len(passages)
        waiting: dict[int, list[str]] = {}
        sentences, known = [], self._table.__getitem__
        for number, text in enumerate(passages):
            words = text.split(" ") if len(text) <= _LONG else []
            if _SENTENCE * len(words) < len(text):
                sentences.append(number)
                continue
            words[0] = self._first(words[0])
            try:
                found[number] = b"".join(map(known, words))
            except KeyError:
                waiting[number] = words
        new = self._new(chain.from_iterable(waiting.values()))
        joined = {word for word in new if not self._is_safe(word)}
        if joined:
            for number, words in waiting.items():
                if not joined.isdisjoint(words):
                    waiting[number] = self._words(passages[number])
            new = self._new(chain.from_iterable(waiting.values()))
        passing = self._tokenise(new)
        for number, words in waiting.items():
            found[number] = b"".join(map(self._table.__getitem__, words))
        for word in passing:
            del self._table[word]
        whole = self._whole([passages[number] for number in sentences])
        for number, ids in zip(sentences, whole, strict=True):
            found[number] = ids
        return found

    def _first(self, word: str) -> str:
        """The first word of a text, as the table has it: after a space if it is read in another
        way there. No other word has a space before it."""
        return f" {word}" if self._apart.spaced else word

    def _new(self, words: Iterable[str]) -> list[str]:
        """Words that the table lacks, each once, in order."""
        table, older = self._table, self._table.older
        return [word for word in dict.fromkeys(words) if word not in table and word not in older]

    def _is_safe(self, word: str) -> bool:
        word = word.removeprefix(" ") if self._apart.spaced else word
        return self._opens[word[:1]] and self._closes[word[-1:]]

    def _words(self, text: str) -> list[str]:
        """The words of a text; those that may not be cut apart stay together."""
        parts: list[str] = []
        open_ = False
        for word in text.split(" "):
            if open_ and self._opens[word[:1]]:
                parts.append(word)
            elif parts:
                parts[-1] += f" {word}"
            else:
                parts.append(word)
            open_ = self._closes[word[-1:]]
        parts[0] = self._first(parts[0])
        return parts

    def _tokenise(self, words: list[str]) -> list[str]:
        """Put the ids of new words into the table. Returns those that do not stay in it."""
        singly, together = [], []
        for word in words:
            plain = self._joins and len(word) <= _LONGEST and word.isprintable() and " " not in word
            (together if plain else singly).append(word)
        chunks = [together[i : i + _TOGETHER] for i in range(0, len(together), _TOGETHER)]
        lead = " " if self._apart.spaced else ""
        size = np.dtype(self._dtype).itemsize
        encodings = self._encodings([lead + " ".join(chunk) for chunk in chunks])
        for chunk, encoding in zip(chunks, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=self._dtype)
            starts = np.flatnonzero(self._begins[ids])
            # each word has at least one; some are read as several, such as U+FDFA
            if len(starts) != len(chunk) or starts[0] != 0:
                singly += chunk
                continue
            content, ends = ids.tobytes(), [*(starts[1:] * size).tolist(), len(ids) * size]
            begin = 0
            for word, end in zip(chunk, ends, strict=True):
                self._table[word] = content[begin:end]
                begin = end
        texts = singly
        if self._apart.spaced:
            texts = [word[1:] if word.startswith(" ") else f" {word}" for word in singly]
        self._table.update(zip(singly, self._whole(texts), strict=True))
        return [
            word
            for word in singly
            if len(word) > _LONGEST or " " in word[1:] or not self._is_safe(word)
        ]


def in_batches(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """``texts`` in lists of at most 1,024 of them, and so many ``characters``, unless one has more
    by itself."""
    batch, size = [], 0
    for text in texts:
        if batch and (len(batch) == _TEXTS or size + len(text) > characters):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _meeting(left: list[Token], right: list[Token], place: int) -> tuple[int, int]:
    """Where the tokens of one window are left for those of the next: the first token of ``left``
    that is not used, and the first of ``right`` that is. It is as near to the character ``place``
    as it can be.

    Where no ``2 * _ALIKE`` tokens are the same, the right ones begin with the first that ends
    behind the last left one. The first token of the window may have begun before the window, so it
    counts only if it begins behind the last left one."""
    near = [n for n, (_, start, _) in enumerate(left) if abs(start - place) <= _OVERLAP]
    known = {token: n for n, token in enumerate(right) if token[1] <= place + _OVERLAP}
    for n in sorted(near, key=lambda n: abs(left[n][1] - place)):
        other = known.get(left[n], 0)
        if min(n, other) >= _ALIKE:
            alike = left[n - _ALIKE : n + _ALIKE]
            if len(alike) == 2 * _ALIKE and alike == right[other - _ALIKE : other + _ALIKE]:
                return n, other
    end = next((n for n, (_, start, _) in enumerate(left) if start >= place), len(left))
    last = left[end - 1][2] if end else place
    opened = right[0][1] if right else 0
    following = (
        n
        for n, (_, start, stop) in enumerate(right)
        if start >= last or (stop > last and start > opened)
    )
    return end, next(following, len(right))
