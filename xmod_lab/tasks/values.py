"""What the values of a labelled row may be: a reader for each type, and labels that make classes.

A reader takes a value, and the place where it stands for messages. It returns the value as a task
uses it, or raises UserError. Any other type in a file is refused by its name: converted to text, it
would be Python's way to write it.
"""

import math
import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterable

from xmod_lab.errors import UserError

Reader = Callable[[object, str], object]

NO_LABEL = object()  # in place of a label: the data says that the row has none
# labels that may be classes, or may say that the row has none
DOUBTFUL = {"-", "-1", "-100", "_", "?", "null", "none", "None", "nan", "NaN", "N/A"}
_TYPES = {
    "dict": "a mapping",
    "list": "a list",
    "tuple": "a list",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "bytes": "binary",
    "NoneType": "null",
    "str": "text",
}


def read_text(value: object, where: str, expected: str = "text") -> str:
    """A text; binary is read as UTF-8."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}: write it as text; it is binary, and not UTF-8 ({error.reason} at byte "
                f"{error.start})"
            ) from error
    if not isinstance(value, str):
        raise wrong_value(value, where, expected)
    return value


def read_label(value: object, where: str) -> object:
    """A label as text, from text, a whole number, true or false; NO_LABEL stays."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(value)
    if value is NO_LABEL:
        return value
    return read_text(value, where, "a label (text or a whole number)")


def read_group(value: object, where: str) -> str:
    """The name of a group of examples as text, from text or a whole number."""
    text = str(value) if type(value) is int else value
    return read_text(text, where, "text or a whole number")


def read_texts(value: object, where: str) -> list[str]:
    """A list of texts."""
    return _read_each(read_text, value, where)


def read_labels(value: object, where: str) -> list:
    """A list of labels."""
    return _read_each(read_label, value, where)


def _read_each(read: Reader, value: object, where: str) -> list:
    if not isinstance(value, (list, tuple)):
        raise wrong_value(value, where, "a list")
    return [read(part, f"{where}, number {i}") for i, part in enumerate(value, start=1)]


def read_answers(value: object, where: str) -> dict[str, list]:
    """Answers as two lists, ``text`` and ``answer_start`` (characters from 0), as SQuAD has them.

    A list of answers, each with both keys, is read too.
    """
    if isinstance(value, dict) and all(
        isinstance(value.get(key), (list, tuple)) for key in ("text", "answer_start")
    ):
        texts, starts = list(value["text"]), list(value["answer_start"])
    elif isinstance(value, (list, tuple)) and all(isinstance(answer, dict) for answer in value):
        texts, starts = ([answer.get(key) for answer in value] for key in ("text", "answer_start"))
    else:
        raise wrong_value(value, where, 'answers such as {"text": ["Ada"], "answer_start": [0]}')
    if len(texts) != len(starts):
        raise UserError(
            f"{where}: give every answer both; there are {len(texts)} texts and {len(starts)} "
            "starts"
        )
    for i, start in enumerate(starts, start=1):
        if type(start) is not int or start < 0:
            raise wrong_value(
                start, f"{where}, answer_start, number {i}", "a whole number from 0 on"
            )
    return {
        "text": [read_text(text, f"{where}, text, number {i}") for i, text in enumerate(texts, 1)],
        "answer_start": starts,
    }


def wrong_value(value: object, where: str, expected: str) -> UserError:
    """The error of a value of another type than ``expected``."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UserError(
            f"{where}: fill it, or leave that row out; it is null, where {expected} is expected"
        )
    found = _TYPES.get(type(value).__name__, type(value).__name__)
    return UserError(
        f"{where}: name another column, or change the value; it is {found} "
        f"({reprlib.repr(value)}), where {expected} is expected"
    )


def classes(labels: Iterable[tuple[str, str]]) -> list[str]:
    """The classes that labels make: every label once, sorted.

    Args:
        labels: each label, and the place where it stands.

    Raises:
        UserError: a label is empty; or two labels look the same (they differ in spaces, invisible
            characters, composed letters, ``1`` and ``1.0``), but would be two classes.
    """
    first: dict[str, str] = {}  # label -> where it stands first
    for label, where in labels:
        first.setdefault(label, where)
    alike: dict[str, str] = {}  # what a reader sees -> label
    for label, where in first.items():
        seen = _as_seen(label)
        if not seen:
            raise UserError(
                f"{where}: give it a name, or leave that row out; the label is empty ({label!r})"
            )
        other = alike.setdefault(seen, label)
        if other != label:
            raise UserError(
                f"{where}: write them alike; label {label!r} would be another class than {other!r} "
                f"({first[other]}), but they mean the same"
            )
    return sorted(first)


def _as_seen(label: str) -> str:
    visible = "".join(
        c
        for c in unicodedata.normalize("NFC", label)
        if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace()
    )
    return re.sub(r"^(-?\d+)\.0+$", r"\1", " ".join(visible.split()))
