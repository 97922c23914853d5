"""The folder of a run or a sweep: made before the work begins, removed if it has no results."""

import contextlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from xmod_lab.errors import UserError

# what every start writes, besides .hydra/ and *.log
_OF_EVERY_START = (".start", "multirun.yaml", "job.json", "sweep.json", "sweep.csv")


@dataclass
class OutputFolder:
    """The folder of the run, or of the sweep, that a command starts.

    Args:
        path: an absolute path.
        key: the setting that names it.
        made: the folders that did not exist before, the outermost first.
    """

    path: Path
    key: str
    made: list[Path] = field(default_factory=list)

    def make(self) -> None:
        """Make the folder.

        Raises:
            UserError: the folder cannot be made. Or a log or a file of Hydra would be written to a
                pipe, a folder or a link. (A link may lead anywhere.)
        """
        above = (*reversed(self.path.parents), self.path)
        try:
            self.made = [path for path in above if not path.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"set {self.key} to a folder that you can write to: {self.path} cannot be made "
                f"({error.strerror}: {error.filename})"
            ) from error
        hydras = self.path / ".hydra"
        kept = (*self.path.glob("*.log"), self.path / "multirun.yaml", *hydras.glob("*"))
        strange = [hydras] if hydras.is_symlink() else []
        strange += [p for p in kept if p.is_symlink() or (p.exists() and not p.is_file())]
        if strange:
            kind = "a link" if strange[0].is_symlink() else "no regular file"
            raise UserError(
                f"remove it, or choose another folder: {strange[0]} is {kind}, and would be "
                "written to"
            )

    def remove_if_empty(self, *, planned: bool) -> None:
        """Remove what :meth:`make` made, unless it holds more than what every start writes.

        Args:
            planned: plan.json counts as a file that every start writes.
        """
        if self.path not in self.made:
            return
        names = (*_OF_EVERY_START, "plan.json") if planned else _OF_EVERY_START
        for path in self.path.rglob("*"):
            hydras = path.parent.name == ".hydra" or path.suffix == ".log"
            if not (path.is_dir() or hydras or path.name in names):
                return
        shutil.rmtree(self.path, ignore_errors=True)
        for path in reversed(self.made[:-1]):
            with contextlib.suppress(OSError):  # it is in use
                path.rmdir()
