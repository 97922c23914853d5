"""metrics.json as it is read back: figures by their names, each a finite number."""

import json
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
        raise UserError(f"{file} cannot be read ({ascii(str(error))[1:200]}); finish the run again") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is no table of figures by their names; finish the run again")
    for name, value in found.items():
        if len(name) > _LONGEST:
            raise UserError(
                f"{file} has a figure whose name has {len(name):,} letters, as no run writes; finish the run again"
            )
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not abs(value) < 1e300:
            told = "an integer beyond all measure" if isinstance(value, int) and number else ascii(value)[:40]
            raise UserError(f"{file}: {ascii(name)} is {told}, which is no finite number; finish the run again")
    return found
