"""Hydra around the work of a command: command line, configuration, folder and exit status.

Importing torch takes seconds, so a configuration is composed and checked before that. This package,
the modules that it imports and the commands import torch inside functions. A start that is refused
or only planned leaves no folder behind.
"""

import copy
import logging
import os
import sys
from collections.abc import Callable, Iterable
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

from xmod_lab.cli.exit_status import exit_status_of
from xmod_lab.cli.folder import OutputFolder
from xmod_lab.config.help import help_text
from xmod_lab.config.messages import explain
from xmod_lab.config.overrides import (
    arranged,
    as_typed,
    file_faults,
    keys_of,
    setting_faults,
    unknown_keys,
)
from xmod_lab.config.own_files import SCHEME, chosen_files, hidden_files
from xmod_lab.config.rules import raise_faults, validate
from xmod_lab.config.schema import CONF_DIR, PretrainConfig, from_hydra, register_schemas
from xmod_lab.errors import INTERRUPTED, STOPPED, UserError
from xmod_lab.settings import flatten
from xmod_lab.stops import Obeying

log = logging.getLogger(__name__)
Work = Callable[[Any, Path], int | None]


def run_command(
    name: str, work: Work, *, schema: type = PretrainConfig, check: Callable[[Any], None] = validate
) -> NoReturn:
    """Compose ``conf/<name>.yaml`` with the command line, validate it, and call ``work`` with the
    configuration and the run dir. Ends the process.

    A job of a sweep that fails does not stop the others. The sweep ends with a table of its jobs.
    Its exit status is the highest status of a job. A finished job is skipped
    (:mod:`xmod_lab.runs.jobs` defines when two jobs are the same).

    Args:
        schema: the schema of the configuration.
        check: raises UserError for values that are not allowed.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here as they are
    register_schemas(**{f"{name}_schema": schema})
    command = _Command(name, work, schema, check, typed=sys.argv)
    _under_way.append(command)
    with Obeying().entered():
        try:
            command.statuses.append(exit_status_of(command.run))
        finally:
            sys.argv = command.typed
            _under_way.remove(command)
            command.end_sweep()
        status = command.finish()
    sys.exit(status)


def run_function(work: Callable[[], int | None]) -> NoReturn:
    """Run a command that has no configuration: call ``work`` and end with its exit status."""
    with Obeying().entered():
        status = exit_status_of(work)
    sys.exit(status)


@dataclass
class _Command:
    """One start of a command, and its results.

    Args:
        typed: the command line.
        statuses: the exit status of each job in this process, and of the sweep at the end.
        composed: Hydra has read the command line. Later errors are not errors of the command line.
        planned: ``plan=true`` is set, so nothing is trained.
        sweeps: this process leads a sweep.
        named: the command line names the folder.
        folder: the folder of the run, or of the sweep that this process leads.
        jobs: the overrides of each job of the sweep, if they are known before it starts.
    """

    name: str
    work: Work
    schema: type
    check: Callable[[Any], None]
    typed: list[str]
    statuses: list[int] = field(default_factory=list)
    composed: bool = False
    planned: bool = False
    sweeps: bool = False
    named: bool = False
    folder: OutputFolder | None = None
    jobs: list[list[str]] = field(default_factory=list)

    def run(self) -> int | None:
        """Read the command line, and let Hydra call :meth:`job` for the run or for each job.

        Returns 1 if jobs of a sweep ended too early to have a status.
        """
        try:
            flags, settings = arranged(self.typed[1:])
            raise_faults(setting_faults(settings, self.schema))
            if "--help" in flags:
                print(help_text(self.name, settings))
                return None
            sys.argv = [self.typed[0], *flags, *settings]
            hydra.main(version_base="1.3", config_path=CONF_DIR, config_name=self.name)(self.job)()
            return None
        except UserError:
            raise
        except Exception as error:
            if self.sweeps and type(error).__name__ == "UncompletedJobError":  # of submitit
                log.warning(
                    "give the same command again once all jobs have ended: a job was stopped or "
                    "killed, and the others are not waited for"
                )
                return 1
            # earlier errors come from reading a file or the command line
            if self.composed and not isinstance(error, (HydraException, OmegaConfBaseException)):
                raise
            raise UserError(explain(error, self.schema)) from error

    def job(self, composed: DictConfig) -> None:
        """Do one job; Hydra calls this. A stop is raised, so that no further job begins."""
        sys.argv = self.typed  # code that reads it gets the command line as it was typed
        in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        if in_sweep and not composed.get("plan", False):  # a plan is not remembered
            status = self._job_of_sweep(composed)
        else:
            status = exit_status_of(lambda: self._work(composed))
        self.statuses.append(status)
        if status in STOPPED:
            raise KeyboardInterrupt

    def _job_of_sweep(self, composed: DictConfig) -> int:
        """Do the work unless the job is finished, and write its result into its folder."""
        from xmod_lab.runs.jobs import Job
        from xmod_lab.runs.sweep import start_of

        hydra_cfg = HydraConfig.get()
        start = start_of(Path(hydra_cfg.sweep.dir))
        overrides = list(hydra_cfg.overrides.task)
        job = Job(start, hydra_cfg.job.num, overrides, Path(hydra_cfg.runtime.output_dir))
        reasons: list[str] = []

        def work() -> int | None:
            begun = job.begin(fresh=composed.resume == "never")
            return self._work(composed) if begun else 0

        try:
            status = exit_status_of(work, reasons.append)
        except SystemExit:  # the scheduler starts this job again
            job.end(INTERRUPTED, "")
            raise
        except Exception as error:
            log.exception("this job ends by a bug; the others go on")
            status, reasons = 1, [f"{type(error).__name__}: {error}"]
        job.end(status, " ".join(reasons))
        return status

    def _work(self, composed: DictConfig) -> int | None:
        hydra_cfg = HydraConfig.get()
        cfg = self.judge(composed, hydra_cfg)
        cfg = replace(cfg, given=given_keys(self.name, composed, hydra_cfg.overrides.task))
        if hydra_cfg.mode == RunMode.MULTIRUN and cfg.logger.group is None:
            group = Path(hydra_cfg.sweep.dir).name
            cfg = replace(cfg, logger=replace(cfg.logger, group=group))
        if isinstance(cfg, PretrainConfig) and (name := hydra_cfg.runtime.choices.get("task")):
            log.info("task=%s is the older name of objective=%s", name, name)
        hide_bars()
        return self.work(cfg, Path(hydra_cfg.runtime.output_dir))

    def judge(self, composed: DictConfig, hydra_cfg: DictConfig) -> Any:
        """The configuration as dataclasses. Raises UserError if it is not allowed."""
        sources = hydra_cfg.runtime.config_sources
        own = [Path(source.path) for source in sources if source.schema == SCHEME]
        faults = setting_faults(list(hydra_cfg.overrides.task), self.schema)
        chosen = OmegaConf.to_container(hydra_cfg.runtime.choices)
        # only names that were typed: ./conf may belong to another project
        typed = {override.lstrip("+~").partition("=")[0] for override in hydra_cfg.overrides.task}
        by_name = {group: chosen[group] for group in chosen.keys() & typed}
        faults += hidden_files(own, Path(CONF_DIR), by_name)
        for file, part in chosen_files(own, chosen):
            faults += file_faults(file, part, self.schema)
        if hydra_cfg.job.chdir:
            faults.append(
                "leave hydra.job.chdir out: paths are meant from where the command is started, and "
                "all that a run writes is in its run dir anyway; hydra.job.chdir is true"
            )
        faults += unknown_keys(flatten(OmegaConf.to_container(composed)), self.schema)
        raise_faults(list(dict.fromkeys(faults)))
        typed_keys = tuple(keys_of(hydra_cfg.overrides.task))
        cfg = replace(from_hydra(composed), command=self.name, given=typed_keys)
        self.check(cfg)
        return cfg

    def note(self, config: DictConfig, key: str) -> None:
        """Remember what the composed configuration says about this start.

        Args:
            key: the setting that names its folder.
        """
        self.composed, self.planned = True, bool(config.get("plan", False))
        self.named = any(o.startswith(f"{key}=") for o in config.hydra.overrides.hydra)

    def make_folder(self, path: Path, key: str) -> None:
        """Make the folder of the run or of the sweep."""
        self.folder = OutputFolder(Path(os.path.abspath(path)), key)
        self.folder.make()

    def end_sweep(self) -> None:
        """Print the table of the sweep that this process leads."""
        if self.sweeps and self.folder is not None:
            from xmod_lab.runs.sweep import finish_sweep

            self.statuses.append(finish_sweep(self.folder.path, self.jobs))

    def finish(self) -> int:
        """The exit status. Removes the folder of a refused start; tells how to resume a run."""
        status = max(self.statuses)
        if self.folder is not None and (
            status in (2, *STOPPED) or (self.planned and not self.named)
        ):
            self.folder.remove_if_empty(planned=self.planned)
        if set(STOPPED) & set(self.statuses):
            again = ""
            if self.folder is not None and self.folder.path.exists():
                named = self.sweeps or self.named
                again = "" if named else f" with {as_typed(self.folder.key, str(self.folder.path))}"
            print(
                f"interrupted; the same command{again} goes on from the newest checkpoint",
                file=sys.stderr,
            )
        return status


_under_way: list[_Command] = []  # more than one only if a command is called from Python


class Hooks(Callback):
    """Hooks that Hydra calls before it makes a folder. conf/hydra names this class.

    Hydra ignores exceptions of a hook, except SystemExit.
    """

    def on_run_start(self, config: DictConfig, **_: object) -> None:
        """Before a run: refuse what can be refused, and make its folder."""
        self._end_if(exit_status_of(lambda: self._begin_run(config)))

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Before the first job of a sweep, in the process that leads it."""
        self._end_if(exit_status_of(lambda: self._begin_sweep(config)))

    def _begin_run(self, config: DictConfig) -> None:
        command = _under_way[-1]
        command.note(config, "hydra.run.dir")
        own = copy.deepcopy(config)
        with open_dict(own):
            del own["hydra"]
        command.judge(own, config.hydra)
        command.make_folder(Path(config.hydra.run.dir), "hydra.run.dir")

    def _begin_sweep(self, config: DictConfig) -> None:
        command = _under_way[-1]
        command.note(config, "hydra.sweep.dir")
        from xmod_lab.runs.sweep import begin_sweep, planned_jobs, settle_folder

        folder = settle_folder(config)
        command.sweeps, command.jobs = True, planned_jobs(config)
        command.make_folder(folder, "hydra.sweep.dir")
        begin_sweep(folder, again=command.folder.path not in command.folder.made)

    @staticmethod
    def _end_if(status: int) -> None:
        if status:
            sys.exit(status)


def _job_folder(*, _root_: DictConfig) -> str:
    from xmod_lab.runs.jobs import job_folder

    return job_folder(_root_=_root_)


# registered here: launchers that run jobs in other processes import only what the job needs
OmegaConf.register_new_resolver("job_folder", _job_folder, replace=True)


def given_keys(name: str, composed: DictConfig, overrides: Iterable[str]) -> tuple[str, ...]:
    """Keys that overrides set, or that a file sets that an override chose (an experiment)."""
    typed = keys_of(overrides)
    usual = compose(name, return_hydra_config=False)
    before, now = (flatten(OmegaConf.to_container(each)) for each in (usual, composed))
    return (*typed, *(key for key, value in now.items() if before.get(key) != value))


def hide_bars() -> None:
    """Hide the progress bars of saving small files. Long work has progress bars of its own."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
