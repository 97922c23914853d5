"""The text in each line or row of a file or dataset, before it is cleaned."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, repeat
from pathlib import Path
from typing import TYPE_CHECKING

from xmod_lab.errors import NotFetchedError, UserError
from xmod_lab.hub import unanswered_fault
from xmod_lab.text.bounds import Bound
from xmod_lab.text.parts import (
    EMBEDDED,
    GIVE,
    TABLES,
    TYPES,
    Part,
    commit_of,
    is_lines,
    no_split,
    without_network,
)
from xmod_lab.text.table_files import table_cells
from xmod_lab.text.text_files import (
    LONGEST_LINE,
    Line,
    decoded_lines,
    file_fault,
    has_text,
    json_rows,
    too_large,
)

if TYPE_CHECKING:
    import datasets
    import pyarrow
    from pyarrow import parquet

_AS_BYTES = {"string": "binary", "large_string": "large_binary", "string_view": "binary_view"}
_TEXT_TYPES = (*_AS_BYTES, *_AS_BYTES.values(), "null")
_BATCH, _BATCH_BYTES = 1024, 2**23  # of the rows of a table that are in memory, at most
_BUFFER = 2**20  # bytes of a parquet file that are read at once
_KINDS = {
    list: "a list",
    dict: "an object",
    bool: "true or false",
    int: "a number",
    float: "a number",
}

FILTERED = object()  # in place of the text of a row that a bound leaves out
LONGEST = 2**24  # bytes of a passage: tokenising it takes a hundred times as many

Place = str | Line  # where a line or row stands, for messages
Value = tuple[object, Place]  # what a line or row has as text
Fields = tuple[Place, Sequence[object]]  # a row's text, with the values of the bounds


@dataclass(frozen=True)
class Column:
    """The field of rows that holds the text, and the bounds on others by which rows are read.
    ``key``: config key of the source, for messages."""

    name: str
    key: str
    bounds: tuple[Bound, ...] = ()

    @property
    def names(self) -> list[str]:
        """The column with the text, and that of each bound."""
        return [self.name, *(bound.column for bound in self.bounds)]

    def decoded(self, value: object, where: Place) -> str:
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

    def place_in(self, where: Place, columns: list[str]) -> list[int]:
        """The places of ``names`` among ``columns``. Raises UserError if one is not there."""
        for name, setting in zip(
            self.names, ("column", *["where"] * len(self.bounds)), strict=True
        ):
            if name not in columns:
                raise UserError(
                    f"{where}: no column '{name}'; it has {', '.join(map(str, columns))}. Set "
                    f"{self.key}.{setting}=<one of them>"
                )
        return [columns.index(name) for name in self.names]

    def check(self, schema: "pyarrow.Schema", name: str) -> None:
        """Raises UserError if a table lacks a column, or one is of another type than expected."""
        places = self.place_in(name, schema.names)
        kinds = [schema.types[place] for place in places]
        kinds = [kind.value_type if str(kind).startswith("dictionary") else kind for kind in kinds]
        if str(kinds[0]) not in _TEXT_TYPES:
            raise UserError(
                f"{name}: column '{self.name}' is of type {schema.types[places[0]]}, where text is "
                f"expected; write it as text, or set {self.key}.column to the column with the text "
                f"(columns: {', '.join(schema.names)})"
            )
        for bound, kind in zip(self.bounds, kinds[1:], strict=True):
            number = str(kind).startswith(("int", "uint", "float", "double", "halffloat"))
            if number == isinstance(bound.value, str) and str(kind) != "null":
                raise UserError(
                    f"{name}: set {self.key}.where to a column of {bound.wanted}: '{bound.column}' "
                    f"is of type {kind}, and {bound} compares {bound.wanted}"
                )

    def values(self, rows: Iterator[Fields]) -> Iterator[Value]:
        """The text of each row, and FILTERED in place of what a bound leaves out."""
        if not self.bounds:
            yield from ((values[0], where) for where, values in rows)
            return
        for where, (text, *others) in rows:
            kept = all(map(Bound.holds, self.bounds, others, repeat(where)))
            yield text if kept else FILTERED, where


def values_of(
    part: Part, side: str, column: Column, unit: str, left_out: list[str]
) -> Iterator[Value]:
    """What each row has as text, or each line, paragraph or whole file of a .txt file: a string,
    UTF-8 bytes, ``None`` for null, or FILTERED.

    Args:
        side: train or validation; an embedded corpus has a file for each.
        unit: of a .txt file: line, paragraph or document.
        left_out: takes the names of splits that are not read.
    """
    name = part.name
    if part.kind == "embedded":
        end = "val" if side == "validation" else "train"
        file = EMBEDDED / f"{name.removeprefix('embedded:')}.{end}.txt.gz"
        yield from ((line, name) for line in decoded_lines(file))
    elif is_lines(part):
        yield from _text_of(part, unit)
    else:
        yield from column.values(_rows(part, column, left_out))


def _text_of(part: Part, unit: str) -> Iterator[Value]:
    name = part.name
    lines = decoded_lines(Path(name), *_limits(part), longest=LONGEST)
    if unit == "line":
        yield from ((line, name) for line in lines)
    elif unit == "document":
        yield _whole(lines, name, unit), name
    else:
        blocks = (block for text, block in groupby(lines, key=has_text) if text)
        yield from ((_whole(block, name, unit), name) for block in blocks)


def _limits(part: Part) -> tuple[int, ...]:
    return part.within[:2] if part.within else ()


def _whole(lines: Iterator[str], where: str, unit: str) -> str:
    """``lines`` as one passage. Raises UserError before they fill the memory."""
    text = io.StringIO()
    for line in lines:
        if text.tell() > LONGEST:  # characters, each of a byte or more
            raise too_long(where, unit)
        text.write(line)
    return text.getvalue()


def too_long(where: Place, unit: str) -> UserError:
    """The error if a passage, which is a ``unit``, has more than LONGEST bytes."""
    smaller = {"document": "set passage=paragraph or passage=line, or ", "line": ""}
    return UserError(
        f"{where}: {smaller.get(unit, 'set passage=line, or ')}divide it: it has a passage of more "
        f"than {LONGEST:,} bytes"
    )


def _rows(part: Part, column: Column, left_out: list[str]) -> Iterator[Fields]:
    name = part.name
    if part.kind == "saved":
        table = saved_table(name)
        column.check(table.schema, name)
        if part.within:
            table = table.slice(part.start, part.within.end - part.start)
        rows = _batch_of(table.num_rows, table.nbytes)
        yield from _arrow_rows(table.to_batches(rows), column, name, part.start)
    elif part.kind == "loaded":
        yield from _bounded(_fields(_loaded(part, left_out), column))
    elif name.lower().endswith(TABLES):
        cells = table_cells(Path(name))
        places = column.place_in(name, next(cells, (0, []))[1])
        yield from (
            (f"{name}, line {number}", [row[place] for place in places]) for number, row in cells
        )
    elif name.lower().endswith(".parquet"):
        yield from _parquet(part, column)
    else:
        yield from _fields(json_rows(Path(name), *_limits(part)), column)


def _fields(rows: Iterator[tuple[Place, dict]], column: Column) -> Iterator[Fields]:
    names = column.names
    for where, row in rows:
        try:
            yield where, [row[name] for name in names]
        except KeyError:
            column.place_in(where, list(row))
            raise


def _bounded(rows: Iterator[Fields]) -> Iterator[Fields]:
    """``rows``. Raises UserError for a text of more bytes than a line of jsonl may have."""
    for where, values in rows:
        text = values[0]
        if isinstance(text, str) and len(text) > LONGEST_LINE // 4:  # of at most four bytes each
            text = text.encode()
        if isinstance(text, bytes) and len(text) > LONGEST_LINE:
            raise UserError(too_large(where, LONGEST_LINE))
        yield where, values


def _parquet(part: Part, column: Column) -> Iterator[Fields]:
    import pyarrow  # here, and datasets below: a configuration is checked without them
    from pyarrow import parquet

    name = part.name
    if fault := file_fault(name):
        raise UserError(fault)
    try:
        # with a buffer, it does not hold the whole column of a row group
        with parquet.ParquetFile(
            name, page_checksum_verification=True, buffer_size=_BUFFER
        ) as file:
            column.check(file.schema_arrow, name)
            numbers = range(*part.within[:2]) if part.within else range(file.num_row_groups)
            before = sum(file.metadata.row_group(n).num_rows for n in range(part.start))
            groups = [file.metadata.row_group(number) for number in numbers]
            _refuse_large(groups, column, name, before)
            sizes = [_batch_of(g.num_rows, g.total_byte_size) for g in groups if g.num_rows]
            batches = file.iter_batches(
                min(sizes, default=_BATCH),
                row_groups=numbers,
                columns=list(dict.fromkeys(column.names)),
            )
            yield from _arrow_rows(batches, column, name, before)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"'{name}' cannot be read as parquet ({str(error).splitlines()[0]}); it may be "
            f"damaged. Copy it again from its original, or give a file of another type ({TYPES})"
        ) from error


def _refuse_large(
    groups: "list[parquet.RowGroupMetaData]", column: Column, name: str, before: int
) -> None:
    """Raises UserError if the texts of a row group have more than twice the bytes that they may
    have on average. Arrow would hold a value whole before its length is seen.

    Args:
        before: how many rows come before the first.
    """
    for group in groups:
        chunks = (group.column(place) for place in range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == column.name)
        first, before = before + 1, before + group.num_rows
        if size > 2 * LONGEST_LINE * max(1, group.num_rows):
            rows = f"row {first}" if first == before else f"one of the rows {first} to {before}"
            raise UserError(too_large(f"{name}, {rows}", LONGEST_LINE))


def _batch_of(rows: int, size: float) -> int:
    """How many of ``rows`` of ``size`` bytes are in memory at a time."""
    return max(1, min(_BATCH, int(rows * _BATCH_BYTES / max(size, 1))))


def _arrow_rows(
    batches: Iterable["pyarrow.RecordBatch"], column: Column, name: str, before: int
) -> Iterator[Fields]:
    """The values of each row. Strings come as bytes: in a damaged file they may not be UTF-8.
    ``before``: how many rows come before the first."""
    number = before
    for batch in batches:
        try:
            columns = [_checked(batch.column(one)) for one in column.names]
            _refuse_long(columns[0], name, number)
            columns = [one.to_pylist() for one in columns]
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f"{name}, in row {number + 1} or after it: damaged ({error}); copy the file again "
                "from its original"
            ) from error
        for values in zip(*columns, strict=True):
            number += 1
            yield f"{name}, row {number}", values


def _refuse_long(texts: "pyarrow.Array", name: str, before: int) -> None:
    """Raises UserError for a row of more bytes than a line of jsonl may have, which is then not
    copied. ``before``: how many rows come before the first."""
    from pyarrow import compute

    if str(texts.type) in ("null", "binary_view"):  # of which Arrow has no lengths
        return
    sizes = compute.binary_length(texts)
    most = compute.max(sizes).as_py()
    if most is not None and most > LONGEST_LINE:
        row = before + 1 + compute.index(sizes, most).as_py()
        raise UserError(too_large(f"{name}, row {row}", LONGEST_LINE))


def _checked(chunk: "pyarrow.Array") -> "pyarrow.Array":
    """Raises ValueError if it is damaged: reading it would end the process."""
    if str(chunk.type).startswith("dictionary"):
        chunk.validate(full=True)
        chunk = chunk.dictionary_decode()
    if kind := _AS_BYTES.get(str(chunk.type)):
        chunk = chunk.view(kind)
    chunk.validate(full=True)
    return chunk


def saved_table(name: str) -> "pyarrow.Table":
    """The table of a folder of ``save_to_disk``."""
    import datasets

    try:
        return datasets.load_from_disk(name).data.table
    except Exception as error:  # datasets raises whatever its readers raise
        raise _unreadable(name, error) from error


def _loaded(part: Part, left_out: list[str]) -> Iterator[tuple[str, dict]]:
    """Rows of a split of a hub id, streamed, or of a folder that only ``datasets`` can read."""
    name = part.name
    try:
        stream = loaded_stream(part, left_out)
        if part.within is None:
            yield from ((f"{name}, row {n}", row) for n, row in enumerate(stream, 1))
            return
        count = stream.num_shards
        for number in range(*part.within[:2]):
            where = f"{name}, file {number + 1} of {count}"
            rows = enumerate(stream.shard(count, number), 1)
            yield from ((f"{where}, row {n}", row) for n, row in rows)
    except UserError:
        raise
    except Exception as error:  # datasets raises whatever its readers and the network raise
        raise _unreadable(name, error) from error


def loaded_stream(part: Part, left_out: list[str]) -> "datasets.IterableDataset":
    """A split of a hub id or of a folder that only ``datasets`` can read, as a stream.

    Hub ids need the network; they were tried on a local stand-in of the hub only.
    """
    import datasets

    name, chosen = part.name, part.selection
    here = Path(name).exists()
    if not here and (fault := unanswered_fault(name, GIVE)):
        raise NotFetchedError(f"{fault}. {without_network(name)}")
    try:
        splits = datasets.load_dataset(
            name,
            chosen.config,
            data_files=list(chosen.files) or None,
            revision=None if here else commit_of(name, chosen.revision),
            streaming=True,
        )
        if chosen.split not in splits:
            raise UserError(no_split(name, chosen.split, list(splits)))
        left_out += [f"split {split}" for split in splits if split != chosen.split]
        return splits[chosen.split]
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
        f"({TYPES}), a dataset folder, or a hub id that exists"
    )
