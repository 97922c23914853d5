"""The text of one language: from a source in the configuration to clean passages.

Which files a name means is in :mod:`xmod_lab.text.parts`, how each kind of file is read in
:mod:`xmod_lab.text.values`, and which passages are held out in :mod:`xmod_lab.text.holdout`.
"""

import hashlib
import json
import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from xmod_lab.errors import UserError
from xmod_lab.text.holdout import Keys, are_documents, exact_key, letters_key, one_side
from xmod_lab.text.parts import content_digest, is_lines, name_fault, names_in, parts_of, titled
from xmod_lab.text.text_files import decoded_lines, lines_in
from xmod_lab.text.values import Column, values_of

ODD_SHARE = 0.005  # of the characters; text that was decoded correctly has fewer odd ones
_ODD = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd\ufffe\uffff]")
_CHECK_EVERY = 10_000  # passages


@dataclass(frozen=True)
class Source:
    """Where the text of one language comes from.

    A passage is a line of a .txt file, or a row of jsonl, a table or a dataset. Line breaks inside
    a row become spaces. Passages are composed (NFC): text as macOS writes it counts as the same
    text, with the same duplicates, bytes and tokens. Bytes in a column are read as UTF-8, null is
    counted, and any other type is refused.

    A folder is read in one of three ways:

    - a folder of ``save_to_disk``: as that dataset, and its split ``train`` if it has splits;
    - a folder with a README.md that lists configurations (``configs:``, as hub repositories have),
      or with a ``dataset_config``: by ``datasets``, split ``train``;
    - any other folder: all files of a known type, at any depth, in the order of their paths. It
      leaves out hidden files and other splits: files or folders called ``test``, ``dev``,
      ``validation`` … or ``test-00000-of-00001``.

    Args:
        text: path of a .txt, .jsonl, .csv, .tsv (each also .gz) or .parquet file, or of a folder;
            a pattern of paths (``texts/*.txt``, ``texts/**/*.txt``); a ``datasets`` hub id; a list
            of these; or ``embedded:<language>``.
        validation: held-out text, in the same form. ``None`` holds out ``validation_share`` of
            ``text``, by whole documents: text that differs only in numbers is on one side.
        column: field of rows that holds the text.
        dataset_config: configuration name of a hub id (``20231101.oc``), where it has several.
        key: config key of this source, for messages.
    """

    text: str | list[str]
    validation: str | list[str] | None = None
    column: str = "text"
    dataset_config: str | None = None
    validation_share: float = 0.04
    drop_duplicates: bool = True
    key: str = "lang.NAME"

    def digest(self) -> str:
        """Digest of the settings, of every byte that is read, and of the names left out."""
        content = []
        for text in (self.text, self.validation):
            if text is None:
                continue
            found = []
            for name in names_in(text):
                parts, left_out = parts_of(name, self.dataset_config)
                digests = [content_digest(part.name, self.dataset_config) for part in parts]
                found.append([digests, left_out])
            content.append(found)
        share = None if self.has_validation else self.validation_share
        settings = [self.column, share, self.drop_duplicates]
        return hashlib.sha256(json.dumps([content, settings]).encode()).hexdigest()

    @property
    def has_validation(self) -> bool:
        """Whether held-out text is given; else it is a share of the text."""
        return self.validation is not None or str(self.text).startswith("embedded:")

    @cached_property
    def held_out_by(self) -> str:
        """How held-out text is chosen: ``given``, or by ``document`` or ``passage``, see
        :mod:`xmod_lab.text.holdout`. Reads the .txt files."""
        if self.has_validation:
            return "given"
        documents = lines = 0
        for name in names_in(self.text):
            for part in filter(is_lines, parts_of(name, self.dataset_config)[0]):
                within = False
                for line in decoded_lines(Path(part.name)):
                    documents += not within and not line.isspace()
                    within = not line.isspace()
                    lines += within
        return "document" if are_documents(documents, lines, self.validation_share) else "passage"

    def passages(
        self, split: str, tally: "Tally | None" = None, known: Keys | None = None
    ) -> Iterator[str]:
        """Passages of ``split`` (train or validation), each one line and not empty; each only once
        if ``drop_duplicates``.

        Args:
            tally: counts what is read and what is left out.
            known: ``letters`` of the tally of the training text, if that was read. Held-out
                passages in it are counted, and left out if text is held out by document.
        Raises:
            UserError: the source is missing, empty, not UTF-8, lacks the column or has no text;
                it names file and line.
        """
        tally = tally or Tally()
        given, compared = self.has_validation, self.held_out_by != "passage"
        if split == "validation" and known is None and compared and not given:
            training = Tally()
            deque(self.passages("train", training), maxlen=0)
            known = training.letters
        text = (
            self.validation if split == "validation" and self.validation is not None else self.text
        )
        # a share is held out of the same rows, so both splits read them: count them once
        counts = tally if split == "train" or given else Tally()
        for passage in self._side(text, split, counts):
            if self.drop_duplicates:
                key = exact_key(passage)
                if key in tally.seen:
                    tally.duplicates += 1
                    continue
                tally.seen.add(key)
            if compared:
                key = letters_key(passage)
                if known is not None and key in known:
                    tally.known += 1
                    if not given:
                        continue
                tally.letters.add(key)
            tally.add(passage, len(passage.encode()))
            if tally.passages % _CHECK_EVERY == 0:
                tally.refuse_noise(text)
            yield passage
        tally.refuse_noise(text)
        if tally.passages == 0:
            raise UserError(self._why_empty(text, split))

    def _side(self, text: str | list[str], split: str, tally: "Tally") -> Iterator[str]:
        """Passages of one split, duplicates included."""
        read = self._read(text, split, tally)
        if self.has_validation:
            return (passage for passage, _ in read)
        documents = (
            (passage for passage, _ in group) for _, group in groupby(read, key=itemgetter(1))
        )
        return one_side(documents, self.validation_share, held_out=split == "validation")

    def _read(self, text: str | list[str], split: str, tally: "Tally") -> Iterator[tuple[str, int]]:
        """Passages of all that ``text`` names, each with the number of its document."""
        column = Column(self.column, self.key)
        document = 0
        for name in names_in(text):
            parts, left_out = parts_of(name, self.dataset_config)
            tally.left_out += left_out
            for part in parts:
                block = self.held_out_by == "document" and is_lines(part)
                document += 1
                for value, where in values_of(
                    part, split, column, self.dataset_config, tally.left_out
                ):
                    if value is None:
                        tally.null += 1
                        continue
                    lines = lines_in(
                        value if isinstance(value, str) else column.decoded(value, where)
                    )
                    if not lines:
                        tally.empty += 1
                        document += block
                        continue
                    tally.line_breaks += len(lines) > 1
                    line = " ".join(lines)
                    passage = unicodedata.normalize("NFC", line)
                    tally.composed += passage != line
                    document += not block
                    yield passage, document

    def _why_empty(self, text: str | list[str], split: str) -> str:
        """The message when ``split`` has no passage."""
        tally = Tally()
        read = [passage for passage, _ in self._read(text, split, tally)]
        if not read:
            rows = ""
            if tally.empty or tally.null:
                rows = f" ({tally.empty:,} empty lines or rows, {tally.null:,} null)"
            return (
                f"{titled(text)}: no text for {split}{rows}; expected passages, one a line or row. "
                "Give a file with text"
            )
        different, letters = len(set(read)), len(set(map(letters_key, read)))
        copies, alike = "", ""
        if equal := len(read) - different:
            copies = f", {equal:,} of them duplicates of others (left out: data.drop_duplicates)"
        if letters < different:
            alike = f" ({letters:,} differ in more than numbers, case and punctuation)"
        side = "is held out" if split == "validation" else "is left to train on"
        return (
            f"{titled(text)}: no text for {split}: it has {len(read):,} passages{copies}; "
            f"{different:,} are different{alike}, and none {side} with "
            f"data.validation_share={self.validation_share}. Give more text, or held-out text as "
            f"{self.key}.validation"
        )


@dataclass
class Tally:
    """Counts of what was read of a split.

    Args:
        bytes: UTF-8 bytes of the passages, without line ends.
        null: rows without a value.
        empty: lines and rows of white space only.
        line_breaks: rows and lines with line breaks inside, which became spaces.
        composed: rows and lines that were not in NFC. If a share of the text is held out, these
            four are counted for both splits under train.
        odd: control characters, and U+FFFD, the mark of undecodable bytes.
        known: held-out passages with the letters of a training passage. If text is held out by
            document, they are left out and in no other count.
        left_out: names of files that lie beside those that are read, and why they are left out.
        seen, letters: keys of the passages: exact, and by their letters alone; the latter are
            filled unless text is held out by passage.
        extra: counts of the tokens, added by :mod:`xmod_lab.text.preparing`.
    """

    passages: int = 0
    duplicates: int = 0
    bytes: int = 0
    null: int = 0
    empty: int = 0
    line_breaks: int = 0
    composed: int = 0
    characters: int = 0
    odd: int = 0
    known: int = 0
    left_out: list[str] = field(default_factory=list)
    seen: Keys = field(default_factory=Keys, repr=False)
    letters: Keys = field(default_factory=Keys, repr=False)
    extra: dict = field(default_factory=dict)

    def add(self, passage: str, size: int) -> None:
        """Count a passage of ``size`` bytes."""
        self.passages += 1
        self.bytes += size
        self.characters += len(passage)
        if not passage.isprintable() or "\ufffd" in passage:
            self.odd += len(_ODD.findall(passage))

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


def check_source(source: Source, where: str) -> list[str]:
    """Faults that can be found without reading the text, each with its remedy. ``where``: the
    config key."""
    faults = []
    for key, text in (("text", source.text), ("validation", source.validation)):
        if text is None and key == "validation":
            continue
        try:
            names = names_in(text)
            found = [name_fault(name, len(names), source.dataset_config) for name in names]
        except UserError as error:
            found = [str(error)]
        faults += [f"{where}.{key}: {fault}" for fault in found if fault]
    return faults
