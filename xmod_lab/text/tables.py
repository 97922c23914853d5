"""Tables in text files, under a line that names the columns: .tsv, whose cells are taken as they are, and .csv, whose cells may be
quoted. No row is lost in silence: a quote that was left open is an error, not one long cell."""

import csv
from collections.abc import Iterator
from pathlib import Path

from xmod_lab.errors import UserError
from xmod_lab.text.files import decoded_lines

_LARGEST = 2**31 - 1  # characters of a cell, the most that csv takes on every platform

Cells = tuple[int, list[str]]  # the line that a row begins in, and its cells


def table_cells(path: Path) -> Iterator[Cells]:
    """Every row of a table, the header first. Blank lines are left out.

    Raises:
        UserError: not UTF-8, a header with other separators, a column that is named twice, a row with more or fewer cells than the header, quotes that do not
            fit; it names the line.
    """
    rows = _quoted(path) if ".csv" in path.name.lower() else _plain(path)
    header: list[str] = []
    for number, cells in rows:
        if not any(cell.strip() for cell in cells) and len(cells) != len(header):
            continue
        if not header:
            header = cells
            if len(header) == 1 and any(mark in header[0] for mark in ",;|\t"):
                raise UserError(f"{path}, line {number}: the header is one column, {header[0]!r:.80}; in a .csv commas stand between "
                                "columns, in a .tsv tabs. Save it so, or give it the other name")  # fmt: skip
            twice = sorted({name for name in header if name and header.count(name) > 1})
            if twice:
                raise UserError(
                    f"{path}, line {number}: the header has '{twice[0]}' twice; columns are named each once: rename one"
                )
        if len(cells) != len(header):
            raise UserError(f"{path}, line {number}: {len(cells)} cells, but the header has {len(header)}; give every row as many, "
                            "an empty one where there is nothing")  # fmt: skip
        yield number, cells


def _plain(path: Path) -> Iterator[Cells]:
    for number, line in enumerate(decoded_lines(path), start=1):
        yield number, line.removesuffix("\n").split("\t")


def _quoted(path: Path) -> Iterator[Cells]:
    csv.field_size_limit(_LARGEST)  # its default refuses long texts, and is of no use against quotes that are left open
    reader = csv.reader(decoded_lines(path), strict=True)
    rows: list[Cells] = []
    over_lines: list[Cells] = []
    begin = 1
    try:
        for cells in reader:
            (over_lines if any("\n" in cell for cell in cells) else rows).append((begin, cells))
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {_explained(str(error), begin)}") from error
    if over_lines and rows:
        _check_over_lines(path, [cells for _, cells in rows], over_lines)
    yield from sorted(rows + over_lines, key=lambda row: row[0])


def _explained(error: str, begin: int) -> str:
    """A message of csv, about a row that begins in line ``begin``, in words that help."""
    if "unexpected end" in error:
        return (
            f"the file ends inside of a quoted cell, which was opened in the row of line {begin}; close the quote there"
        )
    if "expected after" in error:
        return (f"text follows the quote that ends a cell, in the row of line {begin}. Write a quote inside of a quoted cell twice, "
                "and close a quote where its cell ends")  # fmt: skip
    return f"{error}; repair that line"


def _check_over_lines(path: Path, rows: list[list[str]], over_lines: list[Cells]) -> None:
    """Raises UserError where a cell of several lines holds what reads like other rows, so that its quote was left open: a line
    with as many cells as a row, one of them with a value that this column has elsewhere."""
    width = len(rows[0])
    known = [{row[i] for row in rows[1:] if len(row) == width and row[i]} for i in range(width)]
    for begin, cells in over_lines:
        for i, cell in enumerate(cells if len(cells) == width else []):
            lines = cell.split("\n")
            for n, line in enumerate(lines):
                first, last = n == 0, n == len(lines) - 1  # with these the row that was opened, and the one that closed
                pieces = line.split(",")
                expected = range(i if first else 0, i + 1 if last else width)
                inside = [c for c in expected if c != i or not (first or last)]
                if len(pieces) == len(expected) and any(pieces[c - expected.start] in known[c] for c in inside):
                    raise UserError(f"{path}, line {begin}: a quote opens a cell of {len(lines)} lines, which reads like {len(lines)} "
                                    f"rows (line {begin + n}: {line.strip()[:40]!r}). Close the quote, or take it out; if it is one "
                                    "cell indeed, save the data as .jsonl")  # fmt: skip
