"""Prepared corpora: one language's text as rows of piece ids, on disk, memory-mapped, keyed by a digest.

A row is whole passages of one language, each ``<s> passage </s>`` as every later reader will give it, and padding behind them; only a
passage that is longer than a row is cut, see :mod:`xmod_lab.text.packing`.

    <code>-<digest>/
        train/ validation/     ``datasets`` folders: input_ids (T), bytes (UTF-8 bytes of the passages that end in the row), padding
                               (positions)
        pieces.npy             (V,) how often each piece occurs in training
        validation.jsonl       the held-out passages as they were read, a string of JSON a line: what scores hide is chosen in them
        manifest.json          digest, settings, statistics, digests of the files; written last

Statistics of a split, among others: ``bytes``, of the composed text (NFC), which is what a run reads; ``tokens``, pieces of the text;
``unknown``, how many of them are <unk>; ``unknown_bytes``, the UTF-8 bytes of the text that these stand for; ``changed``,
``changed_most``, ``changed_passages`` and ``respelling_bits``, see :mod:`xmod_lab.text.normalisation`; what was left out or replaced when
the text was read (see :class:`xmod_lab.text.corpus.Tally`); ``padding``, positions of the rows; ``cut``, passages that are longer than a row. Of held-out
text also ``held_out_by`` (see :mod:`xmod_lab.text.holdout`) and ``in_training``, how many of its passages are training text too. The manifest's
``left_out`` names the files of each split that were not read.
"""

import hashlib
import io
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from tokenizers import Encoding
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError, printable
from xmod_lab.files import build_folder
from xmod_lab.foreign import tokenizer_digest
from xmod_lab.text.corpus import Source, Tally, digest_of_files
from xmod_lab.text.normalisation import Normalisation
from xmod_lab.text.packing import PackedRow, best_fit, parts_of_passage

FORMAT = 8  # raise when the same settings would give other rows
SPLITS = ("train", "validation")
HELD_OUT = "validation.jsonl"
_STRAY = 0.01  # joiners of a passage that do no harm


@dataclass(frozen=True)
class Corpus:
    """One language, ready to be trained on. ``manifest`` holds its counts; ``piece_counts`` is (V,); ``folder`` is where it lies."""

    code: str
    digest: str
    train: Dataset
    validation: Dataset
    piece_counts: np.ndarray
    manifest: dict
    folder: Path | None = None
    # split -> its rows, as they lie in memory
    _views: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def rows(self, split: str, indices: np.ndarray) -> np.ndarray:
        """(len(indices), T) int64 piece ids."""
        if split not in self._views:
            self._views[split] = _memory_of(
                getattr(self, split), self.manifest["settings"]["length"]
            )
        starts, blocks = self._views[split]
        found = np.empty((len(indices), self.manifest["settings"]["length"]), dtype=np.int64)
        for row, index in zip(found, np.asarray(indices), strict=True):
            block = np.searchsorted(starts, index, side="right") - 1
            row[:] = blocks[block][index - starts[block]]
        return found

    def remarks(self) -> list[str]:
        """What was odd about the text when it was read, for the user."""
        found = []
        for split, which in (("train", "text"), ("validation", "held-out text")):
            counts, beside = self.manifest["statistics"][split], self.manifest["left_out"][split]
            if counts["null"]:
                found.append(f"null rows of its {which}, left out: {counts['null']:,}")
            if counts["line_breaks"]:
                n = counts["line_breaks"]
                found.append(
                    f"rows or lines of its {which} with line breaks inside, read as spaces: {n:,}"
                )
            if counts["composed"]:
                n = counts["composed"]
                found.append(
                    f"rows or lines of its {which} with letters in parts (as macOS writes them), composed: {n:,}"
                )
            if (n := counts["changed"].get("made spaces", 0)) > _STRAY * counts["passages"]:
                found.append(
                    f"characters of its {which} that join or part letters (U+200C and the like), read as spaces, which cuts words: "
                    f"{n:,}; a vocabulary that is trained with data.normalization=nfkc keeps them"
                )
            if counts["odd"]:
                found.append(
                    f"control characters and U+FFFD in its {which}: {counts['odd']:,}; was it decoded rightly?"
                )
            if beside:
                more = f" and {len(beside) - 8} more" if len(beside) > 8 else ""
                found.append(f"not read of its {which}: {', '.join(beside[:8])}{more}")
        held_out = self.manifest["statistics"]["validation"]
        if (shared := held_out["in_training"]) and held_out["held_out_by"] == "given":
            share = 100 * shared / held_out["passages"]
            found.append(
                f"{shared:,} of the {held_out['passages']:,} held-out passages ({share:.0f} %) are training text as well, numbers, case and "
                "punctuation apart: scores on them are too good; give other text as validation, or leave validation out"
            )
        return [printable(f"{self.code}: {remark}") for remark in found]

    def __getstate__(self) -> dict:
        """For a loader's worker that is not forked: without the views, which would be copied."""
        return {**vars(self), "_views": {}}

    def held_out(self) -> list[str]:
        """The passages of the validation split, composed (NFC), in their order."""
        with (self.folder / HELD_OUT).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def sample(self, count: int) -> np.ndarray:
        """(R, T) training rows, evenly spaced over the text; all where there are fewer than ``count``."""
        size = len(self.train)
        return self.rows("train", np.arange(min(size, count)) * size // min(size, count))


def _memory_of(part: Dataset, length: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Where each block of a split begins, and the blocks, (rows, ``length``) int32: views of the mapped file, nothing is read.

    ``part[i]`` gives the same by way of Arrow's types, which takes longer than to hide the row's pieces.
    """
    assert part._indices is None, "a selection of rows lies elsewhere"
    blocks = [
        chunk.flatten().to_numpy().reshape(len(chunk), length)
        for chunk in part.data.column("input_ids").chunks
    ]
    return np.cumsum([0, *map(len, blocks[:-1])]), blocks


def prepare_corpus(
    code: str,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    folder: Path,
    rebuild: bool = False,
) -> Corpus:
    """The prepared corpus of ``code``: opened when it lies under ``folder``, else made there.

    Raises:
        UserError: the text cannot be used, or what lies there does not match its digest.
    """
    settings = {
        "format": FORMAT,
        "code": code,
        "source": source.digest(),
        "tokenizer": tokenizer_digest(tokenizer),
        "length": length,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    target = folder / f"{code}-{digest[:16]}"

    def write(scratch: Path) -> None:
        _write(scratch, code, source, tokenizer, length, digest, settings)

    build_folder(target, write, rebuild=rebuild)
    return open_corpus(target, expected=digest)


def open_corpus(target: Path, *, expected: str) -> Corpus:
    """Open a prepared corpus, memory-mapped, after checking its digest and its files."""
    remedy = "delete that folder, or run the same command with rebuild=true"
    try:
        manifest = json.loads((target / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"prepared corpus {target}: its manifest cannot be read ({error}); {remedy}"
        ) from error
    if manifest.get("digest") != expected:
        raise UserError(
            f"prepared corpus {target} has digest {manifest.get('digest')}, but the sources, tokenizer and "
            f"settings of this run give {expected}; {remedy}"
        )
    for name, stored in manifest["files"].items():
        file = target / name
        if not file.is_file() or digest_of_files([file]) != stored:
            raise UserError(f"prepared corpus {target}: {name} is missing or altered; {remedy}")
    train, validation = (
        datasets.load_from_disk(target / split).with_format("numpy") for split in SPLITS
    )
    counts = np.load(target / "pieces.npy")
    return Corpus(
        manifest["settings"]["code"], expected, train, validation, counts, manifest, target
    )


def _write(
    scratch: Path,
    code: str,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    digest: str,
    settings: dict,
) -> None:
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    statistics, left_out, known = {}, {}, None
    features = Features(
        {
            "input_ids": List(Value("int32"), length=length),
            "bytes": Value("int64"),
            "padding": Value("int32"),
        }
    )
    for split in SPLITS:
        tally, empty = Tally(), 0
        stream = scratch / f"{split}.arrow"
        passages = source.passages(split, tally, known)
        if split == "validation":
            passages = _written(passages, scratch / HELD_OUT)
        packed = _pack(passages, tokenizer, length, tally, counts if split == "train" else None)
        with ArrowWriter(path=str(stream), features=features) as writer:
            for row in tqdm(
                packed, desc=f"packing {code}, {split}", unit=" rows", leave=False, disable=None
            ):
                ids, padding = row.padded(length, tokenizer.pad_token_id), length - len(row.ids)
                writer.write({"input_ids": ids, "bytes": row.bytes, "padding": padding})
                empty += padding
            rows, _ = writer.finalize()
        if split == "train" and (rows * length - empty < length or tally.extra["tokens"] == 0):
            copies = (
                f", after {tally.duplicates:,} duplicates were left out" if tally.duplicates else ""
            )
            raise UserError(
                f"the text of {code} is shorter than a row: {tally.extra['tokens']:,} pieces in {tally.passages:,} passage(s)"
                f"{copies}, while a row has {length} (data.row_length); give more text, or set a smaller data.row_length"
            )
        fingerprint = hashlib.sha256(f"{digest} {split}".encode()).hexdigest()[
            :16
        ]  # else a random one is written
        Dataset(Dataset.from_file(str(stream)).data, fingerprint=fingerprint).save_to_disk(
            scratch / split
        )
        stream.unlink()
        statistics[split] = {
            "passages": tally.passages,
            "duplicates_dropped": tally.duplicates,
            "null": tally.null,
            "empty": tally.empty,
            "line_breaks": tally.line_breaks,
            "composed": tally.composed,
            "odd": tally.odd,
            "bytes": tally.bytes,
            "rows": rows,
            "padding": empty,
            **tally.extra,
        }
        left_out[split] = tally.left_out
        known = tally.letters
    statistics["validation"] |= {"held_out_by": source.held_out_by, "in_training": tally.known}
    array = io.BytesIO()
    np.save(array, counts)  # NumPy's own writer turns a full disk into an error without a number
    (scratch / "pieces.npy").write_bytes(array.getbuffer())
    files = sorted(p for p in scratch.rglob("*") if p.is_file())
    manifest = {
        "digest": digest,
        "settings": settings,
        "statistics": statistics,
        "left_out": left_out,
        "files": {str(p.relative_to(scratch)): digest_of_files([p]) for p in files},
    }
    (scratch / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _written(passages: Iterator[str], file: Path) -> Iterator[str]:
    """``passages``, each of which is written into ``file`` as it passes."""
    with file.open("w", encoding="utf-8") as stream:
        for passage in passages:
            stream.write(json.dumps(passage) + "\n")
            yield passage


def _pack(
    passages: Iterator[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    tally: Tally,
    counts: np.ndarray | None,
) -> Iterator[PackedRow]:
    """Rows of the ``passages`` of one split. Fills ``tally`` and adds the pieces seen to ``counts``."""
    tokens = unknown = unknown_bytes = cut = 0
    normalisation = Normalisation(tokenizer)

    def parts() -> Iterator[tuple[list[int], int]]:
        nonlocal tokens, unknown, unknown_bytes, cut
        for ids, size, not_spelt in encode(normalisation.through(passages), tokenizer):
            tokens += len(ids)
            unknown += ids.count(tokenizer.unk_token_id)
            unknown_bytes += not_spelt
            if counts is not None:
                np.add.at(counts, ids, 1)  # a step for each piece, none for each of the vocabulary
            *before, last = parts_of_passage(
                ids, length, tokenizer.bos_token_id, tokenizer.eos_token_id
            )
            cut += bool(before)
            yield from ((part, 0) for part in before)
            yield last, size

    yield from best_fit(parts(), length)
    tally.extra = {
        "tokens": tokens,
        "unknown": unknown,
        "unknown_bytes": unknown_bytes,
        "cut": cut,
        **normalisation.summary(),
    }


def encode(
    passages: Iterator[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], int, int]]:
    """Ids, UTF-8 bytes, and bytes behind unknown pieces of each passage."""
    for text, encoding, unknown in encodings(passages, tokenizer):
        yield encoding.ids, len(text.encode()), unknown


def encodings(
    passages: Iterator[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, Encoding, int]]:
    """Each passage, its pieces with their places in it, and the bytes behind unknown ones. ``<mask>`` and its like inside the text
    are text, not special pieces."""
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        while batch := list(islice(passages, 1024)):
            for text, encoding in zip(
                batch, backend.encode_batch(batch, add_special_tokens=False), strict=True
            ):
                yield text, encoding, _unknown_bytes(text, encoding, tokenizer.unk_token_id)
    finally:
        backend.encode_special_tokens = before


def _unknown_bytes(text: str, encoding: Encoding, unk_id: int) -> int:
    """UTF-8 bytes of the characters of ``text`` that an unknown piece stands for, each counted once."""
    if unk_id not in encoding.ids:
        return 0
    size = done = 0
    following = [*(start for start, _ in encoding.offsets[1:]), len(text)]
    for piece, (start, end), limit in zip(encoding.ids, encoding.offsets, following, strict=True):
        if piece == unk_id:
            while end < limit and unicodedata.combining(
                text[end]
            ):  # an accent that was joined to its letter
                end += 1
            size += len(
                text[max(start, done) : end].encode()
            )  # one character may be several pieces: ﷺ is four words
            done = max(done, end)
    return size
