"""Shards: the files of a source, read once and tokenised, each shard by itself.

A shard is one file of a source, a range of a large one (:mod:`xmod_lab.text.ranges`), or some small
files together. It has every passage that is read,
with what decides on its use: duplicates, held-out text and rows are chosen later, for all shards
together (:mod:`xmod_lab.text.preparing`). So shards are made in any order and by any process, a
finished one stays when a later one fails, and a file that is added to a source adds a shard.

    shards/<code>-<digest>/
        tokens, ends, sizes     the passages, as in :mod:`xmod_lab.text.stream`
        documents               how many passages end with each document
        keys, letters           (P,) uint64: exact_key and letters_key of each passage
        document_letters        (D,) uint64: the key of the letters of each document
        rare                    (K, 4) int64: the passages with unknown tokens or odd characters:
                                number, unknown tokens, bytes behind them, odd characters
        candidates.jsonl        passages that may be held out: number, the keys of its letters and
                                of those of its document, text
        held_passages.npy, held_documents.npy
                                (H, 2) uint64: key and tokens of those with the lowest keys
        manifest.json           counts
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from xmod_lab.files import build_folder
from xmod_lab.text.encoding import encodings, ids_ahead
from xmod_lab.text.holdout import (
    DECIDE,
    DECIDE_CHARACTERS,
    Candidates,
    exact_key,
    key_bytes,
    letters_of,
)
from xmod_lab.text.normalisation import Normalisation
from xmod_lab.text.parts import RANGES_OF_LINES, Part
from xmod_lab.text.ranges import most_text
from xmod_lab.text.source import Source, Tally, bytes_in
from xmod_lab.text.stream import FILES, mapped, save_array, token_type
from xmod_lab.text.words import Words

FORMAT = 2  # raise when the same text would give another shard
TYPES = {**FILES, "keys": "<u8", "letters": "<u8", "document_letters": "<u8", "rare": "<i8"}
_TOGETHER = 1 << 25  # bytes; smaller files share a shard
_PASSAGES, _CHARACTERS = 1024, 1 << 22  # of a batch, at most
_CHECK_EVERY = 10_000  # passages

# P passages, D documents


@dataclass(frozen=True)
class Shard:
    """A shard that is made, or will be.

    Args:
        split: which side of the source the parts are.
        budget: tokens of held-out text, at most.
        limit: bytes of text after which reading stops.
        digest: of the content of the parts, the tokenizer and the settings.
    """

    folder: Path
    code: str
    source: Source
    split: str
    parts: tuple[Part, ...]
    budget: int
    limit: int | None
    digest: str

    def make(
        self, tokenizer: PreTrainedTokenizerBase, words: Words, *, rebuild: bool = False
    ) -> bool:
        """Read and tokenise the parts, if that was not done. Returns whether this call did it.
        ``words``: those of ``tokenizer``, which a process keeps from one shard to the next.

        Raises:
            UserError: the text cannot be used.
        """
        return build_folder(
            self.folder,
            lambda scratch: _Writer(self, tokenizer, words, scratch).write(),
            rebuild=rebuild,
        )

    @property
    def bytes(self) -> int:
        """The size of its files; those in the package and on the hub count as 0."""
        return sum(_size(part) for part in self.parts if part.kind == "file")

    @cached_property
    def manifest(self) -> dict:
        """The counts."""
        return json.loads((self.folder / "manifest.json").read_text())

    def numbers(self, name: str) -> np.ndarray:
        """A file of numbers, memory-mapped."""
        return mapped(self.folder / name, TYPES.get(name, self.manifest["ids"]))

    def array(self, name: str) -> np.ndarray:
        """A small array."""
        return np.load(self.folder / f"{name}.npy")

    def candidates(self) -> Iterator[tuple[int, int, int, str]]:
        """Passages that may be held out, in order: number, the keys of its letters and of those of
        its document, text."""
        with (self.folder / "candidates.jsonl").open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


@dataclass
class Reading:
    """The shards of one side of a source, in order, under ``folder``.

    They are made in waves. Without ``max_bytes`` the first wave has all of them. With it, a wave
    has the shards that are needed whatever they hold, as far as that is known before they are read.
    If the next one may pass the limit, it is made alone and ends there. So little is read beyond
    the limit, and what is kept does not depend on how many processes read.

    Args:
        shards: those that were made, up to the limit.
    """

    code: str
    source: Source
    split: str
    tokenizer_digest: str
    budget: int
    folder: Path
    shards: list[Shard] = field(default_factory=list)

    def __post_init__(self) -> None:
        given = self.split == "validation" and self.source.has_validation
        self._left = None if given else bytes_in(self.source.max_bytes)  # bytes
        self._groups = list(_together(self.source.ranges(self.split)))
        self._known: dict[int, int] = {}  # number of a group -> bytes of its text
        self._ended = False

    def wave(self) -> list[Shard]:
        """The shards to make next; nothing if all are made."""
        groups = list(enumerate(self._groups))[len(self.shards) :]
        if self._ended or not groups:
            return []
        if self._left is None:
            return [self._shard(parts) for _, parts in groups]
        found, size = [], 0.0
        for number, parts in groups:
            size += self._known.get(number) or sum(
                most_text(part, self.source.column) for part in parts
            )
            if size >= self._left:
                break
            found.append(self._shard(parts))
        return found or [self._shard(groups[0][1], self._left)]

    def made(self, wave: list[Shard]) -> None:
        """Keep what :meth:`wave` gave, up to the limit."""
        for shard in wave:
            if self._left is not None:
                size = int(shard.numbers("sizes").sum(dtype=np.int64))
                if shard.limit is None and size >= self._left:  # it held more than was known
                    self._known[len(self.shards)] = size
                    return
                self._left -= size
                self._ended = shard.manifest["capped"]
            self.shards.append(shard)

    def _shard(self, parts: list[Part], limit: int | None = None) -> Shard:
        settings = [
            FORMAT,
            [*self.source.settings(), limit],
            [part.digest() for part in parts],
            [_kind(part) for part in parts],
            self.split if parts[0].kind == "embedded" or self.source.has_validation else None,
            self.source.bound(self.split),
            self.budget,
            self.tokenizer_digest,
        ]
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        place = self.folder / f"{self.code}-{digest[:16]}"
        return Shard(
            place, self.code, self.source, self.split, tuple(parts), self.budget, limit, digest
        )


def _kind(part: Part) -> list:
    """What decides how a part is read, beside its content."""
    if part.kind == "file":
        found = ["".join(Path(part.name).suffixes[-2:]).lower()]
    else:
        found = [part.kind, part.selection.split, part.selection.files]
    if not part.within:
        return found
    lines = part.name.lower().endswith(RANGES_OF_LINES)
    # a range of lines has its own digest; only the first one may begin with a byte order mark
    return [*found, *([part.start == 0, part.within.inside] if lines else part.within[:2])]


def _size(part: Part) -> int:
    return part.within.end - part.start if part.within else os.path.getsize(part.name)


def _together(ranges: list[Part]) -> Iterator[list[Part]]:
    """The parts of each shard: large ones alone, small ones with their neighbours."""
    group, size = [], 0
    for part in ranges:
        group.append(part)
        size += _size(part) if part.kind == "file" else _TOGETHER
        if size >= _TOGETHER:
            yield group
            group, size = [], 0
    if group:
        yield group


@dataclass
class _Writer:
    """A shard while it is made."""

    shard: Shard
    tokenizer: PreTrainedTokenizerBase
    words: Words
    scratch: Path
    tally: Tally = field(default_factory=Tally)
    passages: int = 0
    tokens: int = 0
    checked: int = 0  # passages at the last look for noise

    def write(self) -> None:
        """Write the files."""
        self.counts = Normalisation(self.tokenizer)
        self.dtype = token_type(len(self.tokenizer))
        # numbers of the documents of the passages that are being tokenised
        self.documents: list[list[int]] = []
        bound = self.shard.source.bound(self.shard.split)
        candidates = Candidates(self.scratch / "candidates.jsonl", bound, self.shard.budget)
        self.document = _Document(candidates)
        with contextlib.ExitStack() as stack:
            self.files = {
                name: stack.enter_context((self.scratch / name).open("wb"))
                for name in ("tokens", *TYPES)
            }
            with candidates.stream:
                for texts, ids, lengths in ids_ahead(self._batches(), self.tokenizer, self.words):
                    self._add(texts, ids, lengths, self.documents.pop(0))
                self._close_document()
        for name, array in candidates.finish().items():
            save_array(self.scratch / f"{name}.npy", array)
        manifest = {
            "digest": self.shard.digest,
            "ids": self.dtype,
            "passages": self.passages,
            "tokens": self.tokens,
            "bounds": [candidates.passages.bound, candidates.documents.bound],
            "characters": self.tally.characters,
            "lines": self.tally.lines,
            "blocks": self.tally.blocks,
            "capped": self.tally.capped,
            "counts": {name: getattr(self.tally, name) for name in Tally.OF_TEXT},
            "left_out": self.tally.left_out,
            "normalisation": self.counts.record(),
        }
        (self.scratch / "manifest.json").write_text(json.dumps(manifest))

    def _batches(self) -> Iterator[list[str]]:
        texts, documents, size = [], [], 0
        source, split = self.shard.source, self.shard.split
        limit = self.shard.limit
        for text, document in source.read(self.shard.parts, split, self.tally, limit=limit):
            texts.append(text)
            documents.append(document)
            size += len(text)
            if len(texts) == _PASSAGES or size >= _CHARACTERS:
                self.documents.append(documents)
                yield texts
                texts, documents, size = [], [], 0
        if texts:
            self.documents.append(documents)
            yield texts

    def _add(
        self, texts: list[str], ids: np.ndarray, lengths: np.ndarray, documents: list[int]
    ) -> None:
        ends = np.cumsum(lengths)
        raw = [text.encode() for text in texts]
        letters = [letters_of(text) for text in texts]
        letter_keys = _keys(
            [each.encode() or whole for each, whole in zip(letters, raw, strict=True)]
        )
        self._write("tokens", ids)
        self._write("ends", self.tokens + ends)
        self._write("sizes", [len(each) for each in raw])
        self._write("keys", _keys(raw))
        self._write("letters", letter_keys)
        self.counts.count(texts)
        self._count_rare(texts, raw, ids, ends)
        rows = zip(texts, documents, letters, letter_keys.tolist(), lengths.tolist(), strict=True)
        for number, (text, document, own, key, tokens) in enumerate(rows, self.passages):
            if document != self.document.number:
                self._close_document()
                self.document.number = document
            self.document.add(number, text, own, key, tokens)
        self.passages += len(texts)
        self.tokens += int(lengths.sum())

    def _count_rare(
        self, texts: list[str], raw: list[bytes], ids: np.ndarray, ends: np.ndarray
    ) -> None:
        """Note the passages with unknown tokens or odd characters."""
        places = np.flatnonzero(ids == self.tokenizer.unk_token_id)
        unknown = np.bincount(
            np.searchsorted(ends, places, side="right"), minlength=len(texts)
        ).tolist()
        if not len(places) and "".join(texts).isprintable() and "\ufffd" not in "".join(texts):
            self.tally.add_plain(texts, raw)
            return
        hidden = self._hidden_bytes({i: texts[i] for i, count in enumerate(unknown) if count})
        for number, (text, whole) in enumerate(zip(texts, raw, strict=True)):
            before = self.tally.odd
            self.tally.add(text, len(whole))
            odd = self.tally.odd - before
            if odd or unknown[number]:
                counts = [unknown[number], hidden.get(number, 0), odd]
                self._write("rare", [self.passages + number, *counts])
        if self.tally.passages >= self.checked + _CHECK_EVERY:
            self.tally.refuse_noise([part.name for part in self.shard.parts])
            self.checked = self.tally.passages

    def _hidden_bytes(self, texts: dict[int, str]) -> dict[int, int]:
        """The bytes behind the unknown tokens of each text, which need their positions."""
        parts = [(number, p) for number, text in texts.items() for p in self.words.parts(text)]
        found = dict.fromkeys(texts, 0)
        read = encodings((part for _, part in parts), self.tokenizer)
        for (number, _), (_, _, unknown) in zip(parts, read, strict=True):
            found[number] += unknown
        return found

    def _close_document(self) -> None:
        if self.document.passages:
            self._write("documents", [self.document.end])
            self._write("document_letters", np.array([self.document.close()], "<u8"))

    def _write(self, name: str, numbers: np.ndarray | list[int]) -> None:
        self.files[name].write(np.asarray(numbers, dtype=TYPES.get(name, self.dtype)))


def _keys(contents: list[bytes]) -> np.ndarray:
    """The :func:`exact_key` of each, (N,) uint64."""
    return np.frombuffer(b"".join(map(key_bytes, contents)), dtype="<u8")


@dataclass
class _Document:
    """The document whose passages are being read."""

    candidates: Candidates
    number: int = -1
    passages: int = 0
    characters: int = 0
    end: int = 0
    tokens: int = 0
    head: list[tuple[str, str, int]] = field(default_factory=list)  # text, letters, key
    waiting: list[tuple[int, str, int]] = field(default_factory=list)  # until the key is known
    key: int | None = None

    def add(self, number: int, text: str, letters: str, key: int, tokens: int) -> None:
        """Add the passage ``number`` with the key of its letters."""
        self.candidates.passages.add(key, tokens)
        self.passages += 1
        self.characters += len(text)
        self.tokens += tokens
        self.end = number + 1
        if self.key is None:
            self.head.append((text, letters, key))
            self.waiting.append((number, text, key))
            if self.passages == DECIDE or self.characters > DECIDE_CHARACTERS:
                self._decide()
        else:
            self.candidates.add_text(number, text, key, self.key)

    def close(self) -> int:
        """End the document, and return the key of its letters."""
        if self.key is None:
            self._decide()
        key = self.key
        self.candidates.documents.add(key, self.tokens)
        self.passages = self.characters = self.tokens = 0
        self.key = None
        return key

    def _decide(self) -> None:
        if len(self.head) == 1:
            self.key = self.head[0][2]
        else:
            letters = "".join(letters for _, letters, _ in self.head)
            self.key = exact_key(letters or "\n".join(text for text, _, _ in self.head))
        for number, text, key in self.waiting:
            self.candidates.add_text(number, text, key, self.key)
        self.head, self.waiting = [], []
