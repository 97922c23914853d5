"""The shards of a language together: which passages are duplicates, which are held out, and the
streams of tokens that are left.

Nothing here holds the whole text in memory. The use of each passage is a byte in a file. To find
duplicates, the keys of the passages are divided by their first bits into files, which are sorted
one by one. The first passage with a key stays, in the order of the source.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError
from xmod_lab.text.holdout import bound_within
from xmod_lab.text.normalisation import Normalisation
from xmod_lab.text.shards import Shard
from xmod_lab.text.source import Source, Tally
from xmod_lab.text.stream import FILES

_DROPPED, _TRAIN, _HELD_OUT = 0, 1, 2  # uses of a passage
_SORTED = 1 << 22  # keys that are sorted at once
_MOST_FILES = 512
_READ = 1 << 20  # passages that are looked at at once
_TOKENS = 1 << 22  # tokens that are copied at once
_AT_ONCE = 1024  # held-out passages

# P passages


@dataclass
class Side:
    """Shards of one text in their order, with the use of each of their passages.

    Args:
        uses: (P,) memory-mapped.
        starts: number of the first passage of each shard.
    """

    shards: list[Shard]
    file: Path
    uses: np.ndarray = field(init=False)
    starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        sizes = [shard.manifest["passages"] for shard in self.shards]
        self.starts = np.cumsum([0, *sizes]).tolist()[:-1]
        self.uses = np.empty(0, dtype=np.uint8)
        with self.file.open("wb") as stream:
            for size in sizes:  # written, for a mapped file without room on the disk ends a process
                stream.write(bytes(size))
        if sum(sizes):
            self.uses = np.memmap(self.file, dtype=np.uint8, mode="r+").view(np.ndarray)

    def blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """A file of one number a passage, block by block: which passages, and their numbers."""
        for shard, start in zip(self.shards, self.starts, strict=True):
            numbers = shard.numbers(name)
            for first in range(0, len(numbers), _READ):
                block = numbers[first : first + _READ]
                yield slice(start + first, start + first + len(block)), block

    def choose(self, bound: int, *, by_document: bool) -> None:
        """Hold out what has a key below ``bound``, and train on the rest."""
        if not bound:
            self.uses[:] = _TRAIN
            return
        name = "document_letters" if by_document else "letters"
        for shard, start in zip(self.shards, self.starts, strict=True):
            keys, ends = shard.numbers(name), shard.numbers("documents")
            passages = shard.manifest["passages"]
            for first in range(0, passages, _READ):
                end = min(passages, first + _READ)
                if by_document:
                    of = keys[np.searchsorted(ends, np.arange(first, end), side="right")]
                else:
                    of = keys[first:end]
                held = of <= np.uint64(bound - 1)
                self.uses[start + first : start + end] = np.where(held, _HELD_OUT, _TRAIN)

    def drop_copies(self, use: int, scratch: Path) -> int:
        """Drop all passages of one use but the first with each key; returns how many."""
        files = 1 << max(0, math.ceil(math.log2(max(1, len(self.uses)) / _SORTED)))
        files = min(_MOST_FILES, files)
        dropped = 0
        with contextlib.ExitStack() as stack:
            places = [scratch / f".keys{number}" for number in range(files)]
            streams = [stack.enter_context(place.open("w+b")) for place in places]
            edges = [np.uint64(number * (1 << 64) // files) for number in range(1, files)]
            for where, keys in self.blocks("keys"):
                numbers = np.flatnonzero(self.uses[where] == use)
                numbers, copies = _first(keys[numbers], numbers + where.start)
                self.uses[copies] = _DROPPED
                dropped += len(copies)
                keys = keys[numbers - where.start]
                pairs = np.stack([keys, numbers.astype("<u8")], axis=1)
                for stream, some in zip(
                    streams, np.split(pairs, np.searchsorted(keys, edges)), strict=True
                ):
                    stream.write(some)
            for stream, place in zip(streams, places, strict=True):
                stream.seek(0)
                pairs = np.frombuffer(stream.read(), dtype="<u8").reshape(-1, 2)
                _, copies = _first(pairs[:, 0], pairs[:, 1].astype(np.int64))
                self.uses[copies] = _DROPPED
                dropped += len(copies)
                place.unlink()
        return dropped

    def letters(self, use: int) -> np.ndarray:
        """The keys of the letters of all passages of one use. For held-out text, which is small."""
        found = [keys[self.uses[where] == use] for where, keys in self.blocks("letters")]
        return np.concatenate([np.empty(0, dtype="<u8"), *found])

    def known_in(self, other: "Side", use: int) -> np.ndarray:
        """The numbers of the passages held out here whose letters a passage of ``other`` has that
        is of this use."""
        wanted = np.unique(self.letters(_HELD_OUT))
        found = np.zeros(len(wanted), dtype=bool)
        for where, keys in other.blocks("letters"):
            keys = keys[other.uses[where] == use]
            places = np.searchsorted(wanted, keys)
            there = places < len(wanted)
            there[there] = wanted[places[there]] == keys[there]
            found[places[there]] = True
        numbers = []
        for where, keys in self.blocks("letters"):
            mine = np.flatnonzero(self.uses[where] == _HELD_OUT)
            numbers.append(where.start + mine[found[np.searchsorted(wanted, keys[mine])]])
        return np.concatenate([np.empty(0, dtype=np.int64), *numbers])

    def write(self, use: int, scratch: Path, split: str, counts: np.ndarray) -> dict[str, int]:
        """Write the stream of the passages of one use, add how often each token occurs to
        ``counts`` (V,), and return the counts of what was written."""
        total = dict.fromkeys(("passages", "bytes", "tokens", "unknown", "unknown_bytes", "odd"), 0)
        documents = 0
        with contextlib.ExitStack() as stack:
            streams = {
                name: stack.enter_context((scratch / f"{split}.{name}").open("wb"))
                for name in ("tokens", *FILES)
            }
            for shard, start in zip(self.shards, self.starts, strict=True):
                tokens, ends = shard.numbers("tokens"), shard.numbers("ends")
                sizes, of_documents = shard.numbers("sizes"), shard.numbers("documents")
                first = 0
                while first < len(ends):
                    begin = int(ends[first - 1]) if first else 0
                    last = int(np.searchsorted(ends, begin + _TOKENS, side="right"))
                    last = max(first + 1, min(last, first + _READ))
                    kept = self.uses[start + first : start + last] == use
                    lengths = np.diff(ends[first:last], prepend=begin)
                    ids = tokens[begin : ends[last - 1]]
                    if not kept.all():
                        ids, lengths = ids[np.repeat(kept, lengths)], lengths[kept]
                    streams["tokens"].write(np.ascontiguousarray(ids))
                    streams["ends"].write((total["tokens"] + np.cumsum(lengths)).astype("<i8"))
                    streams["sizes"].write(np.ascontiguousarray(sizes[first:last][kept]))
                    closed = of_documents[
                        slice(*np.searchsorted(of_documents, [first, last], "right"))
                    ]
                    before = total["passages"] + np.cumsum(kept)[closed - first - 1]
                    before = np.unique(before[before > documents])
                    streams["documents"].write(before.astype("<i8"))
                    documents = int(before[-1]) if len(before) else documents
                    counts += np.bincount(ids, minlength=len(counts))
                    total["passages"] += int(kept.sum())
                    total["bytes"] += int(sizes[first:last][kept].sum(dtype=np.int64))
                    total["tokens"] += int(lengths.sum())
                    first = last
                rare = shard.numbers("rare").reshape(-1, 4)
                for at in range(0, len(rare), _READ):
                    some = rare[at : at + _READ]
                    mine = some[self.uses[start + some[:, 0]] == use].sum(0)
                    for name, n in zip(("unknown", "unknown_bytes", "odd"), mine[1:], strict=True):
                        total[name] += int(n)
        return total

    def held_out(self, bound: int, *, by_document: bool) -> Iterator[tuple[str, bool]]:
        """The passages with a key below ``bound``, and whether each is held out."""
        for shard, start in zip(self.shards, self.starts, strict=True):
            for number, key, document, text in shard.candidates():
                if (document if by_document else key) < bound:
                    yield text, bool(self.uses[start + number] == _HELD_OUT)

    def tally(self, split: str) -> Tally:
        """What was read, before any of it was left out."""
        tally = Tally()
        self.shards[0].source.parts(split, tally)
        for shard in self.shards:
            tally.left_out += shard.manifest["left_out"]
            tally.characters += shard.manifest["characters"]
            tally.capped |= shard.manifest["capped"]
            tally.odd += int(shard.numbers("rare").reshape(-1, 4)[:, 3].sum())
            for name in Tally.OF_TEXT:
                setattr(tally, name, getattr(tally, name) + shard.manifest["counts"][name])
        tally.left_out = list(dict.fromkeys(tally.left_out))
        return tally


def _first(keys: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of passages with ``keys`` (P,), whose ``numbers`` ascend, the first with each key, in the
    order of the keys; and all others."""
    order = np.argsort(keys, kind="stable")
    again = np.zeros(len(keys), dtype=bool)
    again[1:] = keys[order][1:] == keys[order][:-1]
    return numbers[order[~again]], numbers[order[again]]


def merge(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    shards: dict[str, list[Shard]],
    scratch: Path,
    held_out_file: Path,
    *,
    budget: int,
) -> tuple[dict[str, dict], dict[str, list[str]], np.ndarray]:
    """Write the streams of a language and its held-out passages.

    Args:
        shards: of ``train`` and, if held-out text is given, of ``validation``.
        budget: tokens of held-out text, at most.
    Returns:
        The statistics of both splits, the names of what was not read, and how often each token
        occurs in training (V,).
    Raises:
        UserError: nothing is left to train on or to hold out, or the text is noise.
    """
    given = "validation" in shards
    text = Side(shards["train"], scratch / ".uses")
    other = Side(shards["validation"], scratch / ".uses_given") if given else text
    chosen = _choose(source, text, other, scratch, budget)
    normal = {split: Normalisation(tokenizer) for split in ("train", "held out", "validation")}
    _write_held_out(held_out_file, other, chosen, normal)
    for shard in text.shards:
        normal["train"].add(shard.manifest["normalisation"])
    if not given:
        normal["train"].add(normal["held out"].record(), times=-1)

    statistics, left_out = {}, {}
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    for split, side, use in (("train", text, _TRAIN), ("validation", other, _HELD_OUT)):
        read = side.tally(split) if split == "train" or given else Tally()
        read.refuse_noise(source.text_of(split))
        written = side.write(
            use, scratch, split, counts if split == "train" else np.zeros_like(counts)
        )
        if not written["passages"]:
            raise UserError(source.why_empty(split))
        statistics[split] = {
            "passages": written.pop("passages"),
            "duplicates_dropped": chosen.copies[split],
            **{name: getattr(read, name) for name in Tally.OF_TEXT},
            "capped": read.capped,
            **written,
            **normal[split].summary(),
        }
        left_out[split] = read.left_out
    statistics["validation"] |= {
        "held_out_by": chosen.by,
        "in_training": chosen.known,
        "beyond_budget": chosen.bound < source.bound("validation"),
    }
    for side in {id(text): text, id(other): other}.values():
        side.file.unlink()
    return statistics, left_out, counts


@dataclass(frozen=True)
class _Chosen:
    """How held-out text was chosen.

    Args:
        by: ``given``, ``document`` or ``passage``.
        bound: the keys below it are held out.
        copies: split -> how many duplicates were dropped.
        known: how many passages held out have the letters of a training passage.
    """

    by: str
    bound: int
    copies: dict[str, int]
    known: int


def _choose(source: Source, text: Side, other: Side, scratch: Path, budget: int) -> _Chosen:
    """Set the use of every passage of ``text``, and of the held-out text, if that is another."""
    given = other is not text
    by = source.held_out_of(
        *(sum(shard.manifest[name] for shard in text.shards) for name in ("blocks", "lines"))
    )
    by_document = by == "document"
    kind = "held_documents" if by_document else "held_passages"
    bound, found = 1 << 64, np.empty((0, 2), dtype="<u8")
    for shard in other.shards:  # one by one, since of each there may be as many as are held out
        found = np.concatenate([found, shard.array(kind)])
        lower = bound_within(found[:, 0], found[:, 1], budget)
        bound = min(bound, shard.manifest["bounds"][by_document], lower or bound)
        found = found[found[:, 0] <= np.uint64(bound - 1)]
    if given:
        text.choose(0, by_document=False)
    other.choose(bound, by_document=by_document)

    copies = dict.fromkeys(("train", "validation"), 0)
    if source.drop_duplicates:
        copies["train"] = text.drop_copies(_TRAIN, scratch)
        copies["validation"] = other.drop_copies(_HELD_OUT, scratch)
    known = other.known_in(text, _TRAIN) if by != "passage" else np.empty(0, dtype=np.int64)
    if not given:
        other.uses[known] = _DROPPED
    return _Chosen(by, bound, copies, len(known))


def _write_held_out(
    file: Path, other: Side, chosen: _Chosen, normal: dict[str, Normalisation]
) -> None:
    """Write the held-out passages, and count what normalisation changes: in these (validation),
    and in all with a key below the bound (held out)."""
    with file.open("w", encoding="utf-8") as stream:
        passages = other.held_out(chosen.bound, by_document=chosen.by == "document")
        for texts, kept in _batches(passages):
            normal["held out"].count(texts)
            texts = [text for text, keep in zip(texts, kept, strict=True) if keep]
            if texts:
                normal["validation"].count(texts)
                stream.writelines(f"{json.dumps(text)}\n" for text in texts)


def _batches(passages: Iterator[tuple[str, bool]]) -> Iterator[tuple[list[str], list[bool]]]:
    while batch := [pair for _, pair in zip(range(_AT_ONCE), passages, strict=False)]:
        yield [text for text, _ in batch], [keep for _, keep in batch]
