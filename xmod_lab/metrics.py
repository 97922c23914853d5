"""Reads metrics.json, and formats its numbers with no more digits than their errors allow.

The level of all intervals is here.
"""

import json
import math
from pathlib import Path

from xmod_lab.errors import UserError

LEVEL = 0.95  # of an interval
# clusters, passages or rows for an interval: fewer say too little about how they vary
AT_LEAST = 10
_LONGEST = 300  # characters of a metric's name
_ROUNDING = 1e-9  # an error below it comes from the order of sums
_DIGITS, _MOST_DIGITS = 2, 4  # decimals of a value with an unknown error; decimals at most


def read_metrics(file: Path) -> dict[str, float]:
    """The metrics of a finished run; empty if there is no ``file``.

    Raises:
        UserError: it cannot be read, or is not an object with finite numbers only.
    """
    if not file.is_file():
        return {}
    again = "finish the run again"
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{again}: {file} cannot be read ({ascii(str(error))[1:200]})") from error
    if not isinstance(found, dict):
        raise UserError(f"{again}: {file} is not an object of names and numbers")
    for name, value in found.items():
        if len(name) > _LONGEST:
            raise UserError(f"{again}: {file} has a name with {len(name):,} characters")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not abs(value) < 1e300:
            shown = "too large" if isinstance(value, int) and number else ascii(value)[:40]
            raise UserError(f"{again}: {ascii(name)} in {file} is {shown}, not a finite number")
    return found


def codes_of(metrics: dict[str, float], prefix: str) -> list[str]:
    """The languages that have a metric ``<prefix><code>``."""
    return [
        n.removeprefix(prefix)
        for n in metrics
        if n.startswith(prefix) and "/" not in n.removeprefix(prefix)
    ]


def half_width(metrics: dict[str, float], name: str) -> float | None:
    """Half of the width of a metric's interval (``…/low``, ``…/high``); ``None`` without one."""
    ends = metrics.get(f"{name}/low"), metrics.get(f"{name}/high")
    return None if None in ends else (ends[1] - ends[0]) / 2


def digits_of(error: float | None) -> int:
    """Number of decimals of a value with this ``error``, up to the first uncertain decimal.

    If the error begins with 1, one more, because rounding it loses too much (0.14 to 0.1). Two if
    the error is not known or nothing but rounding (equal values in every run): held-out texts of
    the usual sizes seldom allow more.
    """
    if not error or error < _ROUNDING:
        return _DIGITS
    return min(_MOST_DIGITS, max(0, math.ceil(-math.log10(error / 2))))


def number(value: float | None, digits: int = _DIGITS, *, sign: str = "") -> str:
    """``value`` with thousands separators, or a dash for ``None``.

    Args:
        sign: ``+`` for a difference.
    """
    return "–" if value is None else f"{value:{sign}z,.{digits}f}"


def with_error(value: float | None, half: float | None, *, sign: str = "") -> str:
    """``value`` with the digits that its error allows, followed by ``± half`` if it is known."""
    digits = digits_of(half)
    known = half and half >= _ROUNDING and value is not None
    return number(value, digits, sign=sign) + (f" ± {half:.{digits}f}" if known else "")


def told(metrics: dict[str, float], name: str, *, sign: str = "") -> str:
    """A metric with its error, as :func:`with_error` writes it; a dash if it is missing."""
    return with_error(metrics.get(name), half_width(metrics, name), sign=sign)


def interval_text(low: float | None, high: float | None, *, sign: str = "") -> str:
    """``[0.12, 0.34]`` with the digits that its width allows, or a dash if an end is missing."""
    if low is None or high is None:
        return "–"
    digits = digits_of((high - low) / 2)
    return f"[{number(low, digits, sign=sign)}, {number(high, digits, sign=sign)}]"
