"""File formats of labelled data: READERS has a function for each file type.

To add a format, write a generator that takes a path and yields, for each row, the place where it
stands (for messages) and its columns as a dict, and name it in READERS.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet

from xmod_lab.errors import UserError
from xmod_lab.tasks.values import NO_LABEL
from xmod_lab.text.table_files import table_cells
from xmod_lab.text.text_files import decoded_lines, json_rows, json_value

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)
Rows = Iterator[tuple[str, dict]]  # of each row the place where it stands, and column -> value
_CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_LARGEST_JSON = 2**30  # bytes of a line of a .json file, which may be all of it
_UNLABELLED = (-1, -100)  # class numbers that mean "no label": of datasets, of torch's losses


def table_rows(path: Path) -> Rows:
    """Lines of a .csv (quoted as usual) or .tsv file (never quoted, as in XNLI).

    The first line names the columns.
    """
    header: list[str] | None = None
    quoted = 0
    for number, cells in table_cells(path):
        if header is None:
            header = cells
            continue
        quoted += ".tsv" in path.suffixes and any(re.fullmatch('".*"".*"', cell) for cell in cells)
        yield f"{path}, line {number}", dict(zip(header, cells, strict=True))
    if quoted:
        log.warning(
            "warning: %s: save it without quoting, or as .csv; %d rows have cells that look "
            "quoted, but a .tsv file is never quoted, so these quotes are read as text",
            path,
            quoted,
        )


def conllu_rows(path: Path) -> Rows:
    """Sentences of CoNLL-U. The columns are its ten fields (``form``, ``upos``, …), each a list.

    Comments, multiword tokens and empty nodes are left out.
    """
    words = [
        (number, fields) for number, fields in _lines(path) if not fields or fields[0].isdigit()
    ]
    for where, sentence in _sentences(path, words, len(_CONLLU)):
        yield where, dict(zip(_CONLLU, map(list, zip(*sentence, strict=True)), strict=True))


def conll_rows(path: Path) -> Rows:
    """Sentences of CoNLL: the first column of each word as ``words``, the last one as ``tags``.

    A line before the first word of a sentence is a comment if it begins with ``#``, unless it reads
    like a word: it has as many columns as the others, no space behind ``#``, and in its last column
    the tag of another word.

    Raises:
        UserError: a word has another number of columns than the first one; or the first column
            counts the words (as in GermEval).
    """
    lines = _lines(path)
    doubtful = {
        number
        for (_, before), (number, fields) in pairwise([(0, []), *lines])
        if fields and fields[0].startswith("#") and (not before or before[0].startswith("#"))
    }
    words = [fields for number, fields in lines if fields and number not in doubtful]
    width, tags = len(words[0]) if words else 2, {fields[-1] for fields in words}
    comments = {
        number
        for number, fields in lines
        if number in doubtful
        and (len(fields) != width or fields[0].startswith("# ") or fields[-1] not in tags)
    }
    if comments:
        log.info(
            "%s: %d lines that begin with # are left out as comments, the first is line %d",
            path,
            len(comments),
            min(comments),
        )
    sentences = list(
        _sentences(path, [line for line in lines if line[0] not in comments], max(2, width))
    )
    if any(len(s) > 1 for _, s in sentences) and all(
        [w[0] for w in s] == [str(i + 1) for i in range(len(s))] for _, s in sentences
    ):
        raise UserError(
            f"{sentences[0][0]}: remove the first column (between tabs: grep -v '^#' OLD | cut "
            "-f2- > NEW); it counts the words of each sentence, where words are expected"
        )
    for where, sentence in sentences:
        yield (
            where,
            {
                "words": [fields[0] for fields in sentence],
                "tags": [fields[-1] for fields in sentence],
            },
        )


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The number of each line, and its columns: separated by tabs if it has any, else by spaces.

    Other spaces, such as U+00A0, are part of a word. There are no empty columns: separators at the
    ends, or beside one another, count as one. A line with -DOCSTART- counts as blank.
    """
    found = []
    for number, line in enumerate(decoded_lines(path), start=1):
        line = line.strip(" \t\n")
        columns = [
            part.strip(" ") for part in line.split("\t" if "\t" in line else " ") if part.strip(" ")
        ]
        found.append((number, [] if line.startswith("-DOCSTART-") else columns))
    return found


def _sentences(
    path: Path, lines: list[tuple[int, list[str]]], width: int
) -> Iterator[tuple[str, list[list[str]]]]:
    """The words between blank lines. Raises UserError for a line without ``width`` columns."""
    sentence: list[list[str]] = []
    start = 0
    for number, fields in [*lines, (0, [])]:
        if not fields:
            if sentence:
                yield f"{path}, line {start}", sentence
            sentence = []
            continue
        if len(fields) != width:
            raise UserError(
                f"{path}, line {number}: repair that line, with _ in a column that is empty; it "
                f"has {len(fields)} columns, where {width} are expected, as in the lines before "
                "it: the first is a word, the last its tag"
            )
        start = start if sentence else number
        sentence.append(fields)


def document_rows(path: Path) -> Rows:
    """Rows of a .json file: SQuAD's layout, an array of objects, or one object a line."""
    try:
        found = json_value("".join(decoded_lines(path, longest=_LARGEST_JSON)), str(path))
    except UserError as error:
        if getattr(error.__cause__, "msg", "") != "Extra data":
            raise
        yield from json_rows(path)
        return
    if not isinstance(found, list):
        yield from _squad_rows(path, found)
        return
    for number, row in enumerate(found, start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, entry {number}: write each row as an object, such as "
                f'{{"text": "a passage", "label": "a"}}; {json.dumps(row)[:40]} is not an object'
            )
        yield f"{path}, entry {number}", row


def _squad_rows(path: Path, found: object) -> Rows:
    """Questions of a SQuAD file: ``id``, ``context``, ``question``, ``answers``."""
    ids: Counter[str] = Counter()
    try:
        for article in found["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = question.get("answers", [])
                    given = {
                        key: [answer[key] for answer in answers] for key in ("text", "answer_start")
                    }
                    ids[str(question["id"])] += 1
                    yield (
                        f"{path}, question {question['id']}",
                        {
                            "id": question["id"],
                            "context": paragraph["context"],
                            "question": question["question"],
                            "answers": given,
                        },
                    )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: give data, paragraphs, qas, answers, or an array of objects, one for each "
            f"row; it is not in SQuAD's layout ({type(error).__name__}: {error})"
        ) from error
    twice = [name for name, count in ids.items() if count > 1]
    if twice:
        log.warning(
            "warning: %s: %d ids stand at several questions, for example '%s'; each question is an "
            "example of its own",
            path,
            len(twice),
            twice[0],
        )


def parquet_rows(path: Path) -> Rows:
    """Rows of a parquet file. Class numbers become class names, if the file has them."""
    import datasets  # here: a configuration is judged without it

    try:
        # without a cache, since that goes by file times
        table = datasets.Dataset(pyarrow.parquet.ParquetFile(path).read())
    except Exception as error:  # pyarrow and datasets raise whatever their readers raise
        raise UserError(
            f"{path}: replace it, it may be damaged; it cannot be read as parquet "
            f"({str(error).splitlines()[0]})"
        ) from error
    yield from named_rows(table, str(path))


def named_rows(table: "datasets.Dataset", name: str) -> Rows:
    """Rows of a dataset. Class names replace class numbers; -1 and -100 become NO_LABEL."""
    namers = {column: _namer(feature) for column, feature in table.features.items()}
    try:
        for number, row in enumerate(table):
            yield (
                f"{name}, row {number}",
                {column: namers[column](value) for column, value in row.items()},
            )
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: convert it to UTF-8; it has text that is not ({error.reason}: "
            f"{error.object[:40]!r})"
        ) from error


def _namer(feature: object) -> Callable[[Any], object]:
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return lambda value: _class_name(feature, value)
    inner = getattr(feature, "feature", None)  # of a list
    if isinstance(inner, datasets.ClassLabel):
        return lambda values: (
            None if values is None else [_class_name(inner, value) for value in values]
        )
    return lambda value: value


def _class_name(feature: "datasets.ClassLabel", value: int | None) -> object:
    if value in _UNLABELLED:
        return NO_LABEL
    return value if value is None else feature.int2str(value)


READERS: dict[str, Callable[[Path], Rows]] = {  # by the end of a file's name
    ".jsonl": json_rows,
    ".jsonl.gz": json_rows,
    ".csv": table_rows,
    ".tsv": table_rows,
    ".tsv.gz": table_rows,
    ".parquet": parquet_rows,
    ".conll": conll_rows,
    ".conllu": conllu_rows,
    ".json": document_rows,
}
