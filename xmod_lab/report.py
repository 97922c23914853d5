"""Write one self-contained HTML page about runs or a sweep, with its tables as LaTeX and CSV.

    python -m xmod_lab.report RUN_OR_SWEEP... [--out FILE.html]

Searches folders for runs. Writes RUN/report.html or SWEEP/report.html; for several paths
report/report.html. The tables are in report_files/ beside the page. Reads only run dirs.
"""

from xmod_lab.stops import quiet_when_interrupted

if __name__ == "__main__":
    quiet_when_interrupted()

import argparse
import sys
from pathlib import Path

from xmod_lab.errors import UserError, printable


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m xmod_lab.report",
        description=__doc__.split("\n")[0],
        epilog="Runs that differ only by their seed are one group, with means, intervals over "
        "bases or seeds, and curves in one plot.",
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN_OR_SWEEP",
        help="a run dir, or a folder with runs in it, e.g. runs/sweeps/<time>",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.html",
        help="the page; by default report.html in the given folder",
    )
    arguments = parser.parse_args()
    from xmod_lab.cli import run_function  # imported here: usage errors must not wait for it

    run_function(lambda: _report(arguments.runs, arguments.out))


def _report(paths: list[Path], out: Path | None) -> None:
    place = out or (paths[0] if len(paths) == 1 else Path("report")) / "report.html"
    if place.suffix != ".html":
        raise UserError(f"let --out end in .html: it is {place}")
    from xmod_lab.reports.page import (
        render,
        write,
    )  # imported here: usage errors must not wait for it
    from xmod_lab.reports.results import find_runs

    found = find_runs(paths)
    page, files = render(found)
    place.parent.mkdir(parents=True, exist_ok=True)
    print(printable(str(place)))
    print(printable(str(write(page, files, place))))
    for why in found.faults.values():
        print(f"left out: {printable(why)}", file=sys.stderr)


if __name__ == "__main__":
    main()
