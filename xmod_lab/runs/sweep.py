"""A sweep that is started again goes on. Here: its folder, and the table of its jobs.

The same command finds the same folder, since its name has no time in it. For example,
``runs/sweeps/pretrain_lang_seed-1a2b3c`` is made of the command, the keys that are swept, and a
digest of what is set beside them. More or other values of what is swept are the same sweep; another
fixed setting, or another key that is swept, is another sweep. ``hydra.sweep.dir=PATH`` puts any
jobs into one folder, and finds them there.

Jobs may run in other processes, and on other machines (Hydra's launchers), so the table is made
from the job.json of each folder.
"""

import hashlib
import json
import logging
import re
import uuid
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, read_write

from xmod_lab.config.identity import counts
from xmod_lab.config.overrides import in_quotes
from xmod_lab.errors import UserError
from xmod_lab.files import hidden, write_whole
from xmod_lab.metrics import read_metrics, told
from xmod_lab.process_rank import rank
from xmod_lab.runs.folder import RunDir
from xmod_lab.runs.jobs import JOB, Job, read_job
from xmod_lab.settings import command_of
from xmod_lab.tables import Table, csv_text
from xmod_lab.text.objectives import likelihood_of, likelihood_word

log = logging.getLogger(__name__)
AUTO = "auto"  # last part of hydra.sweep.dir where the name is made here
START = ".start"  # a file in the sweep's folder: a mark of the last start, which its jobs have too
_LONGEST = 80  # of a folder's name
NOT_BEGUN = "not begun"


def settle_folder(config: DictConfig) -> Path:
    """The folder of a sweep, for its jobs too."""
    folder = Path(config.hydra.sweep.dir)
    if folder.name == AUTO:
        folder = folder.with_name(sweep_name(config))
        with read_write(config.hydra):
            config.hydra.sweep.dir = str(folder)
            # for the jobs
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={in_quotes(str(folder))}")
    return folder


def begin_sweep(folder: Path, *, again: bool) -> None:
    """Mark the start of a sweep in its folder, before its first job. ``again``: a restart."""
    if rank() == 0:
        write_whole(folder / START, uuid.uuid4().hex.encode())
        log.info("sweep %s in %s", "goes on" if again else "begins", folder)


def planned_jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of every job, by its number.

    Empty if they are not known: with another sweeper than Hydra's own, or if Hydra will refuse
    them.
    """
    sweeper = config.hydra.sweeper
    if sweeper.get("_target_") != f"{BasicSweeper.__module__}.{BasicSweeper.__name__}":
        return []
    hydra = GlobalHydra.instance()
    parser = OverridesParser.create(
        config_loader=hydra.config_loader() if hydra.is_initialized() else None
    )
    try:
        swept = [f"{key}={values}" for key, values in (sweeper.get("params") or {}).items()]
        overrides = parser.parse_overrides([*swept, *config.hydra.overrides.task])
        return BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]
    except HydraException:
        return []


def sweep_name(config: DictConfig) -> str:
    """``<command>_<what is swept>-<digest of what is set beside it>``."""
    swept = dict(OmegaConf.select(config, "hydra.sweeper.params") or {})
    fixed = []
    for override in OverridesParser.create().parse_overrides(list(config.hydra.overrides.task)):
        key = override.get_key_element().lstrip("+~")
        if override.is_sweep_override():
            swept[key] = ...
        elif counts(key):
            fixed.append(f"{key}={override.get_value_element_as_str()}")
    keys = sorted(key.lstrip("+~") for key in swept)
    digest = hashlib.sha256(json.dumps([keys, sorted(fixed)]).encode()).hexdigest()[:6]
    words = [
        config.hydra.job.config_name,
        *(re.sub(r"\W", "-", key.rpartition(".")[2]) for key in keys),
    ]
    return f"{'_'.join(words)[:_LONGEST]}-{digest}"


def start_of(folder: Path) -> str:
    """The mark of the sweep's last start; empty if it has no mark."""
    try:
        return (folder / START).read_text()
    except OSError:
        return ""


def finish_sweep(folder: Path, planned: Sequence[list[str]] = ()) -> int:
    """Print the table of the sweep that this process led, and write it to sweep.csv and sweep.json.

    Args:
        planned: the overrides of every job, as of :func:`planned_jobs`.
    Returns:
        The highest exit status of its jobs.
    """
    start = start_of(folder)
    files = [file for file in folder.glob(f"*/{JOB}") if not hidden(file, folder)]
    known = [job for file in files if (job := read_job(file.parent)) and job.start == start]
    jobs = {job.number: job for job in known}
    for job in known:
        if job.status is None:
            job.status, job.outcome = 1, "failed: it ended without a word, as a killed process does"
    if jobs and not rank():
        for number, overrides in enumerate(planned):
            jobs.setdefault(number, Job(start, number, overrides, outcome=NOT_BEGUN))
        _report(folder, [jobs[number] for number in sorted(jobs)])
    return max((job.status for job in known), default=0)


def _report(folder: Path, jobs: list[Job]) -> None:
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    rows, records, lines = [], [], []
    for job in jobs:
        own = [override for override in job.overrides if override not in shared]
        run = None if job.folder is None else RunDir(job.folder)
        figures = main_figures(run) if run else {}
        known, likelihood = {}, ""
        if figures:
            metrics = read_metrics(run / "metrics.json")
            known = {**metrics, **figures}
            likelihood = likelihood_word(likelihood_of(run.stored(), metrics))
        shown = [
            f"{name} {told(known, name)}{likelihood and f' ({likelihood})'}" for name in figures
        ]
        place = "–" if run is None else run.path.name
        rows.append((str(job.number), " ".join(own), job.outcome, "\n".join(shown) or "–", place))
        pairs = (override.partition("=") for override in own)
        swept = {key.lstrip("+~"): value for key, _, value in pairs}
        result = {
            "outcome": job.outcome,
            "status": job.status,
            "folder": str(run.path) if run else "",
        }
        records.append(
            {**job.record(), **result, "swept": swept, "figures": figures, "likelihood": likelihood}
        )
        lines.append({"job": job.number, **swept, **result, **figures, "likelihood": likelihood})
    outcomes = [
        job.outcome if job.outcome == NOT_BEGUN else job.outcome.partition(" ")[0].strip(":")
        for job in jobs
    ]
    count = ", ".join(f"{outcomes.count(word)} {word}" for word in dict.fromkeys(outcomes))
    number = "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs"
    header = ("job", "overrides", "what happened", "metrics", "folder")
    Table(f"sweep in {folder}: {number}, {count}", header, rows, labels=5).print(logged=False)
    try:
        write_whole(folder / "sweep.json", json.dumps(records, indent=1).encode())
        write_whole(folder / "sweep.csv", csv_text(lines).encode())
    except OSError as error:
        log.warning("the table cannot be written to %s (%s)", folder, error.strerror)


def main_figures(run: RunDir) -> dict[str, float]:
    """The figures of a finished run for the table; none if it is not finished.

    ``val/bpb/<code>`` of each added language, else the mean over all languages. For a labelled
    task, the mean test score of the languages that it was not trained on, through their own slots.
    """
    try:
        metrics, config = read_metrics(run / "metrics.json"), run.stored()
    except UserError:
        return {}  # damaged
    if not metrics:
        return {}
    if command_of(config) == "finetune":
        metric = f"test/{config['task']['metric']}"
        others = _codes(metrics, metric, "/source") or _codes(metrics, metric, "/target")
        return _mean(metrics, f"{metric}/target", [f"{metric}/{code}/target" for code in others])
    added = [f"val/bpb/{lang['code']}" for lang in config["lang"].values()]
    if added:
        return {name: metrics[name] for name in added if name in metrics}
    return _mean(metrics, "val/bpb", [f"val/bpb/{code}" for code in _codes(metrics, "val/bpb", "")])


def _codes(metrics: dict[str, float], before: str, after: str) -> list[str]:
    found = (re.fullmatch(f"{re.escape(before)}/([^/]+){after}", name) for name in metrics)
    return [match[1] for match in found if match]


def _mean(metrics: dict[str, float], title: str, names: list[str]) -> dict[str, float]:
    return {f"{title}/mean": sum(metrics[n] for n in names) / len(names)} if names else {}
