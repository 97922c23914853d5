"""Where figures go: to metrics.csv always, to W&B if wanted. If W&B fails, the run goes on."""

import contextlib
import csv
import io
import logging
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import wandb

from xmod_lab.config.schema import RunConfig
from xmod_lab.files import sync, write_whole
from xmod_lab.process_rank import rank
from xmod_lab.runs.folder import RunDir

log = logging.getLogger(__name__)


class Curve:
    """metrics.csv: a line for each time that something was measured, a column for each figure.

    A resumed run drops the lines after the step that it resumes from. So the file is the one that
    an uninterrupted run would have written (without seconds and speed).
    """

    def __init__(self, path: Path, columns: Sequence[str]):
        self.path, self.columns = path, ["step", *columns]

    def start_at(self, step: int, code: str | None = None) -> None:
        """Drop the lines after ``step`` (0: all lines). ``code``: only those of that language."""
        text = (
            self.path.read_text(encoding="utf-8", errors="replace") if self.path.is_file() else ""
        )
        whole = text[
            : text.rfind("\n") + 1
        ].splitlines()  # a full disk may have cut off the last line
        kept = [row for row in csv.DictReader(whole) if _stays(row, step, code)]
        table = io.StringIO()
        writer = csv.DictWriter(table, self.columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        write_whole(self.path, table.getvalue().encode())

    def sync(self) -> None:
        """Bring the lines to the disk. A checkpoint follows, which does not write them again."""
        if self.path.is_file():
            sync(self.path)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Append a line. Every name must be a column."""
        unknown = metrics.keys() - set(self.columns)
        assert not unknown, f"no column for {unknown}"
        with self.path.open("a", newline="") as stream:
            csv.DictWriter(stream, self.columns).writerow({"step": step, **metrics})


def _stays(row: dict[str, str], step: int, code: str | None) -> bool:
    concerned = code is None or any(
        value and str(name).endswith(f"/{code}") for name, value in row.items()
    )
    return not concerned or (
        step > 0 and (row["step"] or "").isdigit() and int(row["step"]) <= step
    )


class Tracking:
    """metrics.csv and the W&B run of one run dir; only the first process writes.

    It is a context: a run that raises is marked as failed in W&B. Offline runs of W&B were tried,
    and ``wandb sync`` uploads them; online runs were not tried, as there was no network.
    """

    def __init__(self, cfg: RunConfig, run: RunDir, columns: Sequence[str]):
        self.curve = Curve(run / "metrics.csv", columns)
        self.writes = rank() == 0 and bool(columns)
        self.final: dict[str, float] | None = None
        self.packs: Sequence[Path] = ()
        self.wandb: Any = None
        if self.writes and cfg.logger.wandb != "disabled":
            self.wandb = _start_wandb(cfg, run)

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._tell_wandb(lambda run: run.finish(exit_code=0 if kind is None else 1))

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Write figures to metrics.csv and to W&B."""
        if self.writes:
            self.curve.log(metrics, step)
        self._tell_wandb(lambda run: run.log({"step": step, **metrics}))

    def finish(self, metrics: dict[str, float], packs: Sequence[Path] = ()) -> None:
        """Keep the final figures, and the folders of language packs, for the end of the run."""
        self.final, self.packs = metrics, packs

    def summarise(self) -> None:
        """Send the final figures to W&B, and the language packs as artifacts."""
        self._tell_wandb(lambda run: _summarise(run, self.final, self.packs))

    def _tell_wandb(self, act: Callable[[Any], object]) -> None:
        """Call ``act`` with the W&B run. After any failure the run goes on without W&B."""
        if self.wandb is None:
            return
        try:
            act(self.wandb)
        except Exception as error:
            self.wandb = None
            log.warning(
                "W&B failed (%s); going on without it: metrics.csv has every figure", _reason(error)
            )


def _summarise(run: Any, metrics: dict[str, float], packs: Sequence[Path]) -> None:
    run.summary.update(metrics)
    for folder in packs:
        artifact = wandb.Artifact(f"pack-{folder.name}", type="language-pack")
        artifact.add_dir(str(folder))
        run.log_artifact(artifact)


def _start_wandb(cfg: RunConfig, run: RunDir) -> Any:
    """Start or continue the W&B run. Its id is saved before it starts: a resumed run finds it."""
    run_id = run.remember_once("wandb_id", lambda: uuid.uuid4().hex[:8])
    patience = {} if "WANDB_INIT_TIMEOUT" in os.environ else {"init_timeout": 30}  # seconds
    for attempt in dict.fromkeys([_wandb_mode(cfg), "offline"]):
        try:
            started = wandb.init(
                project=cfg.logger.project,
                name=run.path.name,
                id=run_id,
                group=cfg.logger.group,
                tags=list(cfg.logger.tags),
                job_type=_job_type(cfg),
                dir=str(run.path),
                config=asdict(cfg),
                mode=attempt,
                resume="allow" if attempt == "online" else None,
                settings=wandb.Settings(
                    console="off", silent=True, reinit="finish_previous", **patience
                ),
            )
            started.define_metric("*", step_metric="step")
            return started
        except Exception as error:  # whatever W&B raises, training matters more
            log.warning("W&B (%s) did not start: %s", attempt, _reason(error))
            with contextlib.suppress(Exception, SystemExit):
                wandb.teardown()  # else the next attempt finds the run's id in use
    log.warning("going on without W&B; metrics.csv has every figure")
    return None


def _job_type(cfg: RunConfig) -> str:
    """``extend`` where languages are added, ``continue`` where a given model is trained further."""
    if getattr(cfg, "lang", None):
        return "extend"
    return "continue" if getattr(cfg, "goes_on", False) else cfg.command


def _wandb_mode(cfg: RunConfig) -> str:
    """The mode that was set; offline without a key, since W&B would ask for one on the terminal."""
    mode = os.environ.get("WANDB_MODE") or cfg.logger.wandb
    if mode not in ("auto", "online"):
        return mode
    try:
        if wandb.login(prompt=False, verify=False):
            return "online"
        reason = "there is no key; `wandb login` keeps one"
    except Exception as error:  # a setting that W&B does not understand
        reason = _reason(error)
    if mode == "online":
        log.warning(
            "W&B cannot go online (%s); its run stays offline, and `wandb sync` uploads it later",
            reason,
        )
    return "offline"


def _reason(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
