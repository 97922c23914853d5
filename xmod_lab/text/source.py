"""The text of one language: from a source in the configuration to clean passages.

Which files a name means is in :mod:`xmod_lab.text.parts`, how each kind of file is read in
:mod:`xmod_lab.text.values`, and which passages are held out in :mod:`xmod_lab.text.holdout`.
"""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from xmod_lab.errors import UserError, nearest
from xmod_lab.text.bounds import bounds_in
from xmod_lab.text.holdout import are_documents, bound_of, exact_key, letters_key, sides
from xmod_lab.text.parts import (
    ALL,
    Part,
    Selection,
    has_splits,
    is_lines,
    name_fault,
    names_in,
    parts_of,
    titled,
)
from xmod_lab.text.ranges import ranges_of, ranges_of_lines
from xmod_lab.text.text_files import decoded_lines, passages_in
from xmod_lab.text.values import FILTERED, LONGEST, Column, too_long, values_of

ODD_SHARE = 0.005  # of the characters; text that was decoded correctly has fewer odd ones
_ODD = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd\ufffe\uffff]")
_CHECK_EVERY = 10_000  # passages
_LOOKED_AT = 100_000  # passages of a text of which nothing is left
_SPREAD = 16  # ranges of a text from which a sample is
UNITS = ("line", "paragraph", "document")
_SIZE = re.compile(r"(\d+(?:\.\d+)?(?:e\+?\d+)?)\s*([kKmMgGtT]i?[bB]|[bB])?")
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{ending}": base**power
    for power, letter in enumerate("kmgt", 1)
    for ending, base in (("b", 1000), ("ib", 1024))
}


@dataclass(frozen=True)
class Source:
    """Where the text of one language comes from.

    A passage is a line of a .txt file, or a row of jsonl, a table or a dataset; ``passage`` sets
    it. Line breaks inside a passage become spaces. Passages are composed (NFC): text as macOS
    writes it counts as the same text, with the same duplicates, bytes and tokens. Bytes in a column
    are read as UTF-8, null is counted, and any other type is refused.

    A folder is read in one of three ways:

    - a folder of ``save_to_disk``: as that dataset, and its ``split`` if it has splits;
    - a folder with a README.md that lists configurations (``configs:``, as hub repositories have):
      the files of one configuration and ``split``;
    - any other folder: all files of a known type, at any depth, in the order of their paths. It
      leaves out hidden files and other splits: files or folders called ``test``, ``dev``,
      ``validation`` … or ``test-00000-of-00001``.

    ``files`` and ``max_bytes`` are about ``text`` alone, the others also about ``validation``.

    Args:
        text: path of a .txt, .jsonl, .csv, .tsv (each also .gz, .zst, .xz, .bz2) or .parquet file,
            or of a folder; a pattern of paths (``texts/*.txt``, ``texts/**/*.txt``); a ``datasets``
            hub id; a list of these; or ``embedded:<language>``.
        validation: held-out text, in the same form. ``None`` holds out ``validation_share`` of
            ``text``, by whole documents: text that differs only in numbers is on one side.
        passage: ``line``, ``paragraph`` (a block between blank lines) or ``document`` (a row, or a
            whole .txt file). ``None``: ``line`` in .txt files, ``document`` elsewhere. The lines or
            paragraphs of a row are one document, which is held out as a whole.
        column: field of rows that holds the text.
        where: a bound on a column, such as ``language_score>=0.9``, or a list of them: rows that
            do not meet them all are left out and counted.
        dataset_config: configuration name of a hub id (``20231101.oc``), where it has several.
        split: the split of a hub id, or of a folder with splits.
        revision: the branch, tag or commit of a hub id.
        files: a pattern of paths inside a folder or hub id, or a list of them: these files are
            read, whatever a README.md lists.
        max_bytes: read passages until they have so many UTF-8 bytes, in the order of the files:
            a number, or one with a unit (``100MB``, ``2GiB``).
        key: config key of this source, for messages.
    """

    text: str | list[str]
    validation: str | list[str] | None = None
    passage: str | None = None
    column: str = "text"
    where: str | list[str] | None = None
    dataset_config: str | None = None
    split: str = "train"
    revision: str | None = None
    files: str | list[str] | None = None
    max_bytes: int | str | None = None
    validation_share: float = 0.04
    drop_duplicates: bool = True
    key: str = "lang.NAME"

    def digest(self) -> str:
        """Digest of the settings, of every byte that is read, and of the names left out."""
        content = []
        for text, held_out in ((self.text, False), (self.validation, True)):
            if text is None:
                continue
            found = []
            for name in names_in(text):
                parts, left_out = parts_of(name, self.selection(held_out=held_out))
                ranges = [r for part in parts for r in ranges_of_lines(part, self.unit(part))]
                found.append([[part.digest() for part in ranges], left_out])
            content.append(found)
        share = None if self.has_validation else self.validation_share
        settings = [self.column, share, self.drop_duplicates]
        # settings that earlier versions did not have: the digest of a text read as then stays
        others = {
            "passage": self.passage,
            "where": [astuple(bound) for bound in bounds_in(self.where)],
            "split": None if self.split == ALL.split else self.split,
            "files": self.selection().files,
            "max_bytes": bytes_in(self.max_bytes),
        }
        settings += [[name, value] for name, value in others.items() if value]
        return hashlib.sha256(json.dumps([content, settings]).encode()).hexdigest()

    def selection(self, *, held_out: bool = False) -> Selection:
        """What is read of a folder or dataset in ``text``, or in ``validation``."""
        files = () if held_out or self.files is None else tuple(names_in(self.files))
        return Selection(self.dataset_config, self.split, self.revision, files)

    def unit(self, part: Part) -> str:
        """What a passage of ``part`` is: line, paragraph or document."""
        lines = is_lines(part) or part.kind == "embedded"
        return self.passage or ("line" if lines else "document")

    @property
    def has_validation(self) -> bool:
        """Whether held-out text is given; else it is a share of the text."""
        return self.validation is not None or str(self.text).startswith("embedded:")

    @cached_property
    def held_out_by(self) -> str:
        """How held-out text is chosen: ``given``, or by ``document`` or ``passage``, see
        :mod:`xmod_lab.text.holdout`. Reads the .txt files."""
        documents = lines = 0
        for part in self.parts("train") if not self.has_validation else ():
            if not (is_lines(part) and self.unit(part) == "line"):
                continue
            within = False
            for line in decoded_lines(Path(part.name)):
                documents += not within and not line.isspace()
                within = not line.isspace()
                lines += within
        return self.held_out_of(documents, lines)

    def held_out_of(self, blocks: int, lines: int) -> str:
        """How held-out text is chosen if the .txt files have so many blocks and lines."""
        if self.has_validation:
            return "given"
        of_several = (p for p in self.parts("train") if not is_lines(p))
        if any(self.unit(part) != "document" for part in of_several):
            return "document"  # a row, which has several passages
        return "document" if are_documents(blocks, lines, self.validation_share) else "passage"

    def passages(
        self, split: str, tally: "Tally | None" = None, *, blocks: bool | None = None
    ) -> Iterator[str]:
        """Passages of ``split`` (train or validation), each one line and not empty, duplicates
        included, in constant memory. What is prepared may have fewer: without duplicates, with
        held-out text up to a budget, and without held-out text that is training text as well.

        Args:
            tally: counts what is read and what is left out.
            blocks: whether text is held out by document, if that is known; else .txt files are read
                to find it out, see :attr:`held_out_by`.
        Raises:
            UserError: the source is missing, empty, not UTF-8, lacks the column or has no text;
                it names file and line.
        """
        tally = tally or Tally()
        # a share is held out of the same rows, so both splits read them: count them once
        counts = tally if split == "train" or self.has_validation else Tally()
        text = self.text_of(split)
        for passage in self._side(self.parts(split, counts), split, counts, blocks):
            tally.add_checked(passage, text)
            yield passage
        tally.refuse_noise(text)
        if tally.passages == 0:
            raise UserError(self.why_empty(split))

    def sample(self, most: int, size: int, *, blocks: bool) -> Iterator[str]:
        """Training passages of about ``most`` bytes, duplicates included: all of them if the text
        has no more, else the first ones of up to ``_SPREAD`` of its ranges.

        Args:
            size: bytes of the text.
            blocks: whether text is held out by document.
        """
        ranges, limit = self.parts("train"), bytes_in(self.max_bytes)
        if size > most:
            ranges = self.ranges("train") if limit is None else ranges
            ranges = ranges[:: -(-len(ranges) // _SPREAD)]
            limit = most // len(ranges) if limit is None else min(limit, most)
        groups = [ranges] if self.max_bytes is not None or size <= most else [[r] for r in ranges]
        for parts in groups:
            yield from self._side(parts, "train", Tally(), blocks, limit)

    def _side(
        self,
        parts: list[Part],
        split: str,
        tally: "Tally",
        blocks: bool | None,
        limit: int | None = None,
    ) -> Iterator[str]:
        """Passages of one split in ``parts``, of which ``limit`` bytes are read at most."""
        blocks = self.held_out_by == "document" if blocks is None else blocks
        limit = self._limit(split) if limit is None else limit
        read = self.read(parts, split, tally, blocks=blocks, limit=limit)
        if self.has_validation:
            return (passage for passage, _ in read)
        held_out = split == "validation"
        return (p for p, held, _ in sides(_documents(read), self.bound(split)) if held == held_out)

    def either_way(self, tally: "Tally") -> Iterator[tuple[str, bool, bool]]:
        """All passages of ``text`` in one reading, in constant memory. With each, whether it is
        training text if text is held out by document, and whether it is so if by passage. Which of
        both is true shows at the end, see :meth:`held_out_of`. Raises as :meth:`passages`."""
        bound = self.bound("train")
        read = self.read(self.parts("train"), "train", tally, limit=self._limit("train"))
        for passage, held_out, alone in sides(_documents(read), bound):
            tally.add_checked(passage, self.text)
            if not alone and bound:
                yield passage, not held_out, letters_key(passage) >= bound
            else:
                yield passage, not held_out, not held_out
        tally.refuse_noise(self.text)

    def text_of(self, split: str) -> str | list[str]:
        """The names of what is read of ``split``."""
        given = split == "validation" and self.validation is not None
        return self.validation if given else self.text

    def parts(self, split: str, tally: "Tally | None" = None) -> list[Part]:
        """What is read of ``split``, in order; ``tally`` takes the names of what is left out."""
        selection = self.selection(held_out=split == "validation" and self.validation is not None)
        parts = []
        for name in names_in(self.text_of(split)):
            found, left_out = parts_of(name, selection)
            parts += found
            if tally is not None:
                tally.left_out += left_out
        return parts

    def ranges(self, split: str) -> list[Part]:
        """What is read of ``split``, in order, with large parts in ranges."""
        return [r for part in self.parts(split) for r in ranges_of(part, self.unit(part))]

    def read(
        self,
        parts: list[Part],
        split: str,
        tally: "Tally",
        *,
        blocks: bool = True,
        limit: int | None = None,
    ) -> Iterator[tuple[str, int]]:
        """All passages of ``parts``, each with the number of its document.

        Args:
            blocks: a block of lines between blank lines of a .txt file is a document, and not each
                line by itself.
            limit: bytes after which reading stops.
        """
        found = self._read_all(parts, split, tally, blocks)
        return found if limit is None else _up_to(limit, found, tally)

    def _read_all(
        self, parts: list[Part], split: str, tally: "Tally", blocks: bool
    ) -> Iterator[tuple[str, int]]:
        column = Column(self.column, self.key, bounds_in(self.where))
        document = 0
        for part in parts:
            unit, known = self.unit(part), document
            lines_of_text = is_lines(part) and unit == "line"
            block = blocks and lines_of_text
            within = "document" if is_lines(part) else unit  # a .txt file comes in passages
            document += 1
            if part.within and part.within.inside:
                known = document  # its first lines are of a block that was counted
            for value, where in values_of(part, split, column, unit, tally.left_out):
                if value is FILTERED:
                    tally.filtered += 1
                    continue
                if value is None:
                    tally.null += 1
                    continue
                content = value if isinstance(value, str) else column.decoded(value, where)
                if within == "document" and len(content) > LONGEST:
                    raise too_long(where, unit)
                found = passages_in(content, within)
                if not found:
                    tally.empty += 1
                    document += block
                    continue
                document += not block
                if lines_of_text:
                    tally.lines += 1
                    tally.blocks += document != known
                    known = document
                for lines in found:
                    tally.line_breaks += len(lines) > 1
                    line = " ".join(lines)
                    if len(line) > LONGEST // 4 and len(line.encode()) > LONGEST:
                        raise too_long(where, unit)
                    passage = unicodedata.normalize("NFC", line)
                    tally.composed += passage != line
                    yield passage, document

    def _limit(self, split: str) -> int | None:
        """Bytes after which reading stops: held-out text that is given has no limit."""
        given = split == "validation" and self.has_validation
        return None if given else bytes_in(self.max_bytes)

    def settings(self) -> list:
        """What decides how a part is read, apart from ``max_bytes``."""
        return [self.column, self.passage, [astuple(bound) for bound in bounds_in(self.where)]]

    def bound(self, split: str) -> int:
        """Passages of ``split`` whose keys are below it may be held out."""
        if self.has_validation:
            return 1 << 64 if split == "validation" else 0
        return bound_of(self.validation_share)

    def why_empty(self, split: str) -> str:
        """The message when ``split`` has no passage."""
        tally, text = Tally(), self.text_of(split)
        limit = self._limit(split)
        read, keys, letters = 0, set(), set()
        for passage, _ in self.read(self.parts(split), split, tally, limit=limit):
            read += 1
            keys.add(exact_key(passage))
            letters.add(letters_key(passage))
            if read == _LOOKED_AT:
                break
        if not read:
            rows = ""
            if tally.empty or tally.null or tally.filtered:
                rows = (
                    f" ({tally.empty:,} empty lines or rows, {tally.null:,} null, "
                    f"{tally.filtered:,} left out by where)"
                )
            return (
                f"{titled(text)}: no text for {split}{rows}; expected passages, one a line or row. "
                "Give a file with text"
            )
        copies, alike = "", ""
        if equal := read - len(keys):
            copies = f", {equal:,} of them duplicates of others (left out: data.drop_duplicates)"
        if len(letters) < len(keys):
            alike = f" ({len(letters):,} differ in more than numbers, case and punctuation)"
        first = "at least " if read == _LOOKED_AT else ""
        side = "is held out" if split == "validation" else "is left to train on"
        return (
            f"{titled(text)}: no text for {split}: it has {first}{read:,} passages{copies}; "
            f"{len(keys):,} are different{alike}, and none {side} with "
            f"data.validation_share={self.validation_share}. Give more text, or held-out text as "
            f"{self.key}.validation"
        )


def _documents(read: Iterator[tuple[str, int]]) -> Iterator[Iterator[str]]:
    """The passages of each document."""
    return ((passage for passage, _ in group) for _, group in groupby(read, key=itemgetter(1)))


def _up_to(
    most: int, passages: Iterator[tuple[str, int]], tally: "Tally"
) -> Iterator[tuple[str, int]]:
    """``passages`` until they have ``most`` bytes."""
    for passage, document in passages:
        if most <= 0:
            tally.capped = True
            return
        most -= len(passage.encode())
        yield passage, document


@dataclass
class Tally:
    """Counts of what was read of a split.

    Args:
        bytes: UTF-8 bytes of the passages, without line ends.
        null: rows without a value.
        empty: lines and rows of white space only.
        line_breaks: rows and lines with line breaks inside, which became spaces.
        composed: rows and lines that were not in NFC.
        filtered: rows that a bound of ``where`` leaves out. If a share of the text is held out,
            these five are counted for both splits under train.
        capped: whether text was left out after ``max_bytes``.
        lines, blocks: passages that are lines of .txt files, and how many blocks they are in.
        odd: control characters, and U+FFFD, the mark of undecodable bytes.
        left_out: names of files that lie beside those that are read, and why they are left out.
    """

    # counted before passages are chosen
    OF_TEXT = ("null", "empty", "line_breaks", "composed", "filtered")

    passages: int = 0
    bytes: int = 0
    null: int = 0
    empty: int = 0
    line_breaks: int = 0
    composed: int = 0
    filtered: int = 0
    capped: bool = False
    lines: int = 0
    blocks: int = 0
    characters: int = 0
    odd: int = 0
    left_out: list[str] = field(default_factory=list)

    def add(self, passage: str, size: int) -> None:
        """Count a passage of ``size`` bytes."""
        self.passages += 1
        self.bytes += size
        self.characters += len(passage)
        if not passage.isprintable() or "\ufffd" in passage:
            self.odd += len(_ODD.findall(passage))

    def add_checked(self, passage: str, text: str | list[str]) -> None:
        """Count a passage, and raise UserError if much of ``text`` is noise so far."""
        self.add(passage, len(passage.encode()))
        if self.passages % _CHECK_EVERY == 0:
            self.refuse_noise(text)

    def add_plain(self, passages: list[str], encoded: list[bytes]) -> None:
        """Count passages without odd characters."""
        self.passages += len(passages)
        self.bytes += sum(map(len, encoded))
        self.characters += sum(map(len, passages))

    def refuse_noise(self, text: str | list[str]) -> None:
        """Raises UserError if more than ten characters, and more than ``ODD_SHARE`` of all, are
        odd."""
        if self.odd > max(10, ODD_SHARE * self.characters):
            share = 100 * self.odd / self.characters
            raise UserError(
                f"{titled(text)}: {share:.1f} % of its characters are control characters or "
                f"U+FFFD, the mark of undecodable bytes (allowed: {100 * ODD_SHARE} %): it was "
                f"read "
                "or written in a wrong encoding. Make it again from its original, as UTF-8"
            )


def bytes_in(size: object) -> int | None:
    """A number of bytes: 1000, ``100MB`` or ``2 GiB``; ``None`` for none.

    Raises:
        UserError: it is no number of bytes, or not more than 0.
    """
    if size is None:
        return None
    found = _SIZE.fullmatch(str(size))
    number = None if found is None else float(found[1]) * _UNITS[(found[2] or "").lower()]
    if isinstance(size, bool) or number is None or number < 1:
        raise UserError(f"{size!r} is no number of bytes; write e.g. 1000000, 100MB or 2GiB")
    return round(number)


def check_source(source: Source, where: str) -> list[str]:
    """Faults that can be found without reading the text, each with its remedy. ``where``: the
    config key."""
    faults = []
    for key, read in (
        ("where", bounds_in),
        ("max_bytes", bytes_in),
        ("files", lambda files: None if files is None else names_in(files)),
    ):
        try:
            read(getattr(source, key))
        except UserError as error:
            faults.append(f"{where}.{key}: {error}")
    for key in ("column", "dataset_config", "split", "revision"):  # those of a pack's manifest
        if not isinstance(value := getattr(source, key), (str, type(None))):
            faults.append(f"{where}.{key}: {value!r} is no name")
    if source.passage not in (None, *UNITS):
        faults.append(
            f"{where}.passage is '{source.passage}'; allowed are {', '.join(UNITS)}, or null."
            f"{nearest(str(source.passage), UNITS)}"
        )
    if faults:
        return faults
    for key, text in (("text", source.text), ("validation", source.validation)):
        if text is None and key == "validation":
            continue
        selection = source.selection(held_out=key == "validation")
        try:
            names = names_in(text)
            found = [name_fault(name, len(names), selection) for name in names]
        except UserError as error:
            found = [str(error)]
        faults += [f"{where}.{key}: {fault}" for fault in found if fault]
    return faults or [f"{where}.{fault}" for fault in _unused(source)]


def _unused(source: Source) -> list[str]:
    """Settings that say nothing about a text of this type."""
    names = names_in(source.text)
    parts = [part for name in names for part in parts_of(name, source.selection())[0]]
    for name in [] if source.validation is None else names_in(source.validation):
        names.append(name)
        parts += parts_of(name, source.selection(held_out=True))[0]
    without_rows = [p.name for p in parts if is_lines(p) or p.kind == "embedded"]
    hub_ids = any(part.kind == "loaded" and not Path(part.name).exists() for part in parts)
    split = source.split != ALL.split
    faults = []
    if source.passage not in (None, "line") and {part.kind for part in parts} == {"embedded"}:
        faults.append("passage: leave it out: a passage of embedded text is a line")
    if source.where and without_rows:
        faults.append(f"where: leave it out, or {without_rows[0]}: only rows have columns")
    if source.revision and not hub_ids:
        faults.append("revision: leave it out: only the id of a dataset on the hub has revisions")
    if source.files and not (hub_ids or any(map(os.path.isdir, names_in(source.text)))):
        faults.append("files: leave it out, or give a folder or a hub id as text, which has files")
    if source.files and (split or source.dataset_config):
        faults.append("files: leave out split and dataset_config, or files: each chooses files")
    elif split and not any(map(has_splits, names)):
        faults.append(
            "split: leave it out: only hub ids, and folders of datasets, have splits; choose files "
            "of a folder by files"
        )
    return faults
