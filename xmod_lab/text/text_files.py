"""Text files, plain or compressed: their lines, decoded strictly, and the objects of jsonl.

If a file is not UTF-8 text, the message says what it is and how to convert it.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
import os
import re
import shlex
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby, takewhile
from pathlib import Path
from typing import NamedTuple

from xmod_lab.errors import UserError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


class Compression(NamedTuple):
    """A way to compress a file. ``begins``: how such a file begins; ``undo``: the command that
    decompresses it. ``open`` reads archives of several members whole."""

    name: str
    begins: bytes
    open: Callable[..., io.BufferedIOBase]
    undo: str


COMPRESSIONS = {
    ".gz": Compression("gzip", rb"\x1f\x8b", gzip.open, "gunzip"),
    ".zst": Compression("zstd", rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", zstd.open, "unzstd"),
    ".xz": Compression("xz", rb"\xfd7zXZ\0", lzma.open, "unxz"),
    ".bz2": Compression("bzip2", rb"BZh\d", bz2.open, "bunzip2"),
}
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError)
_CONVERT = "convert it: iconv -f {0} -t UTF-8 FILE > NEW.txt"
_KINDS = (  # how a file that is not UTF-8 begins, what it is, and what to do
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32", _CONVERT.format("UTF-32")),
    (rb"\xff\xfe|\xfe\xff", "UTF-16", _CONVERT.format("UTF-16")),
    (
        rb"\xc3\xbf\xc3\xbe|\xc3\xbe\xc3\xbf",
        "UTF-16 that was converted as if it were ISO-8859-1",
        "make it again from its original: iconv -f UTF-16 -t UTF-8 ORIGINAL > NEW.txt",
    ),
    *(
        (
            found.begins,
            f"compressed by {found.name}",
            f"give it a name that ends in {ending} (what is compressed twice: {found.undo} it "
            "once)",
        )
        for ending, found in COMPRESSIONS.items()
    ),
    (
        rb"PK\x03\x04",
        "a zip archive or an office document",
        "unpack it, or save the document as plain text in UTF-8",
    ),
    (rb"%PDF-", "a PDF document", "make text of it: pdftotext -enc UTF-8 FILE NEW.txt"),
    (rb"PAR1", "a parquet file", "give it a name that ends in .parquet"),
)
_ENCODINGS = (
    "windows-1252",
    "windows-1251",
    "windows-1250",
    "windows-1253",
    "windows-1254",
    "windows-1256",
    "koi8-r",
    "gb18030",
    "shift_jis",
    "big5",
    "euc-kr",
)
LONGEST_LINE = 2**25  # bytes: parsing it takes a dozen times as many
_AT_ONCE = 2**27  # bytes of a file whose lines are read without a limit, which takes less time
_BLOCK = 2**20  # bytes of a line that are divided at carriage returns, if it has some
HEAD = 4096  # bytes that show what a file is
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r"))
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def file_fault(path: str | Path) -> str | None:
    """Why a file cannot be read, as far as this shows without opening it (a pipe would block)."""
    if os.path.isfile(path):
        return (
            None
            if os.access(path, os.R_OK)
            else f"'{path}' cannot be read by you; ask its owner for that (chmod +r)"
        )
    if os.path.isdir(path):
        return f"'{path}' is a folder, where a file is expected"
    if os.path.exists(path):
        return (
            f"'{path}' is a pipe or a device, and text is read more than once; write it into a "
            f"file, "
            "and give that"
        )
    return f"file '{path}' does not exist; give the path of an existing text file"


class Line(NamedTuple):
    """Where a line stands, for messages. What is before ``start`` is only read for a message.

    Args:
        number: from 1.
        start: the byte from which on lines are counted.
    """

    path: Path
    number: int
    start: int = 0

    @property
    def in_file(self) -> int:
        """Its number in the whole file."""
        return self.number + (_lines_before(self.path, self.start) if self.start else 0)

    def __str__(self) -> str:
        return f"{self.path}, line {self.in_file}"


def _lines_before(path: Path, end: int) -> int:
    """How many lines the first ``end`` bytes have, which end with a line feed."""
    with path.open("rb") as stream:
        # a long line comes in parts
        parts = takewhile(
            lambda _: stream.tell() <= end, iter(partial(stream.readline, 2**20), b"")
        )
        return sum(p.endswith(b"\n") + p.rstrip(b"\r\n").count(b"\r") for p in parts)


def decoded_lines(
    path: Path, start: int = 0, end: int | None = None, *, longest: int | None = None
) -> Iterator[str]:
    """Lines of a text file, plain or in one of COMPRESSIONS, each with ``\\n`` at its end, without
    a byte order mark. Only a line feed, a carriage return or both end a line.

    Args:
        start, end: a range of the bytes of a plain file, which begins and ends with a line.
        longest: bytes of a line with its end, at most; default: LONGEST_LINE.
    Raises:
        UserError: it is not a file, is truncated, is not UTF-8 or has a longer line, which is not
            read whole; the error says what it is, if that is known.
    """
    if fault := file_fault(path):
        raise UserError(fault)
    longest = LONGEST_LINE if longest is None else longest
    number, beyond_ascii = 0, False
    try:
        with _opened(path) as stream:
            if start:
                stream.seek(start)
            elif kind := kind_of(stream.peek(HEAD)[:HEAD], path):
                raise UserError(f"{path}: it is {kind}")
            size = (path.stat().st_size if end is None else end) - start
            small = path.suffix.lower() not in COMPRESSIONS and size <= _AT_ONCE
            lines = stream if small else iter(partial(stream.readline, longest + 1), b"")
            for line, ended in _divided(lines if end is None else _up_to(size, lines), longest):
                number += 1
                if len(line) > longest:
                    raise UserError(too_large(Line(path, number, start), longest))
                text = line.decode() if number > 1 or start else line.decode("utf-8-sig")
                beyond_ascii = beyond_ascii or not text.isascii()
                if ended and "\r" not in text and text.endswith("\n"):
                    yield text
                    continue
                parts = (text.rstrip("\r\n") if ended else text).split("\r")
                number += len(parts) - 1
                yield from (f"{part}\n" for part in parts)
    except UnicodeDecodeError as error:
        raise UserError(_not_utf8(Line(path, number, start), error, beyond_ascii)) from error
    except _DAMAGED as error:
        number = Line(path, number, start).in_file
        raise UserError(
            f"{path}, after line {number}: copy it again from its original: the rest cannot be "
            f"read ({error}), it may be truncated or damaged"
        ) from error


def too_large(where: str | Line, most: int) -> str:
    """The message if a line or row has too many bytes."""
    return f"{where}: divide it, or leave it out: it has more than {most:,} bytes"


def _up_to(size: int, lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of the first ``size`` bytes."""
    for line in lines:
        yield line
        size -= len(line)
        if size <= 0:
            return


def _divided(lines: Iterable[bytes], longest: int) -> Iterator[tuple[bytes, bool]]:
    """``lines``, which end in a line feed. Those of more than ``_BLOCK`` bytes, which may come in
    several parts, are divided at carriage returns, if they have some. After each, whether a line
    feed or the file ends it: else a carriage return does, which is left out."""
    rest, most = b"", min(longest, _BLOCK)
    for line in lines:
        if not rest and len(line) <= most:
            yield line, True
            continue
        rest, begin = rest + line, 0
        while len(rest) - begin > most:
            cut = _carriage_return(rest, begin, begin + most)
            if cut < 0:
                cut = _carriage_return(rest, begin, begin + longest)
            if cut < 0:
                break
            yield rest[begin:cut], False
            begin = cut + 1
        rest = rest[begin:]
        if rest.endswith(b"\n") or len(rest) > longest:
            yield rest, True
            rest = b""
    if rest:
        yield rest, True


def _carriage_return(text: bytes, begin: int, end: int) -> int:
    """The place of the last one in a range of ``text`` that ends a line by itself, or -1. Several
    before a line feed end one line."""
    cut = text.rfind(b"\r", begin, end)
    while cut >= 0 and text[cut + 1 : cut + 2] in (b"", b"\r", b"\n"):
        cut = text.rfind(b"\r", begin, cut)
    return cut


def _opened(path: Path) -> io.BufferedIOBase:
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return path.open("rb")
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    if head and not re.match(compression.begins, head):
        kind = (
            kind_of(head, path)
            or f"not a {compression.name} file, although its name ends in {path.suffix}; call it "
            f"{path.with_suffix('').name}"
        )
        raise UserError(f"{path}: it is {kind}")
    return compression.open(path, "rb")


def kind_of(head: bytes, path: Path) -> str | None:
    """What a file that begins with ``head`` is, and what to do; ``None``: it may be UTF-8 text."""
    if not re.search(rb"[\0-\x08\x80-\xff]", head):
        return None
    for mark, kind, remedy in _KINDS:
        if re.match(mark, head):
            return f"{kind}; {remedy.replace('FILE', shlex.quote(str(path)))}"
    halves = [head[start::2] for start in (0, 1)]
    control = [1 - len(half.translate(None, _CONTROL)) / max(1, len(half)) for half in halves]
    if abs(control[0] - control[1]) > 0.3:  # half of each character is the same low number
        remedy = _CONVERT.format("UTF-16BE" if control[0] > control[1] else "UTF-16LE")
        return f"UTF-16 without a byte order mark; {remedy.replace('FILE', shlex.quote(str(path)))}"
    if max(control) > 0.05 and _reading(head, "utf-8") is None:
        return "not text: many of its bytes are control characters; give a text file in UTF-8"
    return None


def _reading(start: bytes, encoding: str) -> str | None:
    """``start`` decoded; ``None``: it is not in that encoding. The last character may be cut."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(start)
    except UnicodeDecodeError:
        return None


def _not_utf8(place: Line, error: UnicodeDecodeError, beyond_ascii: bool) -> str:
    """The message for a line that cannot be decoded. ``beyond_ascii``: lines before it were
    decoded, and were not only ASCII."""
    line, start = error.object, error.start
    byte = f"0x{line[start]:02x}, at byte {start + 1}"
    wrong = f"{place}: not UTF-8 ({error.reason}, {byte})"
    if beyond_ascii:
        return (
            f"{wrong}, while lines before it are; it may be damaged, or put together from files in "
            "several encodings: repair that line or leave it out"
        )
    readings: dict[str, list[str]] = {}
    for encoding in _ENCODINGS:
        text = (_reading(line[: start + 40], encoding) or "\0")[-60:].strip()
        if text.replace("\t", " ").isprintable():
            readings.setdefault(text, []).append(encoding)
    convert = (
        f"{wrong}; convert it by iconv -f ENCODING -t UTF-8 {shlex.quote(str(place.path))} > "
        "NEW.txt"
    )
    shown = [f"  {', '.join(encodings)}: {text}" for text, encodings in readings.items()]
    return (
        "\n".join([f"{convert}, with the ENCODING in which this reads well:", *shown])
        if shown
        else convert
    )


def json_value(text: str, where: str | Line) -> object:
    """The value of a JSON text; ``where`` it stands is for messages.

    Raises:
        UserError: it is not JSON, is nested too deep, has a key twice, or has half of a character.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise UserError(f"{where}: its JSON is nested too deep to be data; leave it out") from None
    except ValueError as error:
        raise UserError(
            f"{where}: not JSON ({error}); expected one object a line. The file may be truncated; "
            "repair that line or leave it out"
        ) from error
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise UserError(
                f"{where}: {half} is half of a character, and the other half is missing (the text "
                f"was "
                "cut in the middle of it); repair that line or leave it out"
            ) from error
    return value


def _object(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"key '{next(name for name in names if names.count(name) > 1)}' stands twice"
        )
    return found


def json_rows(
    path: Path, start: int = 0, end: int | None = None
) -> Iterator[tuple[str | Line, dict]]:
    """The object on each line of a jsonl file, after where it stands; blank lines are left out.
    ``start``, ``end``: as those of :func:`decoded_lines`."""
    for number, line in enumerate(decoded_lines(path, start, end), start=1):
        where = Line(path, number, start) if start else f"{path}, line {number}"
        if not line.strip():
            continue
        if number == 1 and not start and line.lstrip().startswith("["):
            raise UserError(
                f"{where}: it is one array in JSON, where an object a line is expected; convert "
                f"it: "
                f"{as_jsonl(path)}"
            )
        row = json_value(line, where)
        if not isinstance(row, dict):
            raise UserError(
                f"{where}: {line.strip()[:40]!r} is not an object; expected one a line, such as "
                '{"text": "a passage"}'
            )
        yield where, row


def as_jsonl(path: str | Path) -> str:
    """The command that makes .jsonl of an array in JSON."""
    path = Path(path)
    out = path.with_suffix(".lines.jsonl" if path.suffix == ".jsonl" else ".jsonl")
    rows = f"json.load(open({str(path)!r}))"
    code = f"import json; [print(json.dumps(row)) for row in {rows}]"
    return f'python -c "{code}" > {shlex.quote(str(out))}'


def lines_in(text: str) -> list[str]:
    """Lines of ``text``, without white space and byte order marks around it. A line ends in a line
    feed, carriage return, vertical tab, form feed, U+001C to U+001E, U+0085, U+2028 or U+2029."""
    text = text.strip()
    if text.startswith("\ufeff") or text.endswith("\ufeff"):
        text = text.strip("\ufeff").strip()
    return text.splitlines()


def blocks_of(lines: Iterable[str]) -> Iterator[list[str]]:
    """The blocks between blank lines, each as its lines."""
    return (list(block) for text, block in groupby(lines, key=has_text) if text)


def has_text(line: str) -> bool:
    """Whether a line is not blank."""
    return bool(line.strip())


def passages_in(text: str, unit: str) -> list[list[str]]:
    """The passages of ``text``, each as its lines: all of it, its paragraphs (blocks between blank
    lines) or its lines. ``unit``: document, paragraph or line. Empty if it has white space only."""
    lines = lines_in(text)
    if unit == "document":
        return [lines] if lines else []
    if unit == "paragraph":
        return list(blocks_of(lines))
    return [found for line in lines if (found := lines_in(line))]


def one_line(text: str) -> str:
    """``text`` as a passage: its :func:`lines_in` with spaces between them."""
    return " ".join(lines_in(text))
