"""Prepared corpora: the text of one language as a stream of token ids, and the rows cut from it, on
disk and memory-mapped.

A row is whole passages of one language, each ``<s> passage </s>`` as every later reader gets it,
and then padding. Only a passage longer than a row is cut, see :mod:`xmod_lab.text.packing`. Rows of
another length are another plan for the same stream. How a corpus is made is in
:mod:`xmod_lab.text.preparing`.

    <code>-<digest>/
        train.* validation.*    the streams, see :mod:`xmod_lab.text.stream`
        pieces.npy              (V,) how often each token occurs in training
        validation.jsonl        the held-out passages as they were read, one JSON string a line:
                                scores mask stretches of these
        manifest.json           digest, settings, statistics, digests of the files; written last
        rows-<length>/          the plan of the rows of one length, with a manifest.json of its own

Statistics of a split, among others: ``bytes`` of the composed text (NFC), which is what a run
reads; ``tokens`` of the text; ``unknown``, how many of them are <unk>; ``unknown_bytes``, the UTF-8
bytes that these stand for; ``changed``, ``changed_most``, ``changed_passages`` and
``respelling_bits``, see :mod:`xmod_lab.text.normalisation` (of training text before duplicates are
left out); what was left out or replaced when the text was read, see
:class:`xmod_lab.text.source.Tally`; ``padding``, positions of the rows; ``cut``, passages longer
than a row. Of held-out text also ``held_out_by``, see :mod:`xmod_lab.text.holdout`,
``in_training``, how many of its passages are training text too, and ``beyond_budget``, whether
``data.validation_tokens`` limits it.
The manifest's ``left_out`` names the files of each split that were not read.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError, printable
from xmod_lab.remembered import digest_of_files
from xmod_lab.text.stream import Rows, Specials, plan_name

SPLITS = ("train", "validation")
HELD_OUT = "validation.jsonl"
_STRAY = 0.01  # joiners of a passage that do no harm

# R rows, T positions of a row, V vocabulary


@dataclass(frozen=True)
class Corpus:
    """One language, ready to be trained on.

    Args:
        digest: of the text, the tokenizer, and how rows are made of them.
        train, validation: the rows of each split.
        token_counts: (V,) how often each token occurs in training.
        manifest: the content of manifest.json, with the length and the statistics of the rows.
        folder: where it lies.
    """

    code: str
    digest: str
    train: Rows
    validation: Rows
    token_counts: np.ndarray
    manifest: dict
    folder: Path | None = None

    @property
    def held_out_by(self) -> str:
        """How held-out text was chosen, see :mod:`xmod_lab.text.holdout`."""
        return self.manifest["statistics"]["validation"]["held_out_by"]

    def rows(self, split: str, indices: np.ndarray) -> np.ndarray:
        """(len(indices), T) int64 token ids."""
        return getattr(self, split).ids(indices)

    def sample(self, count: int) -> np.ndarray:
        """(R, T) training rows, evenly spaced over the text: ``count``, or all if it has fewer."""
        size = len(self.train)
        return self.rows("train", np.arange(min(size, count)) * size // min(size, count))

    def held_out(self) -> list[str]:
        """The passages of the validation split, composed (NFC), in their order."""
        with (self.folder / HELD_OUT).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def remarks(self) -> list[str]:
        """What was odd about the text when it was read, for the user."""
        found = []
        for split, which in (("train", "text"), ("validation", "held-out text")):
            counts, beside = self.manifest["statistics"][split], self.manifest["left_out"][split]
            if counts["null"]:
                found.append(f"null rows of its {which}, left out: {counts['null']:,}")
            # corpora of earlier versions lack the next two counts
            if n := counts.get("filtered"):
                found.append(f"rows of its {which} that where leaves out: {n:,}")
            if counts.get("capped"):
                found.append(f"the rest of its {which} is left out: it was read up to max_bytes")
            if n := counts["line_breaks"]:
                found.append(
                    f"rows or lines of its {which} with line breaks inside, read as spaces: {n:,}"
                )
            if n := counts["composed"]:
                found.append(
                    f"rows or lines of its {which} with letters in parts (as macOS writes them), "
                    f"composed: {n:,}"
                )
            if (n := counts["changed"].get("made spaces", 0)) > _STRAY * counts["passages"]:
                found.append(
                    f"characters of its {which} that join or separate letters (U+200C and the "
                    f"like), read as spaces, which cuts words: {n:,}; a vocabulary trained with "
                    "data.normalization=nfkc keeps them"
                )
            if counts["odd"]:
                found.append(
                    f"control characters and U+FFFD in its {which}: {counts['odd']:,}; was it "
                    "decoded correctly?"
                )
            if beside:
                more = f" and {len(beside) - 8} more" if len(beside) > 8 else ""
                found.append(f"not read of its {which}: {', '.join(beside[:8])}{more}")
        held_out = self.manifest["statistics"]["validation"]
        if held_out["beyond_budget"]:
            found.append(
                f"its held-out text is limited to {held_out['tokens']:,} tokens, from all over it "
                "(data.validation_tokens)"
            )
        if (shared := held_out["in_training"]) and held_out["held_out_by"] == "given":
            share = 100 * shared / held_out["passages"]
            found.append(
                f"{shared:,} of the {held_out['passages']:,} held-out passages ({share:.0f} %) are "
                "training text as well, apart from numbers, case and punctuation: scores on them "
                "are too good; give other text as validation, or leave validation out"
            )
        return [printable(f"{self.code}: {remark}") for remark in found]


def open_corpus(target: Path, *, expected: str, length: int, rows: str) -> Corpus:
    """Open a prepared corpus, memory-mapped.

    Args:
        expected: digest of the streams; ``rows``: digest of their rows of ``length``.
    Raises:
        UserError: a digest is another one, or a file was changed.
    """
    plan = target / plan_name(length)
    manifest, planned = _checked(target, expected, target), _checked(plan, rows, target)
    for split in SPLITS:
        manifest["statistics"][split] |= planned["statistics"][split]
    manifest["settings"]["length"] = length
    train, validation = (
        Rows(target, split, length, manifest["ids"], Specials(**manifest["specials"]))
        for split in SPLITS
    )
    counts = np.load(target / "pieces.npy")
    return Corpus(manifest["settings"]["code"], rows, train, validation, counts, manifest, target)


def _checked(folder: Path, expected: str, target: Path) -> dict:
    """The manifest of ``folder``, a part of the corpus ``target``."""
    remedy = "delete that folder, or run the same command with rebuild=true"
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"prepared corpus {target}: its manifest cannot be read ({error}); {remedy}"
        ) from error
    if manifest.get("digest") != expected:
        raise UserError(
            f"prepared corpus {target} has digest {manifest.get('digest')}, but the sources, "
            f"tokenizer and settings of this run give {expected}; {remedy}"
        )
    for name, stored in manifest["files"].items():
        file = folder / name
        if not file.is_file() or digest_of_files([file]) != stored:
            raise UserError(f"prepared corpus {target}: {name} is missing or altered; {remedy}")
    return manifest


@dataclass(frozen=True)
class Prepared:
    """Languages that share one vocabulary. ``folder`` has the tokenizer's files, or is a hub id."""

    tokenizer: PreTrainedTokenizerBase
    folder: str
    corpora: dict[str, Corpus]

    @property
    def digest(self) -> str:
        """Of the text, tokenizer and settings of all corpora."""
        parts = [f"{code}={corpus.digest}" for code, corpus in self.corpora.items()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def tokenizers(self) -> dict[str, str]:
        """The digest of the tokenizer that read each language, for state.json."""
        return {
            f"tokenizer/{code}": corpus.manifest["settings"]["tokenizer"]
            for code, corpus in self.corpora.items()
        }
