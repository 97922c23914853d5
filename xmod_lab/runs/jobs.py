"""What a job of a sweep is, by which a sweep that is started again finds it, and what became of it.

A job's folder is named after three digests, ``<settings>-<code>-<data>``, so that a job is found by what it is and not by its
number, which shifts as values are added to a sweep:

    settings  the command and its configuration with all interpolations resolved, but for those that change no result
              (:mod:`xmod_lab.config.identity`): places, logger, loader workers, threads, checkpoints
    code      the Python sources of this package, as the parser sees them (no comments, docstrings, layout), but for reports/.
              Neither the commit nor the libraries count
    data      every byte of the texts or labelled files that the configuration names, and of a base or tokenizer that is a folder;
              with ``base=auto`` of the run that this means now

So what other code or data has made stays where it is, and the job runs in another folder beside it.
"""

import ast
import copy
import hashlib
import json
import logging
import re
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from xmod_lab.config.finetuning import FinetuneConfig
from xmod_lab.config.identity import counts, identity
from xmod_lab.config.schema import EvaluateConfig, PretrainConfig, from_hydra
from xmod_lab.errors import STOPPED, UserError
from xmod_lab.files import hidden
from xmod_lab.languages.folders import model_folder
from xmod_lab.runs.bases import (
    added_before,
    is_made_on_the_way,
    load_config,
    newest_finished,
    newest_matching,
    newest_that_knows,
)
from xmod_lab.runs.folder import RunDir, checkpoints_in, read_json, step_of
from xmod_lab.settings import is_under
from xmod_lab.text.corpus import content_digest

log = logging.getLogger(__name__)
JOB = "job.json"
_NAME = re.compile(r"(?P<settings>[0-9a-f]{8})-(?P<code>[0-9a-f]{6})-(?P<data>[0-9a-f]{6}|unread)")
_TAKEN_OVER = (
    "model",
    "data",
    "langset",
    "task",
)  # a base's own are used, but for what is named on the command line


def job_folder(*, _root_: DictConfig) -> str:
    """The name of a job's folder; what ``${job_folder:}`` of conf/hydra means. Of data that cannot be read it says
    ``unread``: the job itself then says why."""
    composed = copy.deepcopy(_root_)
    with read_write(composed), open_dict(composed):
        del composed["hydra"]
    settings = identity(OmegaConf.to_container(composed, resolve=True))
    asked = {override.lstrip("+~").partition("=")[0] for override in _root_.hydra.overrides.task}
    named = sorted(key for key in asked if is_under(key, _TAKEN_OVER) and counts(key))
    try:
        data = _digest(data_digests(from_hydra(composed)))[:6]
    except (UserError, OSError):
        data = "unread"
    return (
        f"{_digest([_root_.hydra.job.config_name, settings, named])[:8]}-{code_digest()[:6]}-{data}"
    )


@cache
def code_digest(package: Path = Path(__file__).parent.parent) -> str:
    """Of the package's sources, read once: a process goes on with the code that it began with."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        if file.parent.name == "reports":  # pictures of figures that are there
            continue
        tree = ast.parse(file.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
                node, clean=False
            ):
                del node.body[0]
        digest.update(f"{file.relative_to(package)}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()


def data_digests(cfg: PretrainConfig | FinetuneConfig) -> list[str]:
    """Digests of what ``cfg`` reads, the texts by which a base's own languages are scored included.

    Raises:
        UserError: it cannot be read.
    """
    folder, of_base = _base_folder(cfg), []
    if folder is not None:
        of_base.append(content_digest(str(model_folder(folder)), None))
    if isinstance(cfg, FinetuneConfig):
        return of_base + [source.digest() for source in cfg.sources]
    known, texts = cfg, [(cfg, lang) for lang in cfg.lang.values()]
    if folder is not None and (folder / "config.yaml").is_file():
        known = load_config(RunDir(folder))
        texts += added_before(known)
    texts += [(known, text) for text in known.langset.languages.values()]
    others = cfg.evaluate.parallel if isinstance(cfg, EvaluateConfig) else []
    if cfg.data.tokenizer and Path(cfg.data.tokenizer).is_dir():
        others = [*others, cfg.data.tokenizer]
    return (
        of_base
        + [own.source(text).digest() for own, text in texts]
        + [content_digest(o, None) for o in others]
    )


def _base_folder(cfg: PretrainConfig | FinetuneConfig) -> Path | None:
    """Where the base is; ``None`` where its name says all: random weights, a hub id (its revision does not count), or a base that
    is made on the way, which settings, code and texts decide."""
    if cfg.base != "auto":
        folder = Path(cfg.base)
        return (
            None
            if cfg.base == "random" or len(folder.parts) == 2 and not folder.exists()
            else folder
        )
    if isinstance(cfg, FinetuneConfig):
        run = newest_that_knows(cfg.runs, cfg.task.source)
    elif isinstance(cfg, EvaluateConfig):
        run = newest_finished(cfg.runs)
    elif cfg.lang and (matching := newest_matching(cfg)) and not is_made_on_the_way(matching):
        run = matching
    else:
        run = None
    return None if run is None else run.path


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@dataclass
class Job:
    """What became of a job, kept in job.json in its folder.

    Args:
        start: of the sweep that it was last a part of.
        number: in that sweep, from 0.
        overrides: of the configuration, as on the command line.
        status: exit status; ``None`` while it runs, and for ever if it is killed.
        outcome: ``skipped: finished``, ``resumed from step 40``, ``ran``, ``retried``, ``failed: why``, ``interrupted``.
    """

    start: str
    number: int
    overrides: list[str]
    status: int | None = None
    outcome: str = ""

    @property
    def failed(self) -> bool:
        return self.status not in (0, None, *STOPPED)

    def begin(self, folder: Path, *, fresh: bool) -> bool:
        """Say what will be done with the job, by what is in its folder; ``fresh``: that is not used.

        Returns:
            Whether anything is to be done. A folder that has another name than :func:`job_folder` gives is judged by its run.
        """
        self.outcome = "ran" if fresh else _prospect(folder)
        log.info(
            "job %d of the sweep (%s), in %s: %s",
            self.number,
            " ".join(self.overrides),
            folder,
            re.sub("^ran", "runs", self.outcome),
        )
        self._write(folder)
        return fresh or not (RunDir(folder).finished and _NAME.fullmatch(folder.name))

    def end(self, folder: Path, status: int, reason: str) -> None:
        """Keep how it ended; ``reason``: of a failure, in words."""
        self.status = status
        if status in STOPPED:
            self.outcome = "interrupted" + _newest_step(folder, "after")
        elif status:
            self.outcome = f"failed: {' '.join(reason.split()) or f'exit status {status}; its processes said why'}"
        self._write(folder)

    def _write(self, folder: Path) -> None:
        try:
            RunDir(folder).write_json(JOB, asdict(self))
        except OSError as error:
            log.warning(
                "%s cannot be written (%s): the sweep's table will lack this job",
                folder / JOB,
                error.strerror,
            )


def read_job(folder: Path) -> Job | None:
    """The job that ``folder`` was last used for; ``None`` where that is not known."""
    try:
        job = Job(**read_json(folder / JOB, dict))
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
    """The run dirs in the folder of a sweep, by name; of those with the same settings the one that was started last, since the
    others are of other code or data. Runs under names of another kind are all taken."""
    found = {}
    there = (file for file in sweep.glob("*/config.yaml") if not hidden(file, sweep))
    for file in sorted(there, key=lambda file: _last_start(file.parent)):
        name = _NAME.fullmatch(file.parent.name)
        found[name["settings"] if name else file.parent.name] = file.parent
    return sorted(found.values())


def _last_start(folder: Path) -> float:
    return next(
        (file.stat().st_mtime for file in (folder / JOB, folder / "config.yaml") if file.is_file()),
        0.0,
    )


def _prospect(folder: Path) -> str:
    """What a job will do."""
    if RunDir(folder).finished:
        return "skipped: finished"
    before = read_job(folder)
    if before is not None and before.failed:
        return "retried" + _newest_step(folder, "from")
    if (folder / "config.yaml").is_file():
        step = _newest_step(folder, "from")
        return f"resumed{step}" if step else "ran again: it had no checkpoint yet"
    return _why_again(folder)


def _newest_step(folder: Path, word: str) -> str:
    """`` from step 40`` of the newest checkpoint, with its part where a run trains several models; nothing if there is none."""
    places = {file.parent for file in (folder / "checkpoints").rglob("step*.ckpt")}
    found = sorted(
        (f for place in places for f in checkpoints_in(place)),
        key=lambda file: file.stat().st_mtime,
    )
    if not found:
        return ""
    part = found[-1].parent.relative_to(folder / "checkpoints")
    return f" {word} step {step_of(found[-1])}" + (f" of {part}" if part.name else "")


def _why_again(folder: Path) -> str:
    """``ran``, and what else there is of the same settings in the sweep's folder."""
    name = _NAME.fullmatch(folder.name)
    found = (
        file.parent for file in folder.parent.glob(f"*/{JOB}") if name and file.parent != folder
    )
    others = [
        (place, was)
        for place in found
        if (was := _NAME.fullmatch(place.name)) and was["settings"] == name["settings"]
    ]
    if not others:
        return "ran"
    newest, was = max(others, key=lambda pair: _last_start(pair[0]))
    before = read_job(newest)
    if before is not None and before.failed:
        return "retried"
    other = " and ".join(what for what in ("code", "data") if was[what] != name[what])
    return f"ran: {'finished' if RunDir(newest).finished else 'begun'} before by other {other}, in {newest.name}"
