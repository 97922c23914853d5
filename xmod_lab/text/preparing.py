"""How a corpus is made: passages are read, tokenised, packed into rows and written with their
statistics. What lies on disk is in :mod:`xmod_lab.text.corpus`."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError
from xmod_lab.files import build_folder, digest_of_files
from xmod_lab.foreign import tokenizer_digest
from xmod_lab.text.corpus import HELD_OUT, SPLITS, Corpus, open_corpus
from xmod_lab.text.encoding import encode
from xmod_lab.text.normalisation import Normalisation
from xmod_lab.text.packing import PackedRow, best_fit, parts_of_passage
from xmod_lab.text.source import Source, Tally

FORMAT = 8  # raise when the same settings would give other rows


def prepare_corpus(
    code: str,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    folder: Path,
    rebuild: bool = False,
) -> Corpus:
    """The prepared corpus of ``code``: opened if it lies under ``folder``, else made there.

    Args:
        length: T, positions of a row.
    Raises:
        UserError: the text cannot be used, or the folder does not match its digest.
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
                f"the text of {code} is shorter than a row: {tally.extra['tokens']:,} tokens in "
                f"{tally.passages:,} passage(s){copies}, while a row has {length} "
                "(data.row_length); give more text, or set a smaller data.row_length"
            )
        # without one, datasets writes a random one
        fingerprint = hashlib.sha256(f"{digest} {split}".encode()).hexdigest()[:16]
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
            "filtered": tally.filtered,
            "capped": tally.capped,
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
    np.save(array, counts)  # in memory: on a full disk NumPy's own writer loses the error number
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
    """``passages``, each written into ``file`` as it passes."""
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
    """Rows of the ``passages`` of one split. Fills ``tally`` and counts the tokens in
    ``counts``."""
    tokens = unknown = unknown_bytes = cut = 0
    normalisation = Normalisation(tokenizer)

    def parts() -> Iterator[tuple[list[int], int]]:
        nonlocal tokens, unknown, unknown_bytes, cut
        for ids, size, not_spelt in encode(normalisation.through(passages), tokenizer):
            tokens += len(ids)
            unknown += ids.count(tokenizer.unk_token_id)
            unknown_bytes += not_spelt
            if counts is not None:
                np.add.at(counts, ids, 1)  # takes time by the tokens, not by the vocabulary
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
