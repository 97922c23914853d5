"""The classes of a task: the labels that its training split has."""

import re
import unicodedata
from collections.abc import Iterable

from xmod_lab.errors import UserError

DOUBTFUL = {
    "-",
    "-1",
    "-100",
    "_",
    "?",
    "null",
    "none",
    "None",
    "nan",
    "NaN",
    "N/A",
}  # may be classes, or say that there is none


def classes(labels: Iterable[tuple[str, str]]) -> list[str]:
    """Every label once, sorted. ``labels``: each with the place where it stands.

    Raises:
        UserError: one is empty, or two differ in nothing that can be seen (spaces, marks of no width, composed letters, ``1``
            and ``1.0``), and so would be classes of their own.
    """
    first: dict[str, str] = {}
    for label, where in labels:
        first.setdefault(label, where)
    alike: dict[str, str] = {}
    for label, where in first.items():
        seen = _as_seen(label)
        if not seen:
            raise UserError(
                f"{where}: the label is empty ({label!r}); give it a name, or leave that row out"
            )
        other = alike.setdefault(seen, label)
        if other != label:
            raise UserError(
                f"{where}: label {label!r} would be another class than {other!r} ({first[other]}), but they mean the "
                "same; write them alike"
            )
    return sorted(first)


def _as_seen(label: str) -> str:
    visible = "".join(
        c
        for c in unicodedata.normalize("NFC", label)
        if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace()
    )
    return re.sub(r"^(-?\d+)\.0+$", r"\1", " ".join(visible.split()))
