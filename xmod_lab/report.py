"""Write RUN/report.html: one self-contained page with curves, mixture, before and after, and the proof of a run.

python -m xmod_lab.report RUN
"""

import argparse
import os
import sys
from pathlib import Path

from xmod_lab.command import guarded
from xmod_lab.reports.page import read_run, render


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(prog="python -m xmod_lab.report", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a run dir, e.g. runs/pretrain/2026-01-31_12-00-00")
    arguments = parser.parse_args()
    sys.exit(guarded(lambda: _write(arguments.run)))


def _write(path: Path) -> None:
    page = render(read_run(path))
    temporary = path / ".report.html.tmp"
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path / "report.html")
    print(path / "report.html")


if __name__ == "__main__":
    main()
