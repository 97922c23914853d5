"""Large parts of a source in ranges: several processes read them, and finished ones stay.

Ranges follow each other without a gap. Where they begin depends on the text alone:

    .txt, .jsonl        at the first line end after every ``SIZE`` bytes. In .txt files at the first
                        blank line, if one follows within ``_LOOK`` bytes; for paragraphs wherever
                        it is. Text that is added at the end leaves the ranges before it as they are
    .parquet            at row groups
    save_to_disk        at rows
    hub ids, folders    at the files of the dataset: ``datasets`` streams each of them from its
    that are loaded     beginning

Compressed files, .csv and .tsv (where a line end may be inside of a quoted cell) and .txt files
that are one document are read whole.
"""

import functools
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from xmod_lab.remembered import stamp
from xmod_lab.text.parts import RANGES_OF_LINES, Part, Range, commit_of, is_lines
from xmod_lab.text.text_files import COMPRESSIONS, HEAD, kind_of
from xmod_lab.text.values import loaded_stream, saved_table

if TYPE_CHECKING:
    from pyarrow import parquet

SIZE = 1 << 26  # bytes of a range, about: some minutes of tokenising
_LOOK = 1 << 20  # bytes in which a blank line is looked for
_MOST = 1024  # ranges of a hub id
_BLANK = re.compile(rb"\n[ \t\r\v\f]*\n")


def ranges_of(part: Part, unit: str) -> list[Part]:
    """The ranges of ``part`` in order; ``[part]`` if it is small, or is read whole.

    Args:
        unit: what a passage is: line, paragraph or document.
    """
    if part.kind == "saved":
        table = saved_table(part.name)
        return _equal(part, table.num_rows, table.nbytes)
    if part.kind == "loaded":
        return _ranges_of_stream(part)
    if part.kind == "file" and part.name.lower().endswith(".parquet"):
        return _between(part, [(start, False) for start in _groups(part.name, stamp(part.name))])
    return ranges_of_lines(part, unit)


def ranges_of_lines(part: Part, unit: str) -> list[Part]:
    """The ranges of a file of lines; of others ``[part]``."""
    whole = is_lines(part) and unit == "document"
    if part.kind != "file" or whole or not part.name.lower().endswith(RANGES_OF_LINES):
        return [part]
    return _between(part, _starts(part.name, stamp(part.name), unit if is_lines(part) else "row"))


def _between(part: Part, starts: list[tuple[int, bool]]) -> list[Part]:
    """``starts``: where each range begins, whether inside a block, and last the end."""
    if len(starts) < 3:
        return [part]
    return [
        part._replace(within=Range(start, end, inside))
        for (start, inside), (end, _) in zip(starts, starts[1:], strict=False)
    ]


def _equal(part: Part, count: int, size: float) -> list[Part]:
    """Ranges with about as many of ``count`` things of together ``size`` bytes."""
    ranges = max(1, min(count, math.ceil(size / SIZE)))
    return _between(part, [(count * n // ranges, False) for n in range(ranges + 1)])


def _ranges_of_stream(part: Part) -> list[Part]:
    """Every file of a hub id is a range, since their sizes are not known; all are read at the
    commit that the revision means now."""
    folder, chosen = Path(part.name), part.selection
    if folder.is_dir():
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        return [part] if size <= SIZE else _equal(part, loaded_stream(part, []).num_shards, size)
    pinned = chosen._replace(revision=commit_of(part.name, chosen.revision))
    part = part._replace(selection=pinned)
    return _equal(part, loaded_stream(part, []).num_shards, _MOST * SIZE)


@functools.lru_cache(maxsize=1024)
def _groups(name: str, changed: tuple[int, int, int]) -> list[int]:
    """The numbers of the row groups with which ranges of a parquet file begin, and of all; nothing
    if it is small, or damaged, which is told when it is read. ``changed``: its stamp."""
    if changed[0] <= SIZE or (about := _about(name)) is None:
        return []
    starts, size = [0], 0
    for number in range(about.num_row_groups):
        if size >= SIZE:
            starts.append(number)
            size = 0
        size += about.row_group(number).total_byte_size
    return [*starts, about.num_row_groups]


def _about(name: str) -> "parquet.FileMetaData | None":
    """What a parquet file says of its row groups; ``None`` if it is damaged."""
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_metadata(name)
    except (pyarrow.ArrowException, OSError):
        return None


@functools.lru_cache(maxsize=1024)
def _starts(name: str, changed: tuple[int, int, int], unit: str) -> list[tuple[int, bool]]:
    """The bytes with which ranges of a file of lines begin, whether each begins inside a block, and
    its size. ``changed``: its stamp."""
    size = changed[0]
    starts = [(0, False)]
    with open(name, "rb") as stream:
        if size > SIZE and kind_of(stream.read(HEAD), Path(name)):
            return []  # it is refused when it is read
        for least in range(SIZE, size, SIZE):
            if least > starts[-1][0]:
                start = _start(stream, least, unit)
                if start is None or start[0] >= size:
                    break  # the rest has no place either, and is not read again
                starts.append(start)
    return [*starts, (size, False)]


def _start(stream: BinaryIO, least: int, unit: str) -> tuple[int, bool] | None:
    """The first byte from ``least`` on with which a range may begin, and whether it is inside a
    block."""
    place, window = least - 1, b""
    stream.seek(place)
    while block := stream.read(_LOOK):
        window += block
        if unit != "row" and (blank := _BLANK.search(window)):
            return place + blank.end(), False
        end, last = window.find(b"\n"), window.rfind(b"\n")
        if unit != "paragraph" and end >= 0:
            return place + end + 1, True
        # a blank line may begin with the last line end, if only white space is behind it
        read = last if last >= 0 and not window[last:].strip() else len(window)
        place, window = place + read, window[read:]
    return None


def most_text(part: Part, column: str) -> float:
    """About how many bytes of text a part has at most; infinite if only reading it shows that."""
    name = part.name.lower()
    if part.kind != "file" or name.endswith(tuple(COMPRESSIONS)):
        return math.inf
    if name.endswith(".parquet"):
        return _bytes_of_column(part, column)
    return part.within.end - part.start if part.within else stamp(part.name)[0]


def _bytes_of_column(part: Part, column: str) -> float:
    """The bytes of a column of parquet, not compressed."""
    if (about := _about(part.name)) is None:
        return math.inf
    numbers = range(*part.within[:2]) if part.within else range(about.num_row_groups)
    chunks = (
        about.row_group(number).column(place)
        for number in numbers
        for place in range(about.num_columns)
    )
    return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == column)
