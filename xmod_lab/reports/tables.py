"""A table in three forms: HTML in the page, LaTeX (booktabs) and CSV beside it."""

import csv
import io
import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain, count

from xmod_lab.markup import Html, element, together, visible

Record = dict[str, str | int | float | None]
_NUMBERS = re.compile(r"(\d[\d,]* of \d[\d,]*( each)?|[\s\d.,%+±<\[\]–−-]*)")
_LONG = 40  # characters of a cell that is broken into lines
_LONGEST = 60  # of a file's name, some of whose letters take four bytes
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
    """What people read, ``rows`` of text under ``header``, and what programs read, ``records``: long form, a figure a line,
    unrounded. ``name``: of the files. ``note``: said under the table."""

    name: str
    header: list[str]
    rows: list[list[str]]
    records: list[Record]
    title: str = ""
    note: str = ""

    @property
    def _text(self) -> list[bool]:
        """Which columns are words."""
        return [
            any(not _NUMBERS.fullmatch(row[i]) for row in self.rows)
            for i in range(len(self.header))
        ]

    def html(self) -> Html:
        """Words stand left, numbers right."""
        side = ["text" if text else "" for text in self._text]
        long = [any(len(row[i]) > _LONG for row in self.rows) for i in range(len(self.header))]
        side = ["text long" if wraps else kind for wraps, kind in zip(long, side, strict=True)]
        head, *body = (
            element(
                "tr",
                *(element(cell, text, kind=kind) for kind, text in zip(side, row, strict=True)),
            )
            for cell, row in (("th", self.header), *(("td", row) for row in self.rows))
        )
        parts = [element("caption", self.title)] if self.title else []
        parts += [element("thead", head)] if any(self.header) else []
        table = element("div", element("table", *parts, element("tbody", *body)), kind="wide")
        return together([table, element("p", self.note, kind="note")] if self.note else [table])

    def tex(self) -> str:
        """A ``tabular`` for ``\\input``; needs ``\\usepackage{booktabs}``."""
        lines = [" & ".join(map(tex, row)) + r"\\" for row in (self.header, *self.rows)]
        lines = [
            "{}" * line.startswith(("[", "*")) + line for line in lines
        ]  # else an argument of the line break before
        head = [lines[0], r"\midrule"] if any(self.header) else []
        columns = "".join("l" if text else "r" for text in self._text)
        said = [f"% {' '.join(text.split())}" for text in (self.title, self.note) if text]
        return "\n".join(
            [
                r"% \usepackage{booktabs}",
                *said,
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                *head,
                *lines[1:],
                r"\bottomrule",
                r"\end{tabular}",
                "",
            ]
        )

    def csv(self) -> str:
        return records_csv(self.records)


def file_name(name: str, taken: Collection[str]) -> str:
    """Of a table's files, without their ending: ``name`` with what a file system may not have replaced, and a number where
    another table is in ``taken`` (``<name>.csv``) already."""
    plain = re.sub(r"[^\w.-]+", "_", name)[:_LONGEST]
    names = chain([plain], (f"{plain}_{i}" for i in count(2)))
    return next(name for name in names if f"{name}.csv" not in taken)


def tex(text: str) -> str:
    """``text`` with every character that LaTeX would not print as it is replaced by what does."""
    return "".join(_TEX.get(character, character) for character in visible(text))


def records_csv(records: list[Record]) -> str:
    """A column for every name, in the order in which they come up; floats in full, text in one line."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: visible(cell) if isinstance(cell, str) else cell for name, cell in record.items()}
        for record in records
    )
    return text.getvalue()


def number(value: float | None, digits: int = 4) -> str:
    """``value`` with thousands marked, or a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


Part = Html | Table  # of a section; a table also becomes files


def panels(figures: list[Html]) -> Html:
    """Figures beside each other where there is room; one alone as it is."""
    return figures[0] if len(figures) == 1 else element("div", *figures, kind="panels")
