"""metrics.json as it is read back: figures by their names, each a finite number."""

import json
import math
from pathlib import Path

from xmod_lab.errors import UserError

_LONGEST = 300  # letters of a figure's name


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
    """Half of the interval that a figure's sample gives it (``…/low``, ``…/high``); ``None`` where it has none."""
    ends = figures.get(f"{name}/low"), figures.get(f"{name}/high")
    return None if None in ends else (ends[1] - ends[0]) / 2


def digits_of(error: float | None, most: int = 4) -> int:
    """How many decimals a figure with that ``error`` is told with: down to the first one in which it is uncertain."""
    return most if not error else min(most, max(0, math.ceil(-math.log10(error))))


def told(figures: dict[str, float], name: str, *, error: bool = True) -> str:
    """A figure with no more digits than its interval allows, and behind it half of that; a dash where there is none."""
    if name not in figures:
        return "–"
    half = half_width(figures, name)
    digits = digits_of(half)
    return f"{figures[name]:.{digits}f}" + (f" ± {half:.{digits}f}" if half and error else "")
