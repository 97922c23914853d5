"""Reading text. A source is files, folders, a ``datasets`` id or ``embedded:<language>``; out come clean passages.

What is left out on the way is counted in a :class:`Tally` or named there.
"""

import hashlib
import json
import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from xmod_lab.errors import UserError, nearest
from xmod_lab.files import digest_of_files
from xmod_lab.hub import unanswered_fault
from xmod_lab.text.holdout import Keys, are_documents, exact_key, letters_key, one_side
from xmod_lab.text.sources import (
    FILE_TYPES,
    GIVE,
    TABLES,
    Part,
    is_text_file,
    names_in,
    parts_of,
    titled,
)
from xmod_lab.text.table_files import table_cells
from xmod_lab.text.text_files import decoded_lines, file_fault, json_rows, lines_in

if TYPE_CHECKING:
    import pyarrow

EMBEDDED = Path(__file__).parent / "embedded"
ODD_SHARE = 0.005  # of the characters; text that was decoded rightly has fewer control and replacement characters
_ODD = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd\ufffe\uffff]")
_CHECK_EVERY = 10_000  # passages
_AS_BYTES = {"string": "binary", "large_string": "large_binary", "string_view": "binary_view"}
_TEXT_TYPES = (*_AS_BYTES, *_AS_BYTES.values(), "null")


@dataclass(frozen=True)
class Source:
    """Where one language's text comes from.

    A passage is a line of a .txt file, or a row of jsonl, a table or a dataset, as :func:`xmod_lab.text.text_files.one_line`
    gives it: line breaks inside a row become spaces. It is composed (NFC), so that text as macOS writes it is the same text: the same
    passages are held out, the same are duplicates, and they have the same bytes and pieces. Bytes in a column are read as UTF-8, null
    is counted, any other type
    is refused.

    A folder is read thus:

    - one that ``save_to_disk`` wrote as what it is; of several splits ``train``;
    - one whose README.md has a list of configurations (``configs:``, as repositories of the hub have), or for which
      ``dataset_config`` is given, by ``datasets``, split ``train``;
    - of any other every file of a known type, at any depth, in the order of their paths, but for hidden ones and those of another
      split: called ``test``, ``dev``, ``validation`` … or ``test-00000-of-00001``, or in a folder of such a name.

    Args:
        text: path of a .txt, .jsonl, .csv, .tsv (.gz of these) or .parquet file or of a folder; a pattern of paths
            (``texts/*.txt``, ``texts/**/*.txt``); a ``datasets`` hub id; a list of all these; or ``embedded:<language>``.
        validation: the same for held-out text; ``None`` holds out ``validation_share`` of ``text``, whole documents, so that what
            differs in numbers alone never ends up on both sides; see :mod:`xmod_lab.text.holdout`.
        column: field of rows that holds the text.
        dataset_config: configuration name of a hub id (``20231101.oc``), where it has several.
        key: what the configuration calls this source, for messages.
    """

    text: str | list[str]
    validation: str | list[str] | None = None
    column: str = "text"
    dataset_config: str | None = None
    validation_share: float = 0.04
    drop_duplicates: bool = True
    key: str = "lang.NAME"

    def digest(self) -> str:
        """Digest of the settings, of every byte that the source reads, and of the names of what it leaves out."""
        content = [self._content(text) for text in (self.text, self.validation) if text is not None]
        settings = [
            self.column,
            self.validation_share if not self.has_validation else None,
            self.drop_duplicates,
        ]
        return hashlib.sha256(json.dumps([content, settings]).encode()).hexdigest()

    def _content(self, text: str | list[str]) -> list:
        found = []
        for name in names_in(text):
            parts, left_out = parts_of(name, self.dataset_config)
            found.append(
                [[content_digest(part.name, self.dataset_config) for part in parts], left_out]
            )
        return found

    @property
    def has_validation(self) -> bool:
        """Whether held-out text is given, and is no share of the text."""
        return self.validation is not None or str(self.text).startswith("embedded:")

    @cached_property
    def held_out_by(self) -> str:
        """``given``; else, of a share of the text, ``document`` or ``passage``, see :mod:`xmod_lab.text.holdout`. Reads .txt files."""
        if self.has_validation:
            return "given"
        documents = lines = 0
        for name in _lined(
            part
            for found in names_in(self.text)
            for part in parts_of(found, self.dataset_config)[0]
        ):
            within = False
            for line in decoded_lines(Path(name)):
                documents += not within and not line.isspace()
                within = not line.isspace()
                lines += within
        return "document" if are_documents(documents, lines, self.validation_share) else "passage"

    def passages(
        self, split: str, tally: "Tally | None" = None, known: Keys | None = None
    ) -> Iterator[str]:
        """Passages of ``split`` (train or validation): one line each, not empty, each once when ``drop_duplicates``.

        Args:
            tally: counts what is read and what is left out.
            known: ``letters`` of the tally of the training text, if that was read: held-out passages that are in it are counted in
                ``known``, and left out where text is held out by document.
        Raises:
            UserError: the source is missing, empty, not UTF-8, lacks the column or has no text in it; it names file and line.
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
        # what is held out by share is in the same rows, and these are counted once
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
            raise UserError(self._why_none(text, split))

    def _side(self, text: str | list[str], split: str, tally: "Tally") -> Iterator[str]:
        read = self._read(text, split, tally)
        if self.has_validation:
            return (passage for passage, _ in read)
        documents = (
            (passage for passage, _ in group) for _, group in groupby(read, key=itemgetter(1))
        )
        return one_side(documents, self.validation_share, held_out=split == "validation")

    def _why_none(self, text: str | list[str], split: str) -> str:
        """The message where there is no passage for ``split``."""
        tally = Tally()
        read = [passage for passage, _ in self._read(text, split, tally)]
        if not read:
            rows = (
                f" ({tally.empty:,} empty lines or rows, {tally.null:,} null)"
                if tally.empty or tally.null
                else ""
            )
            return f"{titled(text)}: no text for {split}{rows}; expected passages, one a line or row. Give a file with text"
        different, letters = len(set(read)), len(set(map(letters_key, read)))
        equal = len(read) - different
        copies = (
            f", {equal:,} of them duplicates of others, which are left out (data.drop_duplicates)"
            if equal
            else ""
        )
        alike = (
            f", {letters:,} of which differ in more than numbers, case and punctuation"
            if letters < different
            else ""
        )
        side = "is held out" if split == "validation" else "is left to train on"
        return (
            f"{titled(text)}: no text for {split}: it has {len(read):,} passages{copies}; of {different:,} different ones{alike}, none "
            f"{side} at data.validation_share={self.validation_share}. Give more text, or held-out text as {self.key}.validation"
        )

    def _read(self, text: str | list[str], split: str, tally: "Tally") -> Iterator[tuple[str, int]]:
        """Passages, not empty, of all that ``text`` names, each with the number of its document, and in ``tally`` what is not read."""
        document = 0
        for name in names_in(text):
            parts, left_out = parts_of(name, self.dataset_config)
            tally.left_out += left_out
            for part in parts:
                block = self.held_out_by == "document" and any(_lined([part]))
                document += 1
                for value, where in self._values(part, split, tally):
                    if value is None:
                        tally.null += 1
                        continue
                    lines = lines_in(
                        value if isinstance(value, str) else self._decoded(value, where)
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

    def _decoded(self, value: object, where: str) -> str:
        """The text of bytes. Raises UserError where ``value`` is something else, or its bytes are no text."""
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where}: column '{self.column}' holds bytes that are not UTF-8 ({error.reason}, "
                    f"0x{value[error.start]:02x}); write it as text, or {self._other_column}"
                ) from error
        kinds = {
            list: "a list",
            dict: "an object",
            bool: "true or false",
            int: "a number",
            float: "a number",
        }
        kind = kinds.get(type(value), type(value).__name__)
        raise UserError(
            f"{where}: column '{self.column}' holds {kind} ({str(value)[:40]}), where text is expected; write it as text "
            f"(null for none), or {self._other_column}"
        )

    @property
    def _other_column(self) -> str:
        return f"set {self.key}.column to the one that has the text"

    def _lacks(self, where: str, columns: list[str]) -> UserError:
        return UserError(
            f"{where}: no column '{self.column}'; it has {', '.join(map(str, columns))}. Set "
            f"{self.key}.column=<one of them>"
        )

    def _values(self, part: Part, split: str, tally: "Tally") -> Iterator[tuple[object, str]]:
        """What each line or row of a part has as text, and where that is."""
        kind, name = part
        if kind == "embedded":
            end = "val" if split == "validation" else "train"
            yield from (
                (line, name)
                for line in decoded_lines(
                    EMBEDDED / f"{name.removeprefix('embedded:')}.{end}.txt.gz"
                )
            )
        elif kind == "saved":
            table = _saved(name)
            self._check_column(table.schema, name)
            yield from _arrow_values(table.column(self.column).chunks, name)
        elif kind == "loaded":
            for number, row in enumerate(_loaded(name, self.dataset_config, tally), start=1):
                where = f"{name}, row {number}"
                if self.column not in row:
                    raise self._lacks(where, list(row))
                yield row[self.column], where
        elif any(_lined([part])):
            yield from ((line, name) for line in decoded_lines(Path(name)))
        elif name.lower().endswith(TABLES):
            cells = table_cells(Path(name))
            _, header = next(cells, (0, []))
            if self.column not in header:
                raise self._lacks(name, header)
            place = header.index(self.column)
            yield from ((row[place], f"{name}, line {number}") for number, row in cells)
        elif name.lower().endswith(".parquet"):
            yield from self._parquet(name)
        else:
            for where, row in json_rows(Path(name)):
                if self.column not in row:
                    raise self._lacks(where, list(row))
                yield row[self.column], where

    def _parquet(self, name: str) -> Iterator[tuple[object, str]]:
        import pyarrow  # here, and datasets below: a configuration is judged without them
        from pyarrow import parquet

        if fault := file_fault(name):
            raise UserError(fault)
        try:
            with parquet.ParquetFile(name, page_checksum_verification=True) as file:
                self._check_column(file.schema_arrow, name)
                batches = (batch.column(0) for batch in file.iter_batches(columns=[self.column]))
                yield from _arrow_values(batches, name)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"'{name}' cannot be read as parquet ({str(error).splitlines()[0]}); it may be damaged. Copy it again "
                f"from where it came, or give a file of another type ({', '.join(FILE_TYPES)})"
            ) from error

    def _check_column(self, schema: "pyarrow.Schema", name: str) -> None:
        if self.column not in schema.names:
            raise self._lacks(name, schema.names)
        kind = schema.types[schema.names.index(self.column)]
        inner = kind.value_type if str(kind).startswith("dictionary") else kind
        if str(inner) not in _TEXT_TYPES:
            raise UserError(
                f"{name}: column '{self.column}' is of type {kind}, where text is expected; write it as text, or "
                f"{self._other_column} (columns: {', '.join(schema.names)})"
            )


@dataclass
class Tally:
    """What reading a split found. ``bytes`` are UTF-8 bytes of the passages, without line ends.

    Args:
        null: rows without a value; ``empty``: lines and rows with nothing but white space. Where a share of the text is held out,
            those of both splits are counted under train.
        line_breaks: rows and lines with line breaks inside, which became spaces; counted likewise.
        composed: rows and lines that were written otherwise than in NFC; counted likewise.
        odd: control characters, and U+FFFD, which stands for what could not be decoded.
        known: held-out passages whose letters are those of a training passage: of a text that is held out by document they are left
            out, and in none of the other counts.
        left_out: names of files that are beside those that are read, and why they are not.
        seen, letters: keys of the passages, exact and by their letters; the latter unless text is held out by passage.
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
        """Raises UserError where too many of the characters are none: ``ODD_SHARE`` of them, and more than ten."""
        if self.odd > max(10, ODD_SHARE * self.characters):
            share = 100 * self.odd / self.characters
            raise UserError(
                f"{titled(text)}: {share:.1f} % of its characters are control characters or U+FFFD, which stands for what could "
                f"not be decoded (allowed: {100 * ODD_SHARE} %): it was read or written in a wrong encoding. Make it anew from "
                "where it came, as UTF-8"
            )


def _lined(parts: Iterable[Part]) -> Iterator[str]:
    """Names of those that are .txt files."""
    return (
        name
        for kind, name in parts
        if kind == "file" and name.lower().endswith((".txt", ".txt.gz"))
    )


def _arrow_values(
    chunks: Iterator["pyarrow.Array"], name: str
) -> Iterator[tuple[bytes | None, str]]:
    """Bytes or null of each row: strings too, since a damaged file may hold strings that are not UTF-8."""
    number = 0
    for chunk in chunks:
        try:
            if str(chunk.type).startswith("dictionary"):
                chunk.validate(full=True)
                chunk = chunk.dictionary_decode()
            if kind := _AS_BYTES.get(str(chunk.type)):
                chunk = chunk.view(kind)
            chunk.validate(full=True)  # else a damaged file ends the process
        except ValueError as error:
            raise UserError(
                f"{name}, in row {number + 1} or after it: damaged ({error}); copy it again from where it came"
            ) from error
        for value in chunk.to_pylist():
            number += 1
            yield value, f"{name}, row {number}"


def check_source(source: Source, where: str) -> list[str]:
    """Faults that can be seen without reading the text, each with its remedy. ``where`` is the config key."""
    faults = []
    for key, text in (("text", source.text), ("validation", source.validation)):
        if text is None and key == "validation":
            continue
        try:
            found = [
                _name_fault(name, len(names), source.dataset_config)
                for names in [names_in(text)]
                for name in names
            ]
        except UserError as error:
            found = [str(error)]
        faults += [f"{where}.{key}: {fault}" for fault in found if fault]
    return faults


def _name_fault(name: str, names: int, config: str | None) -> str | None:
    if name.startswith("embedded:"):
        known = sorted(p.name.split(".")[0] for p in EMBEDDED.glob("*.train.txt.gz"))
        code = name.removeprefix("embedded:")
        if code not in known:
            return f"no embedded corpus '{code}'; allowed are {', '.join(known)}.{nearest(code, known)}"
        return (
            f"'{name}' has held-out text of its own, and stands alone; leave it out of the list"
            if names > 1
            else None
        )
    try:
        parts, _ = parts_of(name, config)
    except UserError as error:
        return str(error)
    if parts == [Part("loaded", name)] and "/" not in name and not Path(name).exists():
        return unanswered_fault(
            name, GIVE
        )  # an id with a slash may have been prepared where there was a network
    if parts == [Part("file", name)] and Path(name).stat().st_size == 0:
        return f"file '{name}' is empty; give a file with text, one passage a line"
    return None


def _saved(name: str) -> "pyarrow.Table":
    """The table of a folder that ``save_to_disk`` wrote."""
    import datasets

    try:
        return datasets.load_from_disk(name).data.table
    except Exception as error:  # datasets raises whatever its readers raise
        raise _unreadable(name, error) from error


def _loaded(name: str, config: str | None, tally: Tally) -> Iterator[dict]:
    """Rows of the split train of a hub id, streamed, or of a folder in its layout.

    Hub ids need the network, and were tried on local folders in the same layout only.
    """
    import datasets

    if not Path(name).exists() and (fault := unanswered_fault(name, GIVE)):
        raise UserError(fault)
    try:
        splits = datasets.load_dataset(name, config, streaming=True)
        if "train" not in splits:
            raise UserError(
                f"dataset '{name}' has no split train; it has {', '.join(splits)}. Write one of them into a file: "
                f"datasets.load_dataset({name!r}, {config!r}, split={next(iter(splits))!r}).to_parquet('text.parquet')"
            )
        tally.left_out += [f"split {split}" for split in splits if split != "train"]
        yield from splits["train"]
    except UserError:
        raise
    except (
        Exception
    ) as error:  # datasets raises whatever its readers and the network raise, while it iterates too
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> UserError:
    import datasets

    cause = error
    while cause.__cause__ is not None:  # the reader's own words, behind "an error occurred"
        cause = cause.__cause__
    if isinstance(cause, OSError) and str(cause.filename).startswith(
        str(datasets.config.HF_CACHE_HOME)
    ):
        return UserError(
            f"'{name}' cannot be read as a dataset, since {cause.filename} cannot be written ({cause.strerror}); set HF_HOME to "
            "a folder that you can write to"
        )
    why = (
        "it may be damaged, or have no such dataset_config"
        if Path(name).exists()
        else "check the name, or the network"
    )
    return UserError(
        f"'{name}' cannot be read as a dataset ({cause}); {why}. Give a file ({', '.join(FILE_TYPES)}), a dataset folder, or "
        "a hub id that exists"
    )


def content_digest(name: str, config: str | None) -> str:
    """Digest of a source's bytes; of a hub id, its revision."""
    if name.startswith("embedded:"):
        files = sorted(EMBEDDED.glob(f"{name.removeprefix('embedded:')}.*.txt.gz"))
    elif Path(name).is_dir():
        files = sorted(p for p in Path(name).rglob("*") if p.is_file())
    elif Path(name).is_file():
        files = [Path(name)]
    elif is_text_file(name):
        raise UserError(file_fault(name))
    else:
        return f"{name}/{config}@{_hub_revision(name)}"
    return digest_of_files(files)


def _hub_revision(name: str) -> str:
    """Commit of a hub dataset. Needs the network; not run here."""
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(name).sha
    except Exception as error:  # offline, missing, private: all end the same way for the user
        raise UserError(
            f"dataset '{name}' is neither a local file or folder nor a hub id that can be reached ({error}); "
            "check the name, or the network"
        ) from error
