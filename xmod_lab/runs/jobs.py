"""The jobs of a sweep: how a sweep that is started again finds each of them, and what became of it.

A job is found by what it is, not by its number, which shifts when values are added to a sweep.
Its folder is named ``<settings>-<version>-<data>``:

    settings  digest of the command and of all its settings that count
              (:mod:`xmod_lab.config.identity`)
    version   the version of this package
    data      digest of every byte of the texts or labelled files that it reads,
              and of a base or tokenizer that is a folder;
              with ``base=auto``, of the run that this means now

A job of another version or of other data runs in another folder. A job that another commit of the
same version has finished stays finished, and the sweep says so; ``resume=never`` runs it again.
"""

import copy
import hashlib
import json
import logging
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from xmod_lab import __version__
from xmod_lab.config.identity import counts, identity
from xmod_lab.config.overrides import keys_of
from xmod_lab.config.schema import RunConfig, from_hydra
from xmod_lab.errors import STOPPED, UserError
from xmod_lab.files import hidden
from xmod_lab.model_folders import model_folder
from xmod_lab.runs.bases import (
    Base,
    added_before,
    inherit,
    is_made_on_the_way,
    load_config,
    newest_fitting,
)
from xmod_lab.runs.environment import last_commit, package_commit
from xmod_lab.runs.folder import RunDir, checkpoints_in, read_json, step_of
from xmod_lab.settings import is_under
from xmod_lab.text.parts import content_digest

log = logging.getLogger(__name__)
JOB = "job.json"
_NAME = re.compile(r"(?P<settings>[0-9a-f]{8})-(?P<version>[^-]+)-(?P<data>[0-9a-f]{6}|unread)")
_INHERITED = ("model", "data", "langset", "task")  # from a base, where they are not given


def job_folder(*, _root_: DictConfig) -> str:
    """The name of a job's folder; what ``${job_folder:}`` of conf/hydra means.

    Data that cannot be read is ``unread``: the job itself then says why.
    """
    command = _root_.hydra.job.config_name
    composed = copy.deepcopy(_root_)
    with read_write(composed), open_dict(composed):
        del composed["hydra"]
    settings = identity(OmegaConf.to_container(composed, resolve=True))
    typed = set(keys_of(_root_.hydra.overrides.task))
    given = sorted(key for key in typed if is_under(key, _INHERITED) and counts(key))
    try:
        data = _digest(data_digests(replace(from_hydra(composed), command=command)))[:6]
    except (UserError, OSError):
        data = "unread"
    return f"{_digest([command, settings, given])[:8]}-{__version__}-{data}"


def data_digests(cfg: RunConfig) -> list[str]:
    """Digests of all that a run of ``cfg`` reads, also its base and the texts of that base.

    Raises:
        UserError: it cannot be read.
    """
    folder = _base_folder(cfg)
    if folder is None:
        return cfg.digests()
    found = [content_digest(str(model_folder(folder)), None)]
    if cfg.command != "finetune" and (folder / "config.yaml").is_file():
        base = load_config(RunDir(folder))
        cfg = inherit(cfg, Base(str(folder), None, None, base))
        found += [its.source(lang).digest() for its, lang in added_before(base)]
    return found + cfg.digests()


def _base_folder(cfg: RunConfig) -> Path | None:
    """Where the base is. ``None`` for random weights, for a hub id (its revision does not count),
    and for a base that the command makes itself.
    """
    if cfg.base != "auto":
        folder = Path(cfg.base)
        on_hub = len(folder.parts) == 2 and not folder.exists()
        return None if cfg.base == "random" or on_hub else folder
    if cfg.command == "prepare" or (cfg.command == "pretrain" and not cfg.lang):
        return None
    run = newest_fitting(cfg)
    makes = cfg.command in ("pretrain", "rank")
    return None if run is None or (makes and is_made_on_the_way(run)) else run.path


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@dataclass
class Job:
    """What became of a job, kept in job.json in its folder.

    Args:
        start: of the sweep that it was last a part of.
        number: in that sweep, from 0.
        overrides: of the configuration, as on the command line.
        folder: its run dir; ``None`` if it has not begun.
        status: exit status; ``None`` while it runs, and for ever if it is killed.
        outcome: ``skipped: finished``, ``resumed from step 40``, ``ran``, ``retried``,
            ``failed: why``, ``interrupted``.
    """

    start: str
    number: int
    overrides: list[str]
    folder: Path | None = None
    status: int | None = None
    outcome: str = ""

    @property
    def failed(self) -> bool:
        return self.status not in (0, None, *STOPPED)

    def begin(self, *, fresh: bool) -> bool:
        """Say what will be done with the job, by what is in its folder; ``fresh``: ignoring that.

        Returns:
            Whether anything is to be done. In a folder with another name than :func:`job_folder`
            gives, the run decides.
        """
        self.outcome = "ran" if fresh else _prospect(self.folder)
        log.info(
            "job %d of the sweep (%s), in %s: %s",
            self.number,
            " ".join(self.overrides),
            self.folder,
            re.sub("^ran", "runs", self.outcome),
        )
        self._write()
        is_ours = _NAME.fullmatch(self.folder.name)
        return fresh or not (RunDir(self.folder).finished and is_ours)

    def end(self, status: int, reason: str) -> None:
        """Keep how it ended; ``reason``: of a failure, in words."""
        self.status = status
        if status in STOPPED:
            self.outcome = "interrupted" + _newest_step(self.folder, "after")
        elif status:
            why = " ".join(reason.split()) or f"exit status {status}; its processes said why"
            self.outcome = f"failed: {why}"
        self._write()

    def record(self) -> dict[str, object]:
        """What job.json says; a folder knows its own name."""
        return {name: value for name, value in asdict(self).items() if name != "folder"}

    def _write(self) -> None:
        try:
            RunDir(self.folder).write_json(JOB, self.record())
        except OSError as error:
            log.warning(
                "%s cannot be written (%s): the sweep's table will lack this job",
                self.folder / JOB,
                error.strerror,
            )


def read_job(folder: Path) -> Job | None:
    """The job that ``folder`` was last used for; ``None`` if that is not known."""
    try:
        job = Job(**read_json(folder / JOB, dict), folder=folder)
    except (UserError, TypeError):
        return None
    types = (
        (job.start, str),
        (job.number, int),
        (job.overrides, list),
        (job.status, int | None),
        (job.outcome, str),
    )
    return job if all(isinstance(value, kind) for value, kind in types) else None


def current_runs(sweep: Path) -> list[Path]:
    """The run dirs of a sweep, by name. Of several with the same settings, only the newest."""
    newest = {}
    runs = [f.parent for f in sweep.glob("*/config.yaml") if not hidden(f, sweep)]
    for run in sorted(runs, key=_last_start):
        name = _NAME.fullmatch(run.name)
        newest[name["settings"] if name else run.name] = run
    return sorted(newest.values())


def _last_start(run: Path) -> float:
    return (run / (JOB if (run / JOB).is_file() else "config.yaml")).stat().st_mtime


def _prospect(folder: Path) -> str:
    """What will be done with a job, by what its folder holds."""
    was, now = last_commit(folder), package_commit()
    by_other = "" if was in (now, None) else f" at commit {_short(was)}, now it is {_short(now)}"
    if RunDir(folder).finished:
        return f"skipped: finished{by_other}"
    before = read_job(folder)
    if before is not None and before.failed:
        return "retried" + _newest_step(folder, "from")
    if not (folder / "config.yaml").is_file():
        return _beside(folder)
    if step := _newest_step(folder, "from"):
        return f"resumed{step}{by_other and f', begun{by_other}'}"
    return "ran again: it had no checkpoint yet"


def _short(commit: str | None) -> str:
    return "unknown" if commit is None else re.sub("^([0-9a-f]{9})[0-9a-f]*", r"\1", commit)


def _newest_step(folder: Path, word: str) -> str:
    """`` from step 40``: the newest checkpoint, with its part if a run trains several models."""
    places = {file.parent for file in (folder / "checkpoints").rglob("step*.ckpt")}
    found = [file for place in places for file in checkpoints_in(place)]
    if not found:
        return ""
    newest = max(found, key=lambda file: file.stat().st_mtime)
    part = newest.parent.relative_to(folder / "checkpoints")
    return f" {word} step {step_of(newest)}" + (f" of {part}" if part.name else "")


def _beside(folder: Path) -> str:
    """``ran``, and what there is of the same settings in another folder of the sweep."""
    name = _NAME.fullmatch(folder.name)
    others = [
        (file.stat().st_mtime, file.parent)
        for file in (folder.parent.glob(f"{name['settings']}-*/{JOB}") if name else ())
        if file.parent != folder and _NAME.fullmatch(file.parent.name)
    ]
    if not others:
        return "ran"
    _, newest = max(others)
    if (before := read_job(newest)) is not None and before.failed:
        return "retried"
    was = _NAME.fullmatch(newest.name)
    other = " and ".join(what for what in ("version", "data") if was[what] != name[what])
    state = "finished" if RunDir(newest).finished else "begun"
    return f"ran: {state} before with other {other}, in {newest.name}"
