"""What all commands share: Hydra around a function, one clear message for a bad input, and the exit status.

Exit status: 0 done; 1 a proof that does not hold, or a bug, with its traceback; 2 bad input; 130 interrupted, 143 by SIGTERM.

A configuration is composed and judged before torch and the like are imported, which takes seconds: this module and what it imports
import them inside of functions, and so do the commands.
"""

import logging
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xmod_lab.config import CONF_DIR, PretrainConfig, explain, from_hydra, register_schemas
from xmod_lab.errors import INTERRUPTED, STOPPED, TERMINATED, ProofError, Stopped, UserError
from xmod_lab.files import is_full
from xmod_lab.settings import flatten
from xmod_lab.validation import validate

log = logging.getLogger(__name__)
Work = Callable[[Any, Path, list[str], str | None], int | None]
_sweeps: list[
    tuple[Path, list[list[str]]]
] = []  # the folder of the sweep that this process leads, and its jobs' overrides


def run_command(
    name: str, work: Work, *, schema: type = PretrainConfig, check: Callable[[Any], None] = validate
) -> None:
    """Compose ``conf/<name>.yaml`` with the command line, validate it, and call ``work`` with the configuration, the
    run dir, the keys set on the command line, and the name of the sweep if it is one. Never returns.

    Args:
        schema: of the configuration; ``check`` raises UserError for what it cannot be.

    A job of a sweep that fails leaves the others alone; the sweep ends with a table of its jobs, and its exit status is the
    highest of theirs. A job that is finished is passed over (:mod:`xmod_lab.jobs` says what counts as the same job).
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here as they are
    register_schemas(**{f"{name}_schema": schema})
    statuses = []

    @hydra.main(version_base="1.3", config_path=CONF_DIR, config_name=name)
    def job(composed: DictConfig) -> None:
        def run() -> int | None:
            return _work(composed, work, check)

        planned = composed.get("plan", False)  # then there is nothing to remember
        if HydraConfig.get().mode == RunMode.MULTIRUN and not planned:
            statuses.append(_job_of_sweep(run, fresh=composed.resume == "never"))
        else:
            statuses.append(guarded(run))
        if statuses[-1] in STOPPED:
            raise KeyboardInterrupt

    try:
        statuses.append(guarded(job))
    finally:
        swept = _finish_sweep()
    if set(STOPPED) & set(statuses):
        same = "the same command" if swept is not None else "the same command with hydra.run.dir=<its folder>"
        print(f"interrupted; {same} goes on from the newest checkpoint", file=sys.stderr)
    sys.exit(max(*statuses, swept or 0))


class Hooks(Callback):
    """Hydra calls it (conf/hydra names it)."""

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Before the first job, in the process that leads the sweep."""
        from xmod_lab.sweep import begin_sweep, planned_jobs

        _sweeps.append((begin_sweep(config), planned_jobs(config)))


def _job_folder(*, _root_: DictConfig) -> str:
    from xmod_lab.jobs import job_folder

    return job_folder(_root_=_root_)


# Here, because launchers that run jobs in other processes do no more there than to import what the job needs
OmegaConf.register_new_resolver("job_folder", _job_folder, replace=True)


def _finish_sweep() -> int | None:
    """The highest exit status of the jobs of the sweep that this process led; ``None`` where it led none."""
    if not _sweeps:
        return None
    from xmod_lab.sweep import finish_sweep

    return finish_sweep(*_sweeps.pop())


def _job_of_sweep(work: Callable[[], int | None], *, fresh: bool) -> int:
    """Call ``work``, unless the job is finished, and keep in its folder what became of it. A failure is told, never raised.

    Args:
        fresh: the job starts over, whatever is there.
    """
    from xmod_lab.jobs import Job
    from xmod_lab.sweep import start_of

    hydra_cfg = HydraConfig.get()
    job = Job(start_of(Path(hydra_cfg.sweep.dir)), hydra_cfg.job.num, list(hydra_cfg.overrides.task))
    folder, reasons = Path(hydra_cfg.runtime.output_dir), []
    try:
        status = guarded(lambda: work() if job.begin(folder, fresh=fresh) else 0, reasons.append)
    except Exception as error:
        log.exception("this job ends by a bug; the others go on")
        status, reasons = 1, [f"{type(error).__name__}: {error}"]
    job.end(folder, status, " ".join(reasons))
    return status


def _work(composed: DictConfig, work: Work, check: Callable[[Any], None]) -> int | None:
    cfg = from_hydra(composed)
    hydra_cfg = HydraConfig.get()
    _check_lang_files(list(hydra_cfg.overrides.task), list(getattr(cfg, "lang", ())))
    check(cfg)
    asked = [override.lstrip("+~").partition("=")[0] for override in hydra_cfg.overrides.task]
    usual = compose(hydra_cfg.job.config_name, return_hydra_config=False)
    before, now = flatten(OmegaConf.to_container(usual)), flatten(OmegaConf.to_container(composed))
    asked += [key for key, value in now.items() if before.get(key) != value]  # by an experiment, say
    sweep = Path(hydra_cfg.sweep.dir).name if hydra_cfg.mode == RunMode.MULTIRUN else None
    hide_bars()
    return work(cfg, Path(hydra_cfg.runtime.output_dir), asked, sweep)


def hide_bars() -> None:
    """No progress bars for saving small files; the long work has bars of its own."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def _check_lang_files(overrides: list[str], found: list[str]) -> None:
    """``+lang=[a,b]`` must give two languages: of two files with the same package line the second replaces the first."""
    chosen = [o.partition("=")[2].strip("[]") for o in overrides if o.lstrip("+").startswith("lang=")]
    names = [name.strip() for part in chosen for name in part.split(",") if name.strip()]
    if len(names) > len(found):
        raise UserError(f"+lang=[{','.join(names)}] gives only {', '.join(found)}: each file under lang/ needs a first line of "
                        "its own, '# @package lang.<its name>'")  # fmt: skip


def guarded(job: Callable[[], int | None], heard: Callable[[str], None] = lambda message: None) -> int:
    """Call ``job`` and return the exit status: its own, if it returns one. A message for the user goes to stderr, and to
    ``heard``."""

    def say(message: str, status: int) -> int:
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
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
            return 1
        except KeyboardInterrupt as error:
            return _status_of(error)
        except SystemExit as stop:  # Lightning ends with 1 after Ctrl-C, argparse with 0 or 2
            return stop.code if stop.code in (0, 2) else _status_of(stop.__context__)
        except Exception as error:
            if is_full(error):
                return say(_full(error), 2)
            if (denied := _of_the_system(error)) is None:
                raise
            return say(_denied(denied), 2)


def _status_of(stop: BaseException | None) -> int:
    """Exit status of a command that was asked to stop."""
    return TERMINATED if isinstance(stop, Stopped) and stop.number == signal.SIGTERM else INTERRUPTED


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
    return (f"cannot write {name} ({why}): the disk is full. What was saved is whole; free some space, and give the same command "
            "again: a run goes on with hydra.run.dir=<its folder>")  # fmt: skip


def _denied(error: OSError) -> str:
    return (f"no access to {error.filename} ({error.strerror}); a text must be readable, and hydra.run.dir and runs must be "
            "folders that you can write to")  # fmt: skip
