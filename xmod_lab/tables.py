"""Tables. A stage or a section builds a :class:`Table`; terminal, page, files and cards render it.

``print``     the terminal and the run's log      ``html``      the report page
``tex``       a ``tabular`` for a paper           ``markdown``  model cards
``csv``       every record, in full precision

People are not shown a column that says nothing. One that has the same words or count in every row
is told once, below the table; one of dashes is left out. Measured values (with decimals) always
stay, and so do columns without a header. CSV files keep every column.
"""

import csv
import io
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from xmod_lab.errors import escaped, printable
from xmod_lab.markup import Html, element, together, visible
from xmod_lab.process_rank import rank

log = logging.getLogger(__name__)
Record = dict[str, str | int | float | None]
NONE = "–"  # in the place of a value that does not exist
_NUMBERS = re.compile(r"(\d[\d,]*( of \d[\d,]*)?( each)?|[\s\d.,%+±<\[\]–−-]*)")
_MEASURED = re.compile(r"\d\.\d")
_WIDTH = 110  # characters of a line in logs, and where no terminal has a width
_LABELS, _CELLS = 20, 40  # longer cells may be folded to that width: in labels, in other columns
_LONG = 40  # characters of a cell that the page breaks into lines
_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    "≈": r"$\approx$",
    "×": r"$\times$",
    "…": r"\dots{}",
}


@dataclass(frozen=True)
class Table:
    """Rows of text under a header.

    Args:
        title: stands above the table.
        header: the name of each column; all empty where the table has none.
        rows: a cell for each column.
        note: stands below the table.
        name: of the files that the report writes, without their ending.
        records: what ``csv`` writes: a value a row (long form), unrounded. Empty: the rows as they
            are.
        labels: how many columns, from the first on, say what a row is about. On a narrow terminal
            they are repeated beside each block of the other columns.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    name: str = ""
    records: Sequence[Record] = ()
    labels: int = 1

    def shown(self) -> "Table":
        """The table as people see it: without the columns that say nothing."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.header)
        filled = [
            i
            for i, column in enumerate(columns)
            if not self.header[i] or not set(column) <= {"", NONE} or not column
        ]
        once = [i for i in filled if self.header[i] and _same(columns[i])]
        if all(i in once or i < self.labels for i in filled):
            once = []  # else nothing would be left to show
        kept = [i for i in filled if i not in once]
        said = "; ".join(f"{self.header[i]} = {columns[i][0]}" for i in once)
        return replace(
            self,
            header=[self.header[i] for i in kept],
            rows=[[row[i] for i in kept] for row in self.rows],
            note=" ".join(part for part in (said and f"In every row: {said}.", self.note) if part),
            labels=max(1, sum(i < self.labels for i in kept)),
        )

    @property
    def is_text(self) -> list[bool]:
        """For each column whether it has words, which stand left; numbers stand right."""
        return [
            any(not _NUMBERS.fullmatch(row[i]) for row in self.rows)
            for i in range(len(self.header))
        ]

    def print(self, *, logged: bool = True) -> None:
        """Print the table, and write it into the run's log if there is one.

        Of several processes only the first does.

        Args:
            logged: ``False`` where the log file belongs to something else.
        """
        if rank():
            return
        screen = Console()
        if not screen.is_terminal and "COLUMNS" not in os.environ:
            screen = Console(width=_WIDTH)
        _print(screen, self.shown())
        files = [
            handler
            for handler in logging.getLogger().handlers
            if isinstance(handler, logging.FileHandler)
        ]
        if files and logged:
            paper = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
            _print(paper, self.shown())
            text = paper.file.getvalue().rstrip("\n")
            record = log.makeRecord(log.name, logging.INFO, "", 0, text, (), None)
            for handler in files:
                handler.handle(record)

    def html(self) -> Html:
        """A ``table`` element in a frame that scrolls, with the note below."""
        table = self.shown()
        kinds = []
        for i, text in enumerate(table.is_text):
            long = any(len(row[i]) > _LONG for row in table.rows)
            kinds.append("text long" if long else "text" if text else "")

        def line(tag: str, row: Sequence[str]) -> Html:
            return element(
                "tr",
                *(element(tag, cell, kind=kind) for cell, kind in zip(row, kinds, strict=True)),
            )

        parts = [element("caption", table.title)] if table.title else []
        if any(table.header):
            parts.append(element("thead", line("th", table.header)))
        parts.append(element("tbody", *(line("td", row) for row in table.rows)))
        framed = element("div", element("table", *parts), kind="wide")
        return together([framed, element("p", table.note, kind="note")] if table.note else [framed])

    def tex(self) -> str:
        r"""A ``tabular`` for ``\input``; it needs ``\usepackage{booktabs}``."""
        table = self.shown()
        head, *body = (" & ".join(map(tex, row)) + r"\\" for row in (table.header, *table.rows))
        # a line that begins with [ or * would be read as the argument of the line break before it
        body = ["{}" + line if line.startswith(("[", "*")) else line for line in body]
        columns = "".join("l" if text else "r" for text in table.is_text)
        said = [f"% {' '.join(text.split())}" for text in (table.title, table.note) if text]
        lines = [
            r"% \usepackage{booktabs}",
            *said,
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *([head, r"\midrule"] if any(table.header) else []),
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join(lines) + "\n"

    def markdown(self) -> str:
        """A table of GitHub's Markdown, with the note below; the title is left to the text around
        it."""
        table = self.shown()
        sides = ["---" if text else "---:" for text in table.is_text]
        rows = [[_markdown(cell) for cell in row] for row in (table.header, *table.rows)]
        lines = [f"| {' | '.join(row)} |" for row in (rows[0], sides, *rows[1:])]
        return "\n".join([*lines, *(["", _markdown(table.note)] if table.note else [])]) + "\n"

    def csv(self) -> str:
        """The records; of a table without any, its rows."""
        rows = (dict(zip(self.header, row, strict=True)) for row in self.rows)
        return csv_text(self.records or rows, self.header if not self.records else ())


def csv_text(records: Sequence[Record], columns: Sequence[str] = ()) -> str:
    """A CSV file. Floats are written in full, and every text in one line.

    Args:
        records: one for each line.
        columns: the first ones; the other names in ``records`` follow in the order in which they
            appear.
    """
    records = list(records)
    names = dict.fromkeys([*columns, *(name for record in records for name in record)])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow(
            {
                name: escaped(" ".join(cell.splitlines())) if isinstance(cell, str) else cell
                for name, cell in record.items()
            }
        )
    return text.getvalue()


def tex(text: str) -> str:
    """``text`` as LaTeX prints it: special characters are replaced by their commands."""
    return "".join(_TEX.get(character, character) for character in visible(text))


def _markdown(text: str) -> str:
    return visible(text).replace("|", "\\|").replace("<", "&lt;")


def _same(column: Sequence[str]) -> bool:
    """Whether all cells of a column have the same words or the same count."""
    return len(column) > 1 and len(set(column)) == 1 and not _MEASURED.search(column[0])


def _print(console: Console, table: Table) -> None:
    lines = [[printable(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = _widths(table, lines, console.width)
    for line in Text(printable(table.title), style="bold").wrap(console, console.width):
        line.rstrip()
        console.print(line)
    sides = ["left" if text else "right" for text in table.is_text]
    for number, (columns, width_of) in enumerate(widths):
        if number:
            console.print("… other columns of the same table:")
        grid = RichTable(header_style="bold", show_header=any(table.header))
        for i in columns:
            grid.add_column(
                Text(lines[0][i]), justify=sides[i], overflow="fold", width=width_of.get(i)
            )
        for row in lines[1:]:
            grid.add_row(*(Text(row[i]) for i in columns))
        console.print(grid)
    if table.note:
        for line in Text(printable(table.note)).wrap(console, console.width):
            line.rstrip()
            console.print(line)


def _widths(
    table: Table, lines: list[list[str]], room: int
) -> list[tuple[list[int], dict[int, int]]]:
    """The blocks of columns that stand beside each other within ``room``, with the width of each
    column.

    A block has all labels, and as many of the other columns as fit. A block that does not fit even
    so has no widths: rich makes it as narrow as it can.
    """
    labels = table.labels
    body = [
        max((cell_len(part) for row in lines[1:] for part in row[i].split("\n")), default=0)
        for i in range(len(table.header))
    ]
    heads = [max(map(cell_len, cell.split()), default=0) for cell in lines[0]]  # folded at spaces
    wanted = [max(width, cell_len(cell)) for width, cell in zip(body, lines[0], strict=True)]
    limit = max(8, min(_LABELS, (room - 1) // labels - 3))
    least = [
        max(head, min(width, limit if i < labels else _CELLS))
        for i, (head, width) in enumerate(zip(heads, body, strict=True))
    ]

    def width_of(columns: list[int]) -> int:
        return sum(least[i] + 3 for i in columns) + 1  # a border and a space on either side

    blocks = [list(range(labels))]
    for i in range(labels, len(least)):
        if len(blocks[-1]) > labels and width_of([*blocks[-1], i]) > room:
            blocks.append(list(range(labels)))
        blocks[-1].append(i)
    found = []
    for columns in blocks:
        spare = room - width_of(columns)
        widths = {i: least[i] for i in columns} if spare >= 0 else {}
        for i in sorted(widths, key=lambda i: wanted[i] - least[i]):
            more = min(wanted[i] - least[i], spare)
            widths[i], spare = widths[i] + more, spare - more
        found.append((columns, widths))
    return found
