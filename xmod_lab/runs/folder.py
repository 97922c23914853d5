"""The folder of a run: its files, its lock, its state, and whether it may be continued.

Every file appears whole or not at all. metrics.json, the mark of a finished run, is written last.
"""

import json
import logging
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xmod_lab.config.identity import identity
from xmod_lab.config.schema import RunConfig
from xmod_lab.errors import UserError
from xmod_lab.files import (
    Busy,
    Lock,
    clear_scratch,
    is_full,
    lock,
    make_folder,
    remove,
    sync,
    sync_tree,
    write_whole,
)
from xmod_lab.machine import (
    cores,
    device_kind,
    fastest_precision,
    fastest_threads,
    precision_fault,
    slow_precision,
    torch_threads,
)
from xmod_lab.process_rank import rank
from xmod_lab.processes import barrier, of_first
from xmod_lab.runs.environment import ENVIRONMENT, environment
from xmod_lab.settings import command_of, read_settings

log = logging.getLogger(__name__)

# what a run that goes on must agree with: digests of data and base; also the id of the W&B run
STATE = "state.json"
# a file for each language: the bits of each of its held-out passages, by which runs are compared
PASSAGES = "passages"
# settings that count, but may change in a run that goes on: base and teacher are known by their
# digests, and the batches stay the same
MAY_CHANGE = ("base", "task.teacher", "trainer.devices", "trainer.nodes")
Run = TypeVar("Run", bound=RunConfig)
_LOCKS: dict[Path, Lock] = {}  # by run dir; the system releases them when this process ends
_FINISHED = "metrics.json"
# what every command may write; a name with a slash is a folder
_COMMON = ("checkpoints/", f"{PASSAGES}/", "metrics.csv", STATE)
_BESIDE = ("report_files/", "report.html", "plan.json", "samples.json", ENVIRONMENT)
_UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException)


class RunDir:
    """The folder of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path).resolve()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def finished(self) -> bool:
        """Whether there is a metrics.json that can be read."""
        try:
            return (self / _FINISHED).is_file() and isinstance(read_json(self / _FINISHED), dict)
        except UserError:
            return False

    def stored(self) -> dict:
        """config.yaml as written; empty if it does not exist. Raises UserError if unreadable."""
        return read_yaml(self / "config.yaml") if (self / "config.yaml").is_file() else {}

    def stored_by(self, command: str) -> dict:
        """The same. Raises UserError when it is that of a run of another command."""
        stored = self.stored()
        if is_run(stored) and (other := command_of(stored)) != command:
            raise UserError(
                f"use another hydra.run.dir: {self.path} holds a run of {other}, not of {command}"
            )
        return stored

    def fit_to_machine(self, cfg: Run, *, workers: int = 0, trains: bool = True) -> Run:
        """Choose precision and threads, and set torch to these threads.

        They are what ``cfg`` says, else what the run began with, else what is fast on this machine.
        All processes take the choice of the first one.

        Args:
            workers: loader processes, which need a core each.
            trains: ``False`` where nothing is trained; then the precision stays ``auto``.
        Raises:
            UserError: the run began in a precision that this device does not have.
        """
        stored = {}
        if cfg.resume == "auto":
            stored = self.stored().get("trainer") or {}
            kinds = {"precision": str, "threads": int | None}
            if not isinstance(stored, dict) or not all(
                isinstance(stored[k], t) for k, t in kinds.items() if k in stored
            ):
                raise _damaged(self / "config.yaml", "what it has as trainer is of another type")
        at_work = trains and (cfg.resume == "never" or not self.finished)
        choose = _precision if at_work else _precision_on_paper
        precision, threads = of_first(lambda: (choose(cfg, stored), _threads(cfg, stored, workers)))
        torch.set_num_threads(threads)
        return replace(cfg, trainer=replace(cfg.trainer, precision=precision, threads=threads))

    def begin(self, cfg: RunConfig, outputs: Sequence[str] = ()) -> bool:
        """Make the folder and write config.yaml, or compare an earlier config.yaml with ``cfg``.

        Args:
            outputs: the files, folders (``model/``) and patterns (``slots.*``) that the command
                writes, beside those that all commands write. Only these are ever deleted.
        Returns:
            Whether anything is left to do.
        Raises:
            UserError: the folder cannot be written, or holds a run with other settings.
        """
        if rank() == 0:
            self._begin(cfg, (*outputs, *_COMMON))
        barrier()
        if self.finished:
            log.info(
                "the run in %s is finished; nothing to do (resume=never starts it over)", self.path
            )
        return not self.finished

    def _begin(self, cfg: RunConfig, outputs: tuple[str, ...]) -> None:
        self._refuse_strange(outputs)
        if cfg.resume == "never" or not self.finished:
            self.lock()  # before anything is removed that another process needs
            for folder in (self.path, *self.path.parents):  # made by Hydra, or a moment ago
                sync(folder)
        clear_scratch(self.path)
        stored = self.stored_by(cfg.command)
        if cfg.resume == "never":
            # metrics.json marks a finished run: it goes first; config.yaml identifies the run: last
            for name in (_FINISHED, *outputs, *_BESIDE, "config.yaml"):
                for place in self._places(name):
                    remove(place)
            stored = {}
        now = asdict(cfg)
        del now["given"]  # a result does not depend on it
        if not stored:
            self.write_text("config.yaml", OmegaConf.to_yaml(OmegaConf.create(now)))
        differing = _differences({**stored, "command": cfg.command}, now) if stored else []
        if differing:
            raise UserError(
                "use another hydra.run.dir, the old settings, or resume=never to start it over: "
                f"the run dir {self.path} holds a run with other settings:\n"
                + "\n".join(f"  {key}: {old} there, {new} now" for key, old, new in differing)
            )
        if not self.finished:
            self._record_start()

    def _places(self, name: str) -> list[Path]:
        """What an output may be: a file or folder, or, for a pattern, those that there are."""
        name = name.rstrip("/")
        return sorted(self.path.glob(name)) if "*" in name else [self / name]

    def _record_start(self) -> None:
        """Add this start of the run to environment.json: command line, commits, versions."""
        try:
            starts = (
                read_json(self / ENVIRONMENT, dict)["starts"]
                if (self / ENVIRONMENT).is_file()
                else []
            )
        except (UserError, KeyError):
            starts = []  # no result depends on it
        self.write_json(ENVIRONMENT, {"starts": [*starts, environment()]})

    def lock(self) -> None:
        """Keep other processes from training in this folder until this process ends.

        Raises:
            UserError: another process is training there.
        """
        if rank() or self.path in _LOCKS:
            return
        try:
            make_folder(self.path)
            _LOCKS[self.path] = lock(self / ".lock", wait=False)
        except Busy as error:
            raise UserError(
                "wait for it, or use another hydra.run.dir: another process is training in "
                f"{self.path}"
            ) from error
        except OSError as error:
            if is_full(error):
                raise
            raise UserError(
                "set hydra.run.dir to a folder that you can write to: the run dir "
                f"{self.path} cannot be written ({error.strerror})"
            ) from error

    def _refuse_strange(self, outputs: Sequence[str]) -> None:
        """Raises UserError for a file or folder in the place of a run's own that no run wrote."""
        names = (*outputs, _FINISHED, "config.yaml")
        for name in (*names, ".lock"):
            fits, kind = (
                (Path.is_dir, "folder") if name.endswith("/") else (Path.is_file, "regular file")
            )
            for place in self._places(name):
                if (place.exists() or place.is_symlink()) and not fits(place):
                    raise UserError(
                        f"move it away, or use another hydra.run.dir: {place} is no {kind}"
                    )
        if is_run(self.stored()):
            return
        there = [place.name for name in names for place in self._places(name) if place.exists()]
        if there:
            raise UserError(
                f"use another hydra.run.dir, or move it away: {self.path} holds "
                f"{', '.join(there)}, but no config.yaml of a run: this is of something else, and "
                "nothing there is overwritten or deleted"
            )

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the run, whole or not at all, in the first process."""
        if rank():
            return
        write_whole(self / name, text.encode())

    def write_json(self, name: str, content: dict) -> None:
        self.write_text(name, json.dumps(content, indent=1, sort_keys=True))

    def write_passages(self, records: dict[str, dict]) -> None:
        """Write the bits of each held-out passage, a file for each language.

        ``records``: by language, as of :meth:`xmod_lab.scoring.passages.Passages.record`.
        """
        for code, record in records.items():
            self.write_text(f"{PASSAGES}/{code}.json", json.dumps(record))

    def finish(self, metrics: dict[str, float]) -> None:
        """Write metrics.json in the first process, after all other files are on the disk."""
        if rank() == 0:
            sync_tree(self.path)
            self.write_json(_FINISHED, metrics)

    def remember(self, **facts: object) -> None:
        """Keep facts about the run in state.json. A fact that was kept before must be the same.

        Raises:
            UserError: a fact differs, e.g. the text was changed since the run began.
        """
        state = self._state()
        for key, value in facts.items():
            if state.setdefault(key, value) != value:
                raise UserError(
                    "put the old text, tokenizer or base back, use another hydra.run.dir, or set "
                    f"resume=never to start over: the run in {self.path} began with {key} "
                    f"{state[key]}, now it is {value}"
                )
        self.write_json(STATE, state)

    def remember_once(self, key: str, make: Callable[[], object]) -> object:
        """The value of ``key`` in state.json, made by ``make`` the first time.

        It is always as JSON has it, for example a list for a tuple, so that a run that goes on gets
        the same value.
        """
        state = self._state()
        if key not in state:
            state[key] = json.loads(json.dumps(make()))
            self.write_json(STATE, state)
        return state[key]

    def _state(self) -> dict:
        return read_json(self / STATE, dict) if (self / STATE).is_file() else {}

    def latest_checkpoint(self, part: str = "") -> Path | None:
        """The checkpoint with the highest step, after a check of every byte in it.

        Raises:
            UserError: it is truncated or altered.
        """
        found = checkpoints_in(self / "checkpoints" / part)
        if not found:
            return None
        latest, older = found[-1], found[:-1]
        fault = _zip_fault(latest)
        if fault:
            last = (
                f"{older[-1].name} will then be used"
                if older
                else "the run will then start from its beginning"
            )
            raise UserError(
                f"delete the checkpoint ({last}), or set resume=never to start over: checkpoint "
                f"{latest} is damaged ({fault})"
            )
        return latest


def _precision(cfg: RunConfig, stored: dict) -> str:
    """The precision of a run. ``stored``: ``trainer`` in its config.yaml, empty if absent."""
    precision, kind = _precision_on_paper(cfg, stored), device_kind(cfg.trainer.accelerator)
    if precision == "auto":
        precision, why = fastest_precision(kind)
        log.info("precision: %s (%s)", precision, why)
        return precision
    if fault := precision_fault(precision, kind):
        raise UserError(
            "continue the run where it began, or start it over with resume=never: the run began "
            f"with trainer.precision={precision}, but {fault}"
        )
    if slow := slow_precision(precision, kind):
        log.warning("warning: trainer.precision is %s, and %s", precision, slow)
    return precision


def _precision_on_paper(cfg: RunConfig, stored: dict) -> str:
    """What ``cfg`` says, else what the run began with, else ``auto``."""
    return (
        stored.get("precision", "auto")
        if cfg.trainer.precision == "auto"
        else cfg.trainer.precision
    )


def _threads(cfg: RunConfig, stored: dict, workers: int) -> int:
    """The threads of each process of a run."""
    torch_threads()  # read before a run sets its own
    share = max(1, cores() // cfg.trainer.devices)
    if known := cfg.trainer.threads or min(stored.get("threads") or 0, share):
        return known
    kind = device_kind(cfg.trainer.accelerator)
    threads, why = fastest_threads(kind, workers=workers, processes=cfg.trainer.devices)
    log.info("threads: %d (%s)", threads, why)
    return threads


def read_json(file: Path, kind: type = object) -> object:
    """The content of a run's JSON file. Raises UserError if it is not JSON, or not a ``kind``."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except _UNREADABLE as error:
        raise _damaged(file, error) from error
    if not isinstance(found, kind):
        raise _damaged(file, f"it holds a {type(found).__name__}")
    return found


def read_yaml(file: Path) -> dict:
    """The configuration in ``file``. Raises UserError when it cannot be read."""
    try:
        found = read_settings(file) if file.is_file() else None
    except _UNREADABLE as error:
        raise _damaged(file, error) from error
    if not isinstance(found, dict):
        raise _damaged(file, "no mapping" if file.is_file() else "no regular file")
    return found


def _damaged(file: Path, why: object) -> UserError:
    why = (
        "nested too deep"
        if isinstance(why, RecursionError)
        else (str(why).splitlines() or [type(why).__name__])[0]
    )
    return UserError(
        f"put the right file back, or use another run: {file} cannot be read ({why[:200]})"
    )


def is_run(config: dict) -> bool:
    """Whether ``config`` is the config.yaml of a run, of this version or another."""
    return {"seed", "base", "trainer", "task"} <= config.keys() and isinstance(
        config["trainer"], dict
    )


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, by step."""
    found = [
        file for file in folder.glob("step*.ckpt") if re.fullmatch(r"step\d+\.ckpt", file.name)
    ]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which ``step<number>.ckpt`` was saved."""
    return int(checkpoint.stem.removeprefix("step"))


def _zip_fault(path: Path) -> str | None:
    """What is wrong with a torch checkpoint, judged by the CRC of every record."""
    if not path.is_file():
        return "it is no regular file"
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, zlib.error, RuntimeError) as error:
        return f"not a whole file: {error}"
    return None if bad is None else f"record {bad} is altered"


def _differences(old: dict, new: dict) -> list[tuple[str, object, object]]:
    """Settings that count and differ (not those in MAY_CHANGE): dotted key, old and new value."""
    a, b = identity(old), identity(new)
    return [
        (k, a.get(k), b.get(k))
        for k in sorted(a.keys() | b.keys())
        if a.get(k) != b.get(k) and k not in MAY_CHANGE
    ]
