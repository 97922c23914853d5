"""A sweep that is started again goes on: where its folder is, and the table that says what became of its jobs.

The same command finds the same folder, since its name has no time in it: ``runs/sweeps/pretrain_lang_seed-1a2b3c`` is made of
the command, the keys that are swept, and a digest of what is set beside them. More or other values of what is swept are the same
sweep; another fixed setting, or another key that is swept, is another one. ``hydra.sweep.dir=PATH`` puts any jobs into one folder,
and finds them there.

Jobs may run in other processes, and on other machines (Hydra's launchers), so the table is made from the folders' job.json.
"""

import hashlib
import json
import logging
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, read_write

from xmod_lab.config.identity import command_of, counts
from xmod_lab.config.overrides import in_quotes
from xmod_lab.errors import UserError
from xmod_lab.files import hidden, write_whole
from xmod_lab.metrics import read_metrics, told
from xmod_lab.processes import rank
from xmod_lab.runs.folder import RunDir
from xmod_lab.runs.jobs import JOB, Job, read_job
from xmod_lab.tables import Table, csv_text
from xmod_lab.text.likelihoods import in_a_word, is_exact

log = logging.getLogger(__name__)
AUTO = "auto"  # last part of hydra.sweep.dir where the name is made here
START = ".start"  # in the sweep's folder: a mark of the last start, which its jobs bear
_LONGEST = 80  # of a folder's name
NOT_BEGUN = "not begun"


def settle_folder(config: DictConfig) -> Path:
    """The folder of a sweep, for its jobs too."""
    folder = Path(config.hydra.sweep.dir)
    if folder.name == AUTO:
        folder = folder.with_name(sweep_name(config))
        with read_write(config.hydra):
            config.hydra.sweep.dir = str(folder)
            config.hydra.overrides.hydra.append(
                f"hydra.sweep.dir={in_quotes(str(folder))}"
            )  # jobs go by it
    return folder


def begin_sweep(folder: Path, *, again: bool) -> None:
    """Mark the start in the folder of a sweep, before the first job, in the process that leads the sweep.

    Args:
        again: the folder is that of an earlier start.
    """
    if rank() == 0:
        write_whole(folder / START, uuid.uuid4().hex.encode())
        log.info("sweep %s in %s", "goes on" if again else "begins", folder)


def planned_jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of every job, by its number. Nothing where another sweeper than Hydra's own decides, as it goes on, or where
    Hydra will refuse them."""
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
    """The mark of the sweep's last start; nothing where there is none."""
    try:
        return (folder / START).read_text()
    except OSError:
        return ""


def finish_sweep(folder: Path, planned: Sequence[list[str]] = ()) -> int:
    """Print the table of the sweep that this process led, and write it to sweep.csv and sweep.json. Returns the highest exit status
    of its jobs. ``planned``: as :func:`planned_jobs` gives them."""
    start = start_of(folder)
    known = [
        (read_job(file.parent), file.parent)
        for file in folder.glob(f"*/{JOB}")
        if not hidden(file, folder)
    ]
    jobs = sorted(
        (pair for pair in known if pair[0] and pair[0].start == start),
        key=lambda pair: pair[0].number,
    )
    for job, _ in jobs:
        if job.status is None:
            job.status, job.outcome = (
                1,
                "failed: ended without a word, as a process does that is killed",
            )
    if jobs and not rank():
        begun = {job.number for job, _ in jobs}
        left = [
            Job(start, i, own, None, NOT_BEGUN) for i, own in enumerate(planned) if i not in begun
        ]
        _report(
            folder, sorted([*jobs, *((job, None) for job in left)], key=lambda pair: pair[0].number)
        )
    return max((job.status for job, _ in jobs), default=0)


def _report(folder: Path, jobs: list[tuple[Job, Path | None]]) -> None:
    """``jobs``: each with its folder, if it has one."""
    common = set.intersection(*(set(job.overrides) for job, _ in jobs)) if len(jobs) > 1 else set()
    rows, records = [], []
    for job, place in jobs:
        own = [override for override in job.overrides if override not in common]
        figures = main_figures(RunDir(place)) if place else {}
        likelihood = _likelihood(RunDir(place)) if figures else ""
        known = {**read_metrics(place / "metrics.json"), **figures} if figures else {}
        shown = "\n".join(
            f"{name} {told(known, name)}{likelihood and f' ({likelihood})'}" for name in figures
        )
        rows.append(
            (
                str(job.number),
                " ".join(own),
                job.outcome,
                shown or "–",
                place.name if place else "–",
            )
        )
        swept = {
            key.lstrip("+~"): value
            for key, _, value in (override.partition("=") for override in own)
        }
        records.append(
            {
                **asdict(job),
                "folder": str(place.resolve()) if place else "",
                "swept": swept,
                "figures": figures,
                "likelihood": likelihood,
            }
        )
    outcomes = [
        job.outcome if job.outcome == NOT_BEGUN else job.outcome.partition(" ")[0].strip(":")
        for job, _ in jobs
    ]
    count = ", ".join(f"{outcomes.count(word)} {word}" for word in dict.fromkeys(outcomes))
    number = "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs"
    header = ("job", "overrides", "what happened", "metrics", "folder")
    Table(f"sweep in {folder}: {number}, {count}", header, rows, labels=5).print(logged=False)
    lines = [
        {
            "job": record["number"],
            **record["swept"],
            "outcome": record["outcome"],
            "status": record["status"],
            "folder": record["folder"],
            **record["figures"],
            "likelihood": record["likelihood"],
        }
        for record in records
    ]
    try:
        write_whole(folder / "sweep.json", json.dumps(records, indent=1).encode())
        write_whole(folder / "sweep.csv", csv_text(lines).encode())
    except OSError as error:
        log.warning("the table cannot be written to %s (%s)", folder, error.strerror)


def main_figures(run: RunDir) -> dict[str, float]:
    """Of a finished run: ``val/bpb/<code>`` of each added language, else the mean over all; of a task the mean test score of
    the languages that it was not trained on, through their own slots."""
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


def _likelihood(run: RunDir) -> str:
    """Exact or pseudo, of a finished run; nothing of a task."""
    return in_a_word(is_exact(run.stored(), read_metrics(run / "metrics.json")))


def _codes(metrics: dict[str, float], before: str, after: str) -> list[str]:
    found = (re.fullmatch(f"{re.escape(before)}/([^/]+){after}", name) for name in metrics)
    return [match[1] for match in found if match]


def _mean(metrics: dict[str, float], title: str, names: list[str]) -> dict[str, float]:
    return {f"{title}/mean": sum(metrics[n] for n in names) / len(names)} if names else {}
