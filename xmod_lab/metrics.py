"""metrics.json as it is read back, and how its numbers are written: with no more digits than the error
allows."""

import json
import math
from pathlib import Path

from xmod_lab.errors import UserError

_LONGEST = 300  # letters of a figure's name
_DIGITS, _MOST_DIGITS = 4, 4  # decimals of a value with an unknown error, and of any


def read_figures(file: Path) -> dict[str, float]:
    """The figures of a finished run; none where there is no ``file``.

    Raises:
        UserError: it cannot be read, or is anything but finite numbers by name.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read ({ascii(str(error))[1:200]}); finish the run again"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is no table of figures by their names; finish the run again")
    for name, value in found.items():
        if len(name) > _LONGEST:
            raise UserError(
                f"{file} has a figure whose name has {len(name):,} letters, as no run writes; finish the run again"
            )
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not abs(value) < 1e300:
            told = (
                "an integer beyond all measure"
                if isinstance(value, int) and number
                else ascii(value)[:40]
            )
            raise UserError(
                f"{file}: {ascii(name)} is {told}, which is no finite number; finish the run again"
            )
    return found


def codes_of(figures: dict[str, float], prefix: str) -> list[str]:
    """The languages that have a figure ``<prefix><code>``."""
    return [
        n.removeprefix(prefix)
        for n in figures
        if n.startswith(prefix) and "/" not in n.removeprefix(prefix)
    ]


def half_width(figures: dict[str, float], name: str) -> float | None:
    """Half of the interval of a metric (``…/low``, ``…/high``); ``None`` where it has none."""
    ends = figures.get(f"{name}/low"), figures.get(f"{name}/high")
    return None if None in ends else (ends[1] - ends[0]) / 2


def digits_of(error: float | None) -> int:
    """How many decimals a value with that ``error`` is written with: down to the first uncertain one.

    Two where the error is not known: held-out texts of this size seldom allow more.
    """
    return _DIGITS if not error else min(_MOST_DIGITS, max(0, math.ceil(-math.log10(error))))


def number(value: float | None, digits: int = _DIGITS, *, sign: str = "") -> str:
    """``value`` with thousands marked, or a dash where there is none.

    Args:
        sign: ``+`` for a difference.
    """
    return "–" if value is None else f"{value:{sign},.{digits}f}"


def with_error(value: float | None, half: float | None, *, sign: str = "") -> str:
    """``value`` with the digits that its error allows, and ``± half`` behind it where that is known."""
    digits = digits_of(half)
    known = half and value is not None
    return number(value, digits, sign=sign) + (f" ± {half:.{digits}f}" if known else "")


def told(figures: dict[str, float], name: str) -> str:
    """A metric with its error, as :func:`with_error` writes it; a dash where there is none."""
    return with_error(figures.get(name), half_width(figures, name))


def interval_text(low: float | None, high: float | None, *, sign: str = "") -> str:
    """``[0.12, 0.34]`` with the digits that its width allows, or a dash where there is none."""
    if low is None or high is None:
        return "–"
    digits = digits_of((high - low) / 2)
    return f"[{number(low, digits, sign=sign)}, {number(high, digits, sign=sign)}]"
