"""What a value of a labelled example may be, by its role: text, a label, or lists of them. Whatever else stands in a file is
refused by its type, since as text it would be Python's way to write it."""

import math
import reprlib

from xmod_lab.errors import UserError

NO_LABEL = object()  # in place of a label: the data says that there is none

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
_TEXTS = ("text", "premise", "hypothesis", "question", "context", "language", "split")


def read_value(role: str, value: object, where: str) -> object:
    """``value`` as ``role`` has it: a str of texts and labels, a list of them of ``words``, ``tags`` and ``choices``, and of
    ``answers`` a mapping of ``text`` and ``answer_start``. A label that is missing on purpose is NO_LABEL.

    Raises:
        UserError: it is null or of another type; it says ``where``.
    """
    if role in _TEXTS:
        return _text(value, where)
    if role == "label":
        return _label(value, where)
    if role == "group":
        return _text(str(value) if type(value) is int else value, where, "text or a whole number")
    if role == "answers":
        return _answers(value, where)
    one = _label if role == "tags" else _text
    if not isinstance(value, (list, tuple)):
        raise _wrong(value, where, "a list")
    return [one(part, f"{where}, number {i}") for i, part in enumerate(value, start=1)]


def _text(value: object, where: str, expected: str = "text") -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}: it is binary, and not UTF-8 ({error.reason} at byte {error.start}); write it as text"
            ) from error
    if not isinstance(value, str):
        raise _wrong(value, where, expected)
    return value


def _label(value: object, where: str) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(value)
    return value if value is NO_LABEL else _text(value, where, "a label (text or a whole number)")


def _answers(value: object, where: str) -> dict[str, list]:
    if isinstance(value, dict) and all(
        isinstance(value.get(key), (list, tuple)) for key in ("text", "answer_start")
    ):
        texts, starts = list(value["text"]), list(value["answer_start"])
    elif isinstance(value, (list, tuple)) and all(isinstance(answer, dict) for answer in value):
        texts, starts = ([answer.get(key) for answer in value] for key in ("text", "answer_start"))
    else:
        raise _wrong(value, where, 'answers such as {"text": ["Ada"], "answer_start": [0]}')
    if len(texts) != len(starts):
        raise UserError(
            f"{where}: {len(texts)} texts and {len(starts)} starts; give every answer both"
        )
    for i, start in enumerate(starts, start=1):
        if type(start) is not int or start < 0:
            raise _wrong(start, f"{where}, answer_start, number {i}", "a whole number from 0 on")
    return {
        "text": [_text(text, f"{where}, text, number {i}") for i, text in enumerate(texts, 1)],
        "answer_start": starts,
    }


def _wrong(value: object, where: str, expected: str) -> UserError:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UserError(
            f"{where}: it is null, where {expected} is expected; fill it, or leave that row out"
        )
    kind = _TYPES.get(type(value).__name__, type(value).__name__)
    return UserError(
        f"{where}: it is {kind} ({reprlib.repr(value)}), where {expected} is expected; name another column, or write "
        "it so"
    )
