"""Shards: the files of a source, read once and tokenised, each shard by itself.

A shard is one file of a source, or some small ones together. It has every passage that is read,
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
from xmod_lab.text.encoding import ids_ahead, unknown_bytes
from xmod_lab.text.holdout import DECIDE, Candidates, exact_key, letters_of
from xmod_lab.text.normalisation import Normalisation
from xmod_lab.text.parts import Part
from xmod_lab.text.source import Source, Tally
from xmod_lab.text.stream import FILES, mapped, save_array, token_type
from xmod_lab.text.words import Words

FORMAT = 1  # raise when the same text would give another shard
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
        digest: of the content of the parts, the tokenizer and the settings.
    """

    folder: Path
    code: str
    source: Source
    split: str
    parts: tuple[Part, ...]
    budget: int
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
        return sum(os.path.getsize(part.name) for part in self.parts if part.kind == "file")

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


def shards_of(
    code: str, source: Source, split: str, tokenizer_digest: str, *, budget: int, folder: Path
) -> list[Shard]:
    """The shards of one side of a source, in order, under ``folder``."""
    found = []
    for parts in _together(source, split):
        settings = [
            FORMAT,
            source.settings(),
            [part.digest() for part in parts],
            [_kind(part) for part in parts],
            split if parts[0].kind == "embedded" or source.has_validation else None,
            source.bound(split),
            budget,
            tokenizer_digest,
        ]
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        place = folder / f"{code}-{digest[:16]}"
        found.append(Shard(place, code, source, split, tuple(parts), budget, digest))
    return found


def _kind(part: Part) -> list:
    """What decides how a part is read, beside its content."""
    if part.kind == "file":
        return ["".join(Path(part.name).suffixes[-2:]).lower()]
    return [part.kind, part.selection.split, part.selection.files]


def _together(source: Source, split: str) -> Iterator[list[Part]]:
    """The parts of each shard: large files alone, small ones with their neighbours. ``max_bytes``
    is counted from the first to the last, so that all are one shard."""
    group, size = [], 0
    for part in source.parts(split):
        group.append(part)
        size += os.path.getsize(part.name) if part.kind == "file" else _TOGETHER
        if size >= _TOGETHER and source.max_bytes is None:
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
        for text, document in source.read(self.shard.parts, split, self.tally):
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
        backend, unk_id = self.tokenizer.backend_tokenizer, self.tokenizer.unk_token_id
        encodings = backend.encode_batch(list(texts.values()), add_special_tokens=False)
        return {
            number: unknown_bytes(text, encoding, unk_id)
            for (number, text), encoding in zip(texts.items(), encodings, strict=True)
        }

    def _close_document(self) -> None:
        if self.document.passages:
            self._write("documents", [self.document.end])
            self._write("document_letters", np.array([self.document.close()], "<u8"))

    def _write(self, name: str, numbers: np.ndarray | list[int]) -> None:
        self.files[name].write(np.asarray(numbers, dtype=TYPES.get(name, self.dtype)))


def _keys(contents: list[bytes]) -> np.ndarray:
    """The :func:`exact_key` of each, (N,) uint64."""
    digests = (hashlib.blake2b(each, digest_size=8).digest() for each in contents)
    return np.frombuffer(b"".join(digests), dtype="<u8")


@dataclass
class _Document:
    """The document whose passages are being read."""

    candidates: Candidates
    number: int = -1
    passages: int = 0
    end: int = 0
    tokens: int = 0
    head: list[tuple[str, str, int]] = field(default_factory=list)  # text, letters, key
    waiting: list[tuple[int, str, int]] = field(default_factory=list)  # until the key is known
    key: int | None = None

    def add(self, number: int, text: str, letters: str, key: int, tokens: int) -> None:
        """Add the passage ``number`` with the key of its letters."""
        self.candidates.passages.add(key, tokens)
        self.passages += 1
        self.tokens += tokens
        self.end = number + 1
        if self.key is None:
            self.head.append((text, letters, key))
            self.waiting.append((number, text, key))
            if self.passages == DECIDE:
                self._decide()
        else:
            self.candidates.add_text(number, text, key, self.key)

    def close(self) -> int:
        """End the document, and return the key of its letters."""
        if self.key is None:
            self._decide()
        key = self.key
        self.candidates.documents.add(key, self.tokens)
        self.passages = self.tokens = 0
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
