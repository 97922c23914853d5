"""File types of labelled data: each reader yields rows, column -> value, and where they stand."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from xmod_lab.errors import UserError
from xmod_lab.text.corpus import decoded_lines, json_rows

if TYPE_CHECKING:
    import datasets

Rows = Iterator[tuple[str, dict]]
_CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


def table_rows(path: Path) -> Rows:
    """Lines of .csv (quoted as usual) or .tsv (never quoted, as in XNLI), under a first line that names the columns."""
    tabs = ".tsv" in path.suffixes
    options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    reader = csv.DictReader(decoded_lines(path), **options)
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row or None in row.values():
            raise UserError(f"{where}: it has {'more' if None in row else 'fewer'} fields than the {len(reader.fieldnames)} "
                            "columns that the first line names; repair that line")  # fmt: skip
        yield where, row


def conll_rows(path: Path) -> Rows:
    """Sentences of words in lines, blank lines between them. CoNLL-U has its ten columns, as ``form``, ``upos``, …; of CoNLL
    the first column is ``words`` and the last ``tags``."""
    universal = ".conllu" in path.suffixes
    lines: list[list[str]] = []
    start = 0
    for number, line in enumerate([*decoded_lines(path), "\n"], start=1):
        line = line.rstrip("\r\n")
        fields = line.split("\t") if "\t" in line else line.split()
        if not fields:
            if lines:
                yield f"{path}, line {start}", _sentence(lines, universal)
            lines = []
            continue
        if line.startswith("-DOCSTART-") or (universal and (line.startswith("#") or not fields[0].isdigit())):
            continue
        if len(fields) != 10 if universal else len(fields) < 2:
            raise UserError(f"{path}, line {number}: {len(fields)} columns, where {'ten' if universal else 'a word and a tag'} "
                            "are expected; repair that line")  # fmt: skip
        start = start if lines else number
        lines.append(fields)


def _sentence(lines: list[list[str]], universal: bool) -> dict[str, list[str]]:
    if universal:
        return dict(zip(_CONLLU, map(list, zip(*lines, strict=True)), strict=True))
    return {"words": [fields[0] for fields in lines], "tags": [fields[-1] for fields in lines]}


def squad_rows(path: Path) -> Rows:
    """Questions of a SQuAD file: ``id``, ``context``, ``question``, ``answers``."""
    try:
        for article in json.loads("".join(decoded_lines(path)))["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = question.get("answers", [])
                    found = {key: [answer[key] for answer in answers] for key in ("text", "answer_start")}
                    yield f"{path}, question {question['id']}", {
                        "id": question["id"], "context": paragraph["context"], "question": question["question"],
                        "answers": found,
                    }  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not in SQuAD's layout ({type(error).__name__}: {error}); expected data, paragraphs, qas, answers"
                        ) from error  # fmt: skip


def parquet_rows(path: Path) -> Rows:
    """Rows of a parquet file; numbers of classes become their names, if the file has them."""
    import datasets  # here, since a configuration is judged without it

    try:
        table = datasets.Dataset.from_parquet(str(path))
    except Exception as error:  # datasets raises whatever its readers raise
        raise UserError(
            f"{path} cannot be read as parquet ({str(error).splitlines()[0]}); it may be damaged"
        ) from error
    yield from named_rows(table, str(path))


def named_rows(table: "datasets.Dataset", name: str) -> Rows:
    """Rows of a dataset, with the names of classes in place of their numbers (-1, no label, stays)."""
    namers = {column: _namer(feature) for column, feature in table.features.items()}
    for number, row in enumerate(table):
        yield f"{name}, row {number}", {column: namers[column](value) for column, value in row.items()}


def _namer(feature: object) -> Callable:
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return lambda value: value if value is None or value < 0 else feature.int2str(value)
    inner = getattr(feature, "feature", None)  # of a list
    if isinstance(inner, datasets.ClassLabel):
        return lambda values: [inner.int2str(value) for value in values]
    return lambda value: value


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": json_rows, ".jsonl.gz": json_rows, ".csv": table_rows, ".tsv": table_rows, ".parquet": parquet_rows,
    ".conll": conll_rows, ".conllu": conll_rows, ".json": squad_rows,
}  # fmt: skip
