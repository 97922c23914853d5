"""Commands that are killed at a file operation, lose power, or run out of disk space.

A *trial* is a command that writes into one folder only. It runs once undisturbed, which gives the
reference. Then it is disturbed, what it leaves is judged (:func:`faults_of_what_is_left`), it is
given again, and the result is compared with the reference (:func:`differences`).

File operations are those that Python's audit hooks report (files opened for writing, names made,
moved and removed, rights) and ``os.fsync``. Libraries that are not written in Python (tokenizers,
safetensors, Arrow) write between two of them, always to temporary places.
"""

import contextlib
import csv
import json
import os
import pickle
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.commands import forked
from xmod_lab.errors import UserError
from xmod_lab.runs.folder import RunDir

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_NAMES = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
)
_TIMES = ("second", "wandb_id")  # in the names of figures that no two runs share
_OWN_WAY = (
    "environment.json",
    ".log",
    ".ckpt",
)  # of times, or of whatever was done before; checkpoints are judged by their bytes

TOY = [
    "model.hidden_size=16",
    "model.num_attention_heads=2",
    "model.intermediate_size=16",
    "langset.vocabulary_size=400",
    "trainer.max_steps=2",
    "trainer.rows_per_step=4",
    "trainer.checkpoint_every=1",
    "trainer.log_every=1",
    "trainer.validate_every=1",
]
GREEK = ["+lang=greek", "lang.greek.vocabulary_size=300"]
NAMES = [
    "prepare",
    "rebuild",
    "pretrain",
    "never",
    "extend",
    "finetune",
    "evaluate",
    "rank",
    "report",
    "install",
    "remove",
    "export",
]


@dataclass(frozen=True)
class Trial:
    """A command and what its folder must hold.

    Attributes:
        arguments: of the command; all its output lies under ``out``.
        before: makes what is there before the command.
        built: patterns of folders that exist whole or not at all.
    """

    name: str
    command: str
    arguments: Callable[[Path], list[str]]
    built: tuple[str, ...] = ("run/model", "run/pack/*")
    before: Callable[[Path], None] = field(default=lambda out: None)

    def fresh(self, out: Path) -> Path:
        """``out`` as it is before the command."""
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        self.before(out)
        return out

    def run(
        self, out: Path, hook: Callable[[], contextlib.AbstractContextManager] | None = None
    ) -> tuple[int, str]:
        """Exit status (negative: the signal that killed it) and what was said."""
        with tempfile.TemporaryDirectory() as said:
            process = forked.FORKS.Process(
                target=_main, args=(self.command, self.arguments(out), out.parent, Path(said), hook)
            )
            process.start()
            process.join(300)
            if process.exitcode is None:
                process.kill()
                raise AssertionError(f"{self.name} hangs")
            return process.exitcode, "".join(
                file.read_text(errors="replace") for file in sorted(Path(said).iterdir())
            )

    def operations(self, out: Path) -> int:
        """How many file operations there are, in an undisturbed run."""
        with tempfile.NamedTemporaryFile("r") as told:
            status, said = self.run(self.fresh(out), partial(count, out, Path(told.name)))
            assert status == 0, said
            return int(told.read())


def _main(
    command: str, arguments: list[str], folder: Path, said: Path, hook: Callable[[], None] | None
) -> None:
    with hook() if hook is not None else contextlib.nullcontext():
        forked._main(
            command,
            arguments,
            folder,
            [said / "out", said / "err"],
            {**os.environ, "WANDB_SILENT": "true"},
        )


@contextlib.contextmanager
def watched(
    out: Path, before: Callable[[], None], after: Callable[[int], None] = lambda descriptor: None
):
    """Call ``before()`` before each file operation in ``out``, ``after(fd)`` after each fsync."""
    place, on, real = str(out), True, os.fsync

    def watch(event: str, arguments: tuple) -> None:
        if on and (event == "open" and (arguments[2] or 0) & _WRITES or event in _NAMES):
            path = (
                os.fspath(arguments[0])
                if isinstance(arguments[0], str | bytes | os.PathLike)
                else ""
            )
            if (
                os.fsdecode(path).startswith(place)
                or event != "open"
                and not os.path.isabs(os.fsdecode(path))
            ):
                before()  # a name without a folder is one in a folder that is being deleted

    def fsync(descriptor: int) -> None:
        before()
        real(descriptor)
        after(descriptor)

    sys.addaudithook(watch)
    os.fsync = fsync
    try:
        yield
    finally:
        on, os.fsync = False, real


@contextlib.contextmanager
def count(out: Path, told: Path):
    """Write the number of file operations to ``told``."""
    operations = []
    with watched(out, lambda: operations.append(1)):
        try:
            yield
        finally:
            descriptor = os.open(told, os.O_WRONLY)
            os.write(descriptor, str(len(operations)).encode())
            os.close(descriptor)


@contextlib.contextmanager
def kill(out: Path, number: int):
    """SIGKILL before file operation ``number``, from 1."""
    left = [number]

    def strike() -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    with watched(out, strike):
        yield


def tree(folder: Path) -> dict[str, Path]:
    """The visible files under ``folder``: neither they nor their folders begin with a dot."""
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def same(a: Path, b: Path) -> bool:
    """Whether two files say the same: all bytes, except times in figures."""
    if a.name == "metrics.csv":
        first, second = (
            [_timeless(row) for row in csv.DictReader(path.read_text().splitlines())]
            for path in (a, b)
        )
        return first == second
    if a.name == "config.yaml":  # resume=never is said of a start, not of a run
        first, second = (
            [line for line in path.read_text().splitlines() if not line.startswith("resume:")]
            for path in (a, b)
        )
        return first == second
    if a.name in ("metrics.json", "state.json", "seed1.json"):
        try:
            return _timeless(json.loads(a.read_text())) == _timeless(json.loads(b.read_text()))
        except ValueError:
            return False
    return a.read_bytes() == b.read_bytes()


def _of_time(name: str) -> bool:
    return any(word in name for word in _TIMES)


def _timeless(content: object) -> object:
    return (
        {k: _timeless(v) for k, v in content.items() if not _of_time(k)}
        if isinstance(content, dict)
        else content
    )


def differences(out: Path, reference: Path) -> list[str]:
    """What is otherwise in ``out`` than where the command was never disturbed, scratch included."""
    here, there = tree(out), tree(reference)
    faults = [
        f"{name} is {'missing' if name in there else 'too many'}"
        for name in sorted(here.keys() ^ there.keys())
    ]
    faults += [
        f"{n} differs"
        for n in sorted(here.keys() & there.keys())
        if not n.endswith(_OWN_WAY) and not same(here[n], there[n])
    ]
    scratch = [
        p
        for p in out.rglob(".*")
        if p.name.endswith(".part") or p.name.endswith(".lock") and p.name != ".lock"
    ]
    return faults + [f"{path} is left" for path in scratch]


def faults_of_going_on(trial: Trial, out: Path, reference: Path) -> list[str]:
    """Give the command again, and list the differences from the reference.

    ``packs`` refuses a folder that it has made already.
    """
    status, said = trial.run(out)
    if status and not (trial.command == "packs" and "exists already" in said):
        return [f"given again: {said[-1500:]}"]
    return differences(out, reference)


def faults_of_what_is_left(trial: Trial, out: Path, reference: Path) -> list[str]:
    """What of a command that was disturbed counts as whole, and is not."""
    faults, whole, there = [], tree(reference), tree(out)
    for pattern in trial.built:
        for folder in (path for path in out.glob(pattern) if not path.name.startswith(".")):
            faults += [
                f"of {folder}: {fault}"
                for fault in differences(folder, reference / folder.relative_to(out))
            ]
    run = RunDir(out / "run")
    if (run / "metrics.json").is_file():
        missing = [name for name in whole if name.startswith("run/") and name not in there]
        faults += [f"metrics.json is there, {name} is not" for name in missing]
        faults += [] if run.finished else ["metrics.json is there, and damaged"]
        faults += [
            f"metrics.json is there, {n} differs"
            for n in there
            if n.startswith("run/")
            and n in whole
            and not n.endswith(_OWN_WAY)
            and not same(there[n], whole[n])
        ]
    for name, path in there.items():
        if (
            name.endswith((".json", ".yaml", ".csv", ".png", ".html", ".tex"))
            and path.name != "metrics.csv"
            and not path.stat().st_size
        ):
            faults.append(f"{name} is empty")
    parts = {
        path.parent.relative_to(run / "checkpoints")
        for path in (run / "checkpoints").rglob("step*.ckpt")
    }
    for part in parts:
        try:
            run.latest_checkpoint(str(part))
        except UserError as error:
            faults.append(str(error))
    return faults


class Disk:
    """What a power cut can leave of ``out``: only what fsync has brought to the disk, in two ways.

    ``strict``: a folder has the names, and a file the bytes, that it had at its last fsync.
    ``early``: all names are as they are, since a file system may write names before the bytes that
    they stand for; files without fsync are empty. Real disks leave something between the two.
    """

    def __init__(self, out: Path):
        self.out = out
        self.pieces = [b""]  # the contents of files
        self.content: dict[int, int] = {}  # inode -> its number among the pieces
        self.names: dict[
            int, list[tuple[str, int, bool]]
        ] = {}  # inode of a folder -> name, inode, whether it is a folder
        self.held: list[int] = []  # descriptors, so that no inode is used twice
        self.cuts: list[
            dict[str, dict[str, int | None]]
        ] = []  # after each fsync: way -> path -> piece, None for a folder

        for place, _, files in os.walk(
            out
        ):  # what was there before the command has been on the disk for long
            for path in (place, *(os.path.join(place, name) for name in files)):
                descriptor = os.open(path, os.O_RDONLY)
                self._keep(descriptor)
                os.close(descriptor)

    def brought(self, descriptor: int) -> None:
        """An fsync has returned."""
        self._keep(descriptor)
        self.cuts.append(
            {
                "strict": dict(self._strict(self.out.stat().st_ino, "")),
                "early": dict(self._early(self.out, "")),
            }
        )

    def _keep(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self.names[found.st_ino] = [
                (e.name, e.inode(), e.is_dir(follow_symlinks=False)) for e in os.scandir(descriptor)
            ]
        else:
            self.held.append(os.dup(descriptor))
            self.pieces.append(Path(f"/proc/self/fd/{descriptor}").read_bytes())
            self.content[found.st_ino] = len(self.pieces) - 1

    def _strict(self, folder: int, path: str):
        for name, inode, is_folder in self.names.get(folder, []):
            yield f"{path}{name}", None if is_folder else self.content.get(inode, 0)
            if is_folder:
                yield from self._strict(inode, f"{path}{name}/")

    def _early(self, folder: Path, path: str):
        for entry in os.scandir(folder):
            is_folder = entry.is_dir(follow_symlinks=False)
            yield f"{path}{entry.name}", None if is_folder else self.content.get(entry.inode(), 0)
            if is_folder:
                yield from self._early(Path(entry), f"{path}{entry.name}/")


@contextlib.contextmanager
def record(out: Path, told: Path):
    """Write to ``told``, as a pickle, what a cut after each fsync would leave of ``out``.

    It holds the pieces and the cuts of a :class:`Disk`.
    """
    disk = Disk(out)
    with watched(out, lambda: None, disk.brought):
        try:
            yield
        finally:
            with told.open("wb") as stream:
                pickle.dump((disk.pieces, disk.cuts), stream)


def lay_out(cut: dict[str, int | None], pieces: list[bytes], out: Path) -> None:
    """Make ``out`` what a cut has left."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name, piece in cut.items():
        if piece is None:
            (out / name).mkdir(exist_ok=True)
        else:
            (out / name).write_bytes(pieces[piece])


def spread(operations: int, count: int) -> list[int]:
    """``count`` numbers from 1 to ``operations``, both among them."""
    return sorted({1 + round(i * (operations - 1) / max(1, count - 1)) for i in range(count)})
