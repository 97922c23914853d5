"""Parallel text: a .tsv or .tsv.gz file with a header, a column of ids, and a column for each
language.

Each row is a sentence with its translations. An empty cell means that a language lacks the
sentence. Cells are taken as they are, without quoting.
"""

from dataclasses import dataclass
from pathlib import Path

from xmod_lab.errors import UserError, nearest
from xmod_lab.text.parts import EMBEDDED
from xmod_lab.text.table_files import table_cells
from xmod_lab.text.text_files import file_fault, one_line

FILE_TYPES = (".tsv", ".tsv.gz")


@dataclass(frozen=True)
class Parallel:
    """``sentences``: language, as in the header -> its sentences, row by row; ``""`` if it lacks
    one."""

    name: str
    sentences: dict[str, list[str]]


def parallel_name(source: str) -> str:
    """The name of a source in figures: the file's name without its type, or what follows
    ``embedded:``."""
    return Path(source.removeprefix("embedded:")).name.removesuffix(".gz").removesuffix(".tsv")


def _path(source: str) -> Path:
    return (
        EMBEDDED / f"{source.removeprefix('embedded:')}.tsv.gz"
        if source.startswith("embedded:")
        else Path(source)
    )


def check_parallel(sources: list[str], where: str) -> list[str]:
    """Faults that can be found without reading the files. ``where``: the config key."""
    faults = []
    known = [f"embedded:{parallel_name(file.name)}" for file in sorted(EMBEDDED.glob("*.tsv.gz"))]
    for source in sources:
        if source.startswith("embedded:") and source not in known:
            faults.append(
                f"{where}: no '{source}'; allowed are {', '.join(known)}.{nearest(source, known)}"
            )
        elif not source.startswith("embedded:") and not source.endswith(FILE_TYPES):
            faults.append(
                f"{where}: '{source}' is of no known type; allowed are {', '.join(FILE_TYPES)} "
                "files with a header"
            )
        elif fault := file_fault(_path(source)):
            faults.append(f"{where}: {fault}")
    names = [parallel_name(source) for source in sources]
    for name in sorted({name for name in names if names.count(name) > 1}):
        faults.append(
            f"{where}: rename one of two files called '{name}'; figures have the name of the file"
        )
    return faults


def read_parallel(source: str) -> Parallel:
    """Read a file, or ``embedded:parallel`` and ``embedded:udhr``.

    Raises:
        UserError: the header has fewer than two languages, or one twice; a row has more or fewer
            cells than the header. It names the line.
    """
    rows = table_cells(_path(source))
    _, header = next(rows, (1, [""]))
    languages = header[1:]
    if len(languages) < 2 or not all(languages) or len(set(languages)) < len(languages):
        raise UserError(
            f"{source}, line 1: the header is {header}; expected id and then two languages or "
            f"more, "
            "each once, with tabs between them"
        )
    columns: list[list[str]] = [[] for _ in languages]
    for _, cells in rows:
        for column, cell in zip(columns, cells[1:], strict=True):
            column.append(one_line(cell))
    if not columns[0]:
        raise UserError(
            f"{source}: a header and no rows; give a sentence and its translations a row"
        )
    return Parallel(parallel_name(source), dict(zip(languages, columns, strict=True)))
