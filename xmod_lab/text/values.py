"""The text in each line or row of a file or dataset, before it is cleaned."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xmod_lab.errors import UserError
from xmod_lab.hub import unanswered_fault
from xmod_lab.text.parts import EMBEDDED, FILE_TYPES, GIVE, TABLES, Part, is_lines
from xmod_lab.text.table_files import table_cells
from xmod_lab.text.text_files import decoded_lines, file_fault, json_rows

if TYPE_CHECKING:
    import pyarrow

_AS_BYTES = {"string": "binary", "large_string": "large_binary", "string_view": "binary_view"}
_TEXT_TYPES = (*_AS_BYTES, *_AS_BYTES.values(), "null")
_KINDS = {
    list: "a list",
    dict: "an object",
    bool: "true or false",
    int: "a number",
    float: "a number",
}

Value = tuple[object, str]  # what a line or row has as text, and where it stands, for messages


@dataclass(frozen=True)
class Column:
    """The field of rows that holds the text. ``key``: config key of the source, for messages."""

    name: str
    key: str

    def decoded(self, value: object, where: str) -> str:
        """The text of bytes. Raises UserError if they are not UTF-8, or not bytes."""
        other = f"set {self.key}.column to the column with the text"
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where}: column '{self.name}' holds bytes that are not UTF-8 ({error.reason},"
                    f" 0x{value[error.start]:02x}); write it as text, or {other}"
                ) from error
        kind = _KINDS.get(type(value), type(value).__name__)
        raise UserError(
            f"{where}: column '{self.name}' holds {kind} ({str(value)[:40]}), where text is "
            f"expected; write it as text (null for none), or {other}"
        )

    def missing(self, where: str, columns: list[str]) -> UserError:
        """The error where rows lack the column."""
        return UserError(
            f"{where}: no column '{self.name}'; it has {', '.join(map(str, columns))}. Set "
            f"{self.key}.column=<one of them>"
        )

    def check(self, schema: "pyarrow.Schema", name: str) -> None:
        """Raises UserError if a table lacks the column, or it does not hold text."""
        if self.name not in schema.names:
            raise self.missing(name, schema.names)
        kind = schema.types[schema.names.index(self.name)]
        inner = kind.value_type if str(kind).startswith("dictionary") else kind
        if str(inner) not in _TEXT_TYPES:
            raise UserError(
                f"{name}: column '{self.name}' is of type {kind}, where text is expected; write it "
                f"as text, or set {self.key}.column to the column with the text (columns: "
                f"{', '.join(schema.names)})"
            )


def values_of(
    part: Part, split: str, column: Column, config: str | None, left_out: list[str]
) -> Iterator[Value]:
    """What each line or row of a part has as text: a string, UTF-8 bytes, or ``None`` for null.

    Args:
        config: configuration name of a hub id.
        left_out: takes the names of splits that are not read.
    """
    kind, name = part
    if kind == "embedded":
        end = "val" if split == "validation" else "train"
        file = EMBEDDED / f"{name.removeprefix('embedded:')}.{end}.txt.gz"
        yield from ((line, name) for line in decoded_lines(file))
    elif kind == "saved":
        table = _saved(name)
        column.check(table.schema, name)
        yield from _arrow_values(table.column(column.name).chunks, name)
    elif kind == "loaded":
        rows = (
            (f"{name}, row {n}", row) for n, row in enumerate(_loaded(name, config, left_out), 1)
        )
        yield from _fields(rows, column)
    elif is_lines(part):
        yield from ((line, name) for line in decoded_lines(Path(name)))
    elif name.lower().endswith(TABLES):
        cells = table_cells(Path(name))
        _, header = next(cells, (0, []))
        if column.name not in header:
            raise column.missing(name, header)
        place = header.index(column.name)
        yield from ((row[place], f"{name}, line {number}") for number, row in cells)
    elif name.lower().endswith(".parquet"):
        yield from _parquet(name, column)
    else:
        yield from _fields(json_rows(Path(name)), column)


def _fields(rows: Iterator[tuple[str, dict]], column: Column) -> Iterator[Value]:
    for where, row in rows:
        if column.name not in row:
            raise column.missing(where, list(row))
        yield row[column.name], where


def _parquet(name: str, column: Column) -> Iterator[Value]:
    import pyarrow  # here, and datasets below: a configuration is checked without them
    from pyarrow import parquet

    if fault := file_fault(name):
        raise UserError(fault)
    try:
        with parquet.ParquetFile(name, page_checksum_verification=True) as file:
            column.check(file.schema_arrow, name)
            batches = (batch.column(0) for batch in file.iter_batches(columns=[column.name]))
            yield from _arrow_values(batches, name)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"'{name}' cannot be read as parquet ({str(error).splitlines()[0]}); it may be "
            "damaged. Copy it again from its original, or give a file of another type "
            f"({', '.join(FILE_TYPES)})"
        ) from error


def _arrow_values(chunks: Iterator["pyarrow.Array"], name: str) -> Iterator[Value]:
    """Bytes or null of each row. Strings come as bytes too: in a damaged file they may not be
    UTF-8."""
    number = 0
    for chunk in chunks:
        try:
            if str(chunk.type).startswith("dictionary"):
                chunk.validate(full=True)
                chunk = chunk.dictionary_decode()
            if kind := _AS_BYTES.get(str(chunk.type)):
                chunk = chunk.view(kind)
            chunk.validate(full=True)  # without this a damaged file ends the process
        except ValueError as error:
            raise UserError(
                f"{name}, in row {number + 1} or after it: damaged ({error}); copy the file again "
                "from its original"
            ) from error
        for value in chunk.to_pylist():
            number += 1
            yield value, f"{name}, row {number}"


def _saved(name: str) -> "pyarrow.Table":
    """The table of a folder of ``save_to_disk``."""
    import datasets

    try:
        return datasets.load_from_disk(name).data.table
    except Exception as error:  # datasets raises whatever its readers raise
        raise _unreadable(name, error) from error


def _loaded(name: str, config: str | None, left_out: list[str]) -> Iterator[dict]:
    """Rows of the split train of a hub id, streamed, or of a folder in the hub's layout.

    Hub ids need the network; only local folders in the same layout were tried.
    """
    import datasets

    if not Path(name).exists() and (fault := unanswered_fault(name, GIVE)):
        raise UserError(fault)
    try:
        splits = datasets.load_dataset(name, config, streaming=True)
        if "train" not in splits:
            raise UserError(
                f"dataset '{name}' has no split train; it has {', '.join(splits)}. Write one of "
                f"them into a file: datasets.load_dataset({name!r}, {config!r}, "
                f"split={next(iter(splits))!r}).to_parquet('text.parquet')"
            )
        left_out += [f"split {split}" for split in splits if split != "train"]
        yield from splits["train"]
    except UserError:
        raise
    except Exception as error:  # datasets raises whatever its readers and the network raise
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> UserError:
    import datasets

    cause = error
    while cause.__cause__ is not None:  # what the reader itself said
        cause = cause.__cause__
    if isinstance(cause, OSError) and str(cause.filename).startswith(
        str(datasets.config.HF_CACHE_HOME)
    ):
        return UserError(
            f"'{name}' cannot be read as a dataset, since {cause.filename} cannot be written "
            f"({cause.strerror}); set HF_HOME to a folder that you can write to"
        )
    why = (
        "it may be damaged, or have no such dataset_config"
        if Path(name).exists()
        else "check the name, or the network"
    )
    return UserError(
        f"'{name}' cannot be read as a dataset ({cause}); {why}. Give a file "
        f"({', '.join(FILE_TYPES)}), a dataset folder, or a hub id that exists"
    )
