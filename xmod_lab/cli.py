"""What all commands share: Hydra around a function, one clear message for a bad input, and the exit status.

Exit status: 0 done; 1 a proof that does not hold, or a bug, with its traceback; 2 bad input; 130 interrupted, 143 by SIGTERM.

A configuration is composed and judged before torch and the like are imported, which takes seconds: this module and what it imports
import them inside of functions, and so do the commands. What is refused or only planned leaves no folder behind.
"""

import contextlib
import copy
import logging
import os
import select
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from xmod_lab.config.overrides import (
    arranged,
    as_typed,
    explain,
    file_faults,
    setting_faults,
    unknown_keys,
)
from xmod_lab.config.own_files import SCHEME, chosen_files, hidden_files
from xmod_lab.config.rules import raise_faults, validate
from xmod_lab.config.schema import CONF_DIR, PretrainConfig, from_hydra, register_schemas
from xmod_lab.errors import INTERRUPTED, STOPPED, ProofError, Stopped, UserError
from xmod_lab.files import is_full
from xmod_lab.settings import flatten
from xmod_lab.stops import Obeying, leave, status_of

log = logging.getLogger(__name__)
_OF_EVERY_START = (
    ".start",
    "multirun.yaml",
    "job.json",
    "sweep.json",
    "sweep.csv",
)  # besides .hydra/ and *.log
_MOST_LINES, _LONGEST = 40, 1_000  # of a message
Work = Callable[[Any, Path], int | None]


@dataclass
class _Start:
    """A start of a command, as Hydra's hooks know it and note what comes of it.

    Args:
        judge: gives the configuration as dataclasses, or raises UserError; of it and of Hydra's own.
        composed: Hydra has read the command line, and what fails from now on is no fault in it.
        folder: of the run, or of the sweep that this process leads; ``named`` on the command line.
        made: folders that there were not before, the outermost first.
        jobs: of the sweep, by their overrides, where they are known before it.
    """

    judge: Callable[[DictConfig, DictConfig], Any]
    composed: bool = False
    planned: bool = False
    sweeps: bool = False
    named: bool = False
    folder: Path | None = None
    made: list[Path] = field(default_factory=list)
    jobs: list[list[str]] = field(default_factory=list)

    def settle(self, folder: Path) -> None:
        """Make the folder. Raises UserError where that cannot be done, or where a file that is written in its place, a log or one
        of Hydra's, is a pipe, a folder, or a link, which may lead anywhere."""
        self.folder = Path(os.path.abspath(folder))
        try:
            self.made = [
                path for path in (*reversed(self.folder.parents), self.folder) if not path.exists()
            ]
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            key = "hydra.sweep.dir" if self.sweeps else "hydra.run.dir"
            raise UserError(
                f"the folder {folder} cannot be made ({error.strerror}: {error.filename}); set {key} to one that you can "
                "write to"
            ) from error
        hydras = self.folder / ".hydra"
        kept = (*self.folder.glob("*.log"), self.folder / "multirun.yaml", *hydras.glob("*"))
        strange = [
            path for path in kept if path.is_symlink() or (path.exists() and not path.is_file())
        ]
        if strange := [*([hydras] if hydras.is_symlink() else []), *strange]:
            raise UserError(
                f"{strange[0]} is {'a link' if strange[0].is_symlink() else 'no regular file'}, and would be written to; "
                "remove it, or choose another folder"
            )

    def leave_nothing(self) -> None:
        """Remove what this start has made, if no more is in it than what every start writes."""
        if self.folder is None or self.folder not in self.made:
            return
        files = [path for path in self.folder.rglob("*") if not path.is_dir()]
        if not all(self._of_every_start(file) for file in files):
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in reversed(self.made[:-1]):
            with contextlib.suppress(OSError):  # it is in use
                path.rmdir()

    def _of_every_start(self, file: Path) -> bool:
        hydras = (
            file.parent.name == ".hydra" or file.suffix == ".log" or file.name in _OF_EVERY_START
        )
        return hydras or (file.name == "plan.json" and self.planned)


_starts: list[_Start] = []  # under way; one, but for commands that are called from Python


def run_command(
    name: str, work: Work, *, schema: type = PretrainConfig, check: Callable[[Any], None] = validate
) -> None:
    """Compose ``conf/<name>.yaml`` with the command line, validate it, and call ``work`` with the
    configuration and the run dir. Never returns.

    Args:
        schema: of the configuration; ``check`` raises UserError for what it cannot be.

    A job of a sweep that fails leaves the others alone; the sweep ends with a table of its jobs, and its exit status is the
    highest of theirs. A job that is finished is passed over (:mod:`xmod_lab.runs.jobs` says what counts as the same job).
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here as they are
    register_schemas(**{f"{name}_schema": schema})
    statuses, typed = [], sys.argv

    def judge(composed: DictConfig, hydra_cfg: DictConfig) -> Any:
        return _judged(composed, hydra_cfg, schema, check)

    @hydra.main(version_base="1.3", config_path=CONF_DIR, config_name=name)
    def job(composed: DictConfig) -> None:
        sys.argv = typed  # as it was, for what asks for it

        def run() -> int | None:
            return _work(composed, work, judge)

        planned = composed.get("plan", False)  # then there is nothing to remember
        if HydraConfig.get().mode == RunMode.MULTIRUN and not planned:
            statuses.append(_job_of_sweep(run, fresh=composed.resume == "never"))
        else:
            statuses.append(guarded(run))
        if statuses[-1] in STOPPED:
            raise KeyboardInterrupt

    start, swept = _Start(judge), None
    _starts.append(start)

    def composed_and_done() -> None:
        try:
            flags, settings = arranged(typed[1:])
            raise_faults(setting_faults(settings, schema))
            sys.argv = [typed[0], *flags, *settings]
            job()
        except (UserError, HydraException, OmegaConfBaseException):
            raise
        except Exception as error:
            if start.composed:
                raise
            raise UserError(
                explain(error)
            ) from error  # in a file or on the command line, whatever reads it has raised

    with Obeying().entered():
        try:
            statuses.append(guarded(composed_and_done))
        finally:
            sys.argv = typed
            _starts.remove(start)
            if start.sweeps:
                from xmod_lab.runs.sweep import finish_sweep

                swept = finish_sweep(start.folder, start.jobs)
        status = max(*statuses, swept or 0)
        if status in (2, *STOPPED) or (start.planned and not start.named):
            start.leave_nothing()
        if set(STOPPED) & set(statuses):
            again = ""
            if (
                not (start.sweeps or start.named)
                and start.folder is not None
                and start.folder.exists()
            ):
                again = f" with {as_typed('hydra.run.dir', str(start.folder))}"
            print(
                f"interrupted; the same command{again} goes on from the newest checkpoint",
                file=sys.stderr,
            )
    leave(status)


def run_function(work: Callable[[], int | None]) -> NoReturn:
    """The same for a command without a configuration: call ``work``, and end with its exit status."""
    with Obeying().entered():
        status = guarded(work)
    leave(status)


class Hooks(Callback):
    """What Hydra calls (conf/hydra names it) before it makes a folder. It passes over exceptions, but not over SystemExit."""

    def on_run_start(self, config: DictConfig, **_: object) -> None:
        """Before a run: refuse what can be refused, and make its folder."""
        self._end_if(guarded(lambda: self._begin_run(config)))

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Before the first job of a sweep, in the process that leads it."""
        self._end_if(guarded(lambda: self._begin_sweep(config)))

    def _begin_run(self, config: DictConfig) -> None:
        start = _noted(config, "hydra.run.dir")
        own = copy.deepcopy(config)
        with open_dict(own):
            del own["hydra"]
        start.judge(own, config.hydra)
        start.settle(Path(config.hydra.run.dir))

    def _begin_sweep(self, config: DictConfig) -> None:
        start = _noted(config, "hydra.sweep.dir")
        from xmod_lab.runs.sweep import begin_sweep, planned_jobs, settle_folder

        folder = settle_folder(config)
        start.sweeps, start.jobs = True, planned_jobs(config)
        start.settle(folder)
        begin_sweep(folder, again=folder not in start.made)

    @staticmethod
    def _end_if(status: int) -> None:
        if status:
            sys.exit(status)


def _noted(config: DictConfig, key: str) -> _Start:
    """The start that is under way, with what its configuration says of it."""
    start = _starts[-1]
    start.composed, start.planned = True, bool(config.get("plan", False))
    start.named = any(override.startswith(f"{key}=") for override in config.hydra.overrides.hydra)
    return start


def _job_folder(*, _root_: DictConfig) -> str:
    from xmod_lab.runs.jobs import job_folder

    return job_folder(_root_=_root_)


# Here, because launchers that run jobs in other processes do no more there than to import what the job needs
OmegaConf.register_new_resolver("job_folder", _job_folder, replace=True)


def _job_of_sweep(work: Callable[[], int | None], *, fresh: bool) -> int:
    """Call ``work``, unless the job is finished, and keep in its folder what became of it. A failure is told, never raised.

    Args:
        fresh: the job starts over, whatever is there.
    """
    from xmod_lab.runs.jobs import Job
    from xmod_lab.runs.sweep import start_of

    hydra_cfg = HydraConfig.get()
    job = Job(
        start_of(Path(hydra_cfg.sweep.dir)), hydra_cfg.job.num, list(hydra_cfg.overrides.task)
    )
    folder, reasons = Path(hydra_cfg.runtime.output_dir), []
    try:
        status = guarded(lambda: work() if job.begin(folder, fresh=fresh) else 0, reasons.append)
    except Exception as error:
        log.exception("this job ends by a bug; the others go on")
        status, reasons = 1, [f"{type(error).__name__}: {error}"]
    job.end(folder, status, " ".join(reasons))
    return status


def _judged(
    composed: DictConfig, hydra_cfg: DictConfig, schema: type, check: Callable[[Any], None]
) -> Any:
    """The configuration as dataclasses of its ``schema``. Raises UserError for what it cannot be."""
    own = [
        Path(source.path) for source in hydra_cfg.runtime.config_sources if source.schema == SCHEME
    ]
    faults = setting_faults(list(hydra_cfg.overrides.task), schema)
    typed = {
        override.lstrip("+~").partition("=")[0] for override in hydra_cfg.overrides.task
    }  # others may be of another project
    chosen = OmegaConf.to_container(hydra_cfg.runtime.choices)
    faults += hidden_files(
        own, Path(CONF_DIR), {group: chosen[group] for group in chosen.keys() & typed}
    )
    for file, part in chosen_files(own, chosen):
        faults += file_faults(file, part, schema)
    if hydra_cfg.job.chdir:
        faults.append(
            "hydra.job.chdir is true; paths are meant from where the command is started, and all that a run writes is in its "
            "run dir anyway: leave it out"
        )
    faults += unknown_keys(flatten(OmegaConf.to_container(composed)), schema)
    raise_faults(list(dict.fromkeys(faults)))
    cfg = from_hydra(composed)
    check(cfg)
    return cfg


def _work(
    composed: DictConfig, work: Work, judge: Callable[[DictConfig, DictConfig], Any]
) -> int | None:
    hydra_cfg = HydraConfig.get()
    cfg = judge(composed, hydra_cfg)
    command = hydra_cfg.job.config_name
    typed = [override.lstrip("+~").partition("=")[0] for override in hydra_cfg.overrides.task]
    usual = compose(command, return_hydra_config=False)
    before, now = flatten(OmegaConf.to_container(usual)), flatten(OmegaConf.to_container(composed))
    by_file = [key for key, value in now.items() if before.get(key) != value]  # an experiment, say
    cfg = replace(cfg, command=command, given=(*typed, *by_file))
    if hydra_cfg.mode == RunMode.MULTIRUN and cfg.logger.group is None:
        group = Path(hydra_cfg.sweep.dir).name
        cfg = replace(cfg, logger=replace(cfg.logger, group=group))
    hide_bars()
    return work(cfg, Path(hydra_cfg.runtime.output_dir))


def hide_bars() -> None:
    """No progress bars for saving small files; the long work has bars of its own."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def guarded(
    job: Callable[[], int | None], heard: Callable[[str], None] = lambda message: None
) -> int:
    """Call ``job`` and return the exit status: its own, if it returns one. A message for the user goes to stderr, and to
    ``heard``."""

    def say(message: str, status: int) -> int:
        message = _readable(message)
        print(f"error: {message}", file=sys.stderr)
        heard(message)
        return status

    logging.raiseExceptions = False  # a line that the log file has no room for is no traceback
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|torch")
        try:
            status = job() or 0
            sys.stdout.flush()
            return status
        except UserError as error:
            return say(str(error), 2)
        except (HydraException, OmegaConfBaseException) as error:
            return say(explain(error), 2)
        except ProofError as error:
            return say(str(error), 1)
        except BrokenPipeError:
            if not _unread():
                raise
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
            )  # for what is flushed at the end
            return 1
        except KeyboardInterrupt as error:
            return _status_of(error)
        except SystemExit as stop:  # Lightning ends with 1 after Ctrl-C, argparse with 0 or 2
            return stop.code if stop.code in (0, 2, *STOPPED) else _status_of(stop.__context__)
        except Exception as error:
            if stop := _stop_behind(error):
                return _status_of(stop)
            if is_full(error):
                return say(_full(error), 2)
            if (denied := _of_the_system(error)) is None:
                raise
            return say(_denied(denied), 2)


def _readable(message: str) -> str:
    """What comes from files and command lines may be long, and have characters that do things to a terminal."""
    lines = []
    for line in message.split("\n"):
        line = "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line)
        half = _LONGEST // 2
        lines.append(line if len(line) <= _LONGEST else f"{line[:half]} […] {line[-half:]}")
    more = [f"[{len(lines) - _MOST_LINES} lines more]"] if len(lines) > _MOST_LINES else []
    return "\n".join(lines[:_MOST_LINES] + more)


def _status_of(stop: BaseException | None) -> int:
    """Exit status of a command that was asked to stop."""
    return status_of(stop.number) if isinstance(stop, Stopped) else INTERRUPTED


def _stop_behind(error: BaseException | None) -> Stopped | None:
    """The request to stop of which a library has made ``error``."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error


def _unread() -> bool:
    """Whether nobody reads the output any more, as behind ``| head``."""
    stdout = select.poll()
    stdout.register(sys.stdout, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in stdout.poll(0))


def _of_the_system(error: BaseException) -> OSError | None:
    """What the system said of a file, where that is behind ``error``: Hydra tells of a log file that it cannot open so."""
    error = error if isinstance(error, OSError) else error.__cause__
    return error if isinstance(error, OSError) and error.filename is not None else None


def _full(error: BaseException) -> str:
    """Of a full disk; libraries that are not written in Python do not name the file."""
    cause = error
    while not isinstance(cause, OSError) and (cause.__cause__ or cause.__context__):
        cause = cause.__cause__ or cause.__context__
    name = getattr(cause, "filename", None) or "a file"
    why = getattr(cause, "strerror", None) or str(error).splitlines()[0]
    return (
        f"cannot write {name} ({why}): the disk is full. What was saved is whole; free some space, and give the same command "
        "again: a run goes on with hydra.run.dir=<its folder>"
    )


def _denied(error: OSError) -> str:
    return (
        f"no access to {error.filename} ({error.strerror}); a text must be readable, and hydra.run.dir and runs must be "
        "folders that you can write to"
    )
