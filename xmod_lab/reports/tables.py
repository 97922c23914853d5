"""A table in three forms: HTML in the page, LaTeX (booktabs) and CSV beside it."""

import csv
import io
import re
from dataclasses import dataclass
from html import escape

Record = dict[str, str | int | float | None]
_NUMBERS = re.compile(r"(\d[\d,]* of \d[\d,]*|[\s\d.,%+\[\]–−-]*)")
_LONG = 40  # characters of a cell that is broken into lines
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "–": "--", "−": "$-$", "≈": r"$\approx$", "×": r"$\times$", "…": r"\dots{}",
}  # fmt: skip


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
        return [any(not _NUMBERS.fullmatch(row[i]) for row in self.rows) for i in range(len(self.header))]

    def html(self) -> str:
        """Cells are text; they are escaped here. Words stand left, numbers right."""
        side = [' class="text"' if text else "" for text in self._text]
        long = [any(len(row[i]) > _LONG for row in self.rows) for i in range(len(self.header))]
        side = [' class="text long"' if wraps else kind for wraps, kind in zip(long, side, strict=True)]
        head = "".join(f"<th{s}>{escape(cell)}</th>" for s, cell in zip(side, self.header, strict=True))
        body = "".join(
            "<tr>" + "".join(f"<td{s}>{escape(cell)}</td>" for s, cell in zip(side, row, strict=True)) + "</tr>"
            for row in self.rows
        )
        caption = f"<caption>{escape(self.title)}</caption>" if self.title else ""
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        head = f"<thead><tr>{head}</tr></thead>" if any(self.header) else ""
        table = f"<table>{caption}{head}<tbody>{body}</tbody></table>"
        return f'<div class="wide">{table}</div>{note}'

    def tex(self) -> str:
        """A ``tabular`` for ``\\input``; needs ``\\usepackage{booktabs}``."""
        lines = [" & ".join(map(tex, row)) + r"\\" for row in (self.header, *self.rows)]
        lines = [
            "{}" * line.startswith(("[", "*")) + line for line in lines
        ]  # else an argument of the line break before
        head = [lines[0], r"\midrule"] if any(self.header) else []
        columns = "".join("l" if text else "r" for text in self._text)
        said = [f"% {' '.join(text.split())}" for text in (self.title, self.note) if text]
        return "\n".join([r"% \usepackage{booktabs}", *said, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *head,
                          *lines[1:], r"\bottomrule", r"\end{tabular}", ""])  # fmt: skip

    def csv(self) -> str:
        return records_csv(self.records)


def tex(text: str) -> str:
    """``text`` with every character that LaTeX would not print as it is replaced by what does."""
    return "".join(_TEX.get(character, character) for character in text)


def records_csv(records: list[Record]) -> str:
    """A column for every name, in the order in which they come up; floats in full."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def number(value: float | None, digits: int = 4) -> str:
    """``value`` with thousands marked, or a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


Part = str | Table  # of a section: HTML, or a table, which also becomes files


def panels(figures: list[str]) -> str:
    """Figures beside each other where there is room; one alone as it is."""
    return figures[0] if len(figures) == 1 else f'<div class="panels">{"".join(figures)}</div>'
