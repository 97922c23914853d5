"""Bounds on columns, such as ``language_score>=0.9``: which rows of a source are read."""

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from xmod_lab.errors import UserError

_OPERATORS: dict[str, Callable[[object, object], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_BOUND = re.compile(r"\s*(.+?)\s*(>=|<=|==|!=|>|<)\s*(?!=)(.+?)\s*", re.DOTALL)
FORM = "a column, one of " + " ".join(_OPERATORS) + ", and a number or a text, e.g. score>=0.9"


@dataclass(frozen=True)
class Bound:
    """What a column must be for a row to be read. A number is compared with numbers, a text with
    texts."""

    column: str
    operator: str
    value: float | str

    def __str__(self) -> str:
        return f"{self.column}{self.operator}{self.value}"

    @property
    def wanted(self) -> str:
        """The type of values that it compares, for messages."""
        return "text" if isinstance(self.value, str) else "numbers"

    def holds(self, found: object, where: str) -> bool:
        """Whether a row with this value is read. ``where`` it stands is for messages.

        Raises:
            UserError: the value is null or NaN, or of another type. A text is read as a number
                where one is expected, since a cell of a .csv is always a text.
        """
        value = found.decode(errors="replace") if isinstance(found, bytes) else found
        if not isinstance(self.value, str) and isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                value = None
        fits = (
            isinstance(value, str)
            if isinstance(self.value, str)
            else isinstance(value, (int, float)) and not isinstance(value, bool)
        )
        if not fits or value != value:  # NaN
            shown = "null" if found is None else f"{type(found).__name__} {found!r:.40}"
            raise UserError(
                f"{where}: leave {self} out of where, or write {self.wanted} into column "
                f"'{self.column}': it holds {shown}"
            )
        return _OPERATORS[self.operator](value, self.value)


def bounds_in(where: object) -> tuple[Bound, ...]:
    """The bounds that a setting ``where`` names: none, one, or a list of them that all must hold.

    Raises:
        UserError: one is no bound.
    """
    if where is None:
        return ()
    return tuple(map(_bound, where if isinstance(where, (list, tuple)) else [where]))


def _bound(text: object) -> Bound:
    found = _BOUND.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise UserError(f"{text!r} is no bound; write {FORM}")
    column, name, value = found.groups()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return Bound(column, name, value[1:-1])  # quoted: a text, even of digits
    try:
        number = float(value)
    except ValueError:
        return Bound(column, name, value)
    if math.isnan(number):
        raise UserError(f"{text!r} is no bound: nothing compares with nan; write {FORM}")
    return Bound(column, name, number)
