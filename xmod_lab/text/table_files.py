"""Tables in text files with a header: .tsv, where cells are taken as they are, and .csv, where
they may be quoted. No row is lost in silence: an open quote is an error, and not one long cell."""

import csv
from collections.abc import Iterator
from pathlib import Path

from xmod_lab.errors import UserError
from xmod_lab.text.text_files import LONGEST_LINE, decoded_lines

_NAME, _NAMES = 60, 1_000  # most characters of the name of a class, and most classes
_DOUBTFUL = 10_000  # values that are compared with names of classes, at most

Cells = tuple[int, list[str]]  # the line where a row begins, and its cells


def table_cells(path: Path) -> Iterator[Cells]:
    """Every row of a table, the header first. Blank lines are left out.

    Raises:
        UserError: it is not UTF-8, the header has other separators or names a column twice, a row
            has more or fewer cells than the header, or quotes do not match; it names the line.
    """
    rows = _quoted(path) if ".csv" in path.name.lower() else _plain(path)
    header: list[str] = []
    for number, cells in rows:
        if not any(cell.strip() for cell in cells) and len(cells) != len(header):
            continue
        if not header:
            header = cells
            if len(header) == 1 and any(mark in header[0] for mark in ",;|\t"):
                raise UserError(
                    f"{path}, line {number}: the header is one column, {header[0]!r:.80}; in a "
                    f".csv "
                    "commas stand between columns, in a .tsv tabs. Save it so, or rename the file"
                )
            twice = sorted({name for name in header if name and header.count(name) > 1})
            if twice:
                raise UserError(
                    f"{path}, line {number}: the header has '{twice[0]}' twice; rename one of them"
                )
        if len(cells) != len(header):
            raise UserError(
                f"{path}, line {number}: {len(cells)} cells, but the header has {len(header)}; "
                f"give "
                "every row as many, and leave a cell empty if it has no value"
            )
        yield number, cells


def _plain(path: Path) -> Iterator[Cells]:
    for number, line in enumerate(decoded_lines(path), start=1):
        yield number, line.removesuffix("\n").split("\t")


def _quoted(path: Path) -> Iterator[Cells]:
    csv.field_size_limit(LONGEST_LINE)  # characters; the default refuses long texts
    reader = csv.reader(decoded_lines(path), strict=True)
    known: list[set[str]] = []  # the values of each column, if they may be names of classes
    # a column and what may be a name in it -> where a line inside a quoted cell has that
    doubtful: dict[tuple[int, str], tuple[int, str, int]] = {}
    begin = 1
    try:
        for cells in reader:
            yield begin, cells
            if not any("\n" in cell for cell in cells):
                known += [set() for _ in cells[len(known) :]]
                for values, cell in zip(known, cells, strict=False):
                    if 0 < len(cell) <= _NAME and len(values) <= _NAMES:
                        values.add(cell)
            else:
                for column, value, *where in _rows_inside(begin, cells):
                    names = len(known[column]) if column < len(known) else 0
                    if 0 < len(value) <= _NAME and names <= _NAMES and len(doubtful) < _DOUBTFUL:
                        doubtful.setdefault((column, value), (begin, *where))
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {_explained(str(error), begin)}"
        ) from error
    for (column, value), (begin, line, number) in doubtful.items():
        if column < len(known) and len(known[column]) <= _NAMES and value in known[column]:
            raise UserError(
                f"{path}, line {begin}: a quote opens a cell of several lines, but line {number} "
                f"looks like a row ({line!r}). Close the quote, or remove it; if it really is one "
                "cell, save the data as .jsonl"
            )


def _rows_inside(begin: int, cells: list[str]) -> Iterator[tuple[int, str, str, int]]:
    """Lines inside quoted cells that look like rows of their own: the column and the value of
    each of their cells; the line and its number. ``begin``: the line where the row begins."""
    width = len(cells)
    for i, cell in enumerate(cells):
        lines = cell.split("\n")
        for n, line in enumerate(lines if len(lines) > 1 else []):
            start = i if n == 0 else 0  # the first line lacks the cells before the quote
            end = i + 1 if n == len(lines) - 1 else width  # the last line, those after it
            pieces = line.split(",")
            if len(pieces) == end - start > 1:
                # the line has only a part of the cell itself
                edge = i if n in (0, len(lines) - 1) else None
                yield from (
                    (c, piece, line.strip()[:40], begin + n)
                    for c, piece in enumerate(pieces, start)
                    if c != edge
                )


def _explained(error: str, begin: int) -> str:
    """A message of csv about a row that begins in line ``begin``, with the remedy."""
    if "unexpected end" in error:
        return (
            f"the file ends inside of a quoted cell, which was opened in the row of line {begin}; "
            "close the quote there"
        )
    if "expected after" in error:
        return (
            f"text follows the quote that ends a cell, in the row of line {begin}. Write a quote "
            f"inside "
            "of a quoted cell twice, and close a quote where its cell ends"
        )
    if "field larger" in error:
        return (
            f"a cell of the row of line {begin} has more than {LONGEST_LINE:,} characters. If a "
            "quote that opens it was never closed, close it; else divide the text"
        )
    return f"{error}; repair that line"
