"""Tables on the terminal and in a run's log."""

import io
import logging
import os

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xmod_lab.errors import printable
from xmod_lab.processes import rank

log = logging.getLogger(__name__)
Rows = list[tuple[str, ...]]
_WIDTH = 110  # characters of a line in logs, and where there is no terminal that has one
_WORDS, _CELLS = 20, 40  # to which longer cells may be folded: in the first columns, in others


def show(
    title: str, header: tuple[str, ...], rows: Rows, *, words: int = 1, logged: bool = True
) -> None:
    """Print a table, and write it into the run's log file where there is one. Of several processes the first one does.

    Args:
        words: how many columns stand left, and are repeated where a table is too wide for the screen, so that its other columns
            stand below each other.
        logged: ``False`` where the log file is that of something else.
    """
    if rank():
        return
    screen = Console()
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen = Console(width=_WIDTH)
    _print(screen, title, header, rows, words)
    files = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.FileHandler)
    ]
    if files and logged:
        paper = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
        _print(paper, title, header, rows, words)
        record = log.makeRecord(
            log.name, logging.INFO, "", 0, paper.file.getvalue().rstrip("\n"), (), None
        )
        for handler in files:
            handler.handle(record)


def _print(console: Console, title: str, header: tuple[str, ...], rows: Rows, words: int) -> None:
    lines = [[printable(cell) for cell in row] for row in (header, *rows)]
    body = [
        max((cell_len(part) for row in lines[1:] for part in row[i].split("\n")), default=0)
        for i in range(len(header))
    ]
    heads = [
        max(map(cell_len, cell.split()), default=0) for cell in lines[0]
    ]  # these are folded between words
    wanted = [max(width, cell_len(cell)) for width, cell in zip(body, lines[0], strict=True)]
    limit = max(8, min(_WORDS, (console.width - 1) // max(1, words) - 3))
    least = [
        max(head, min(width, limit if i < words else _CELLS))
        for i, (head, width) in enumerate(zip(heads, body, strict=True))
    ]
    for line in Text(printable(title), style="bold").wrap(console, console.width):
        line.rstrip()
        console.print(line)
    for number, columns in enumerate(_blocks(least, words, console.width)):
        if number:
            console.print("… other columns of the same table:")
        spare = console.width - _width(least, columns)
        widths = {i: least[i] for i in columns} if spare >= 0 else {}  # else as narrow as can be
        for i in sorted(widths, key=lambda i: wanted[i] - least[i]):
            more = min(wanted[i] - least[i], spare)
            widths[i], spare = widths[i] + more, spare - more
        table = Table(header_style="bold", show_header=any(header))
        for i in columns:
            table.add_column(
                Text(lines[0][i]),
                justify="left" if i < words else "right",
                overflow="fold",
                width=widths.get(i),
            )
        for row in lines[1:]:
            table.add_row(*(Text(row[i]) for i in columns))
        console.print(table)


def _blocks(least: list[int], words: int, room: int) -> list[list[int]]:
    """Which columns stand beside each other: the first ``words`` ones, and others as long as there is ``room``."""
    first = list(range(words))
    blocks = [first]
    for i in range(words, len(least)):
        if len(blocks[-1]) > words and _width(least, [*blocks[-1], i]) > room:
            blocks.append(first)
        blocks[-1] = [*blocks[-1], i]
    return blocks


def _width(least: list[int], columns: list[int]) -> int:
    return sum(least[i] + 3 for i in columns) + 1  # a border and a space on either side
