"""Where figures go: always metrics.csv, and W&B when it is wanted, which may fail without harming the run."""

import csv
import logging
import os
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from xmod_lab.config import PretrainConfig
from xmod_lab.training.rundir import RunDir

log = logging.getLogger(__name__)


class CurveLogger(Logger):
    """metrics.csv: one line for every time something was measured; ``step`` first, a column for every figure.

    Each line is flushed as it is written. A resumed run drops the lines after the step it resumes from, so that the
    file is the one that an uninterrupted run would have written (times apart).
    """

    def __init__(self, path: Path, columns: list[str]):
        super().__init__()
        self.path = path
        self.columns = ["step", *columns]

    name = "curve"
    version = ""

    @rank_zero_only
    def start_at(self, step: int) -> None:
        """Keep the lines up to ``step``; begin the file if there is none."""
        kept = []
        if self.path.is_file():
            with self.path.open(newline="") as stream:
                kept = [row for row in csv.DictReader(stream) if row["step"] and int(row["step"]) <= step]
        if step == 0:
            kept = []
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        os.replace(temporary, self.path)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        unknown = metrics.keys() - set(self.columns)
        assert not unknown, f"no column for {unknown}"
        with self.path.open("a", newline="") as stream:
            csv.DictWriter(stream, self.columns).writerow({"step": step, **metrics})

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """config.yaml has them."""


class Tracking:
    """The loggers of one run. Used as a context: a run that raises is marked failed in W&B.

    Online W&B was not run here (no network); offline runs were, and ``wandb sync`` uploads those.
    """

    def __init__(self, cfg: PretrainConfig, run: RunDir, columns: list[str], *, group: str | None, job_type: str):
        self.curve = CurveLogger(run / "metrics.csv", columns)
        self.wandb: WandbLogger | None = None
        if cfg.logger.wandb != "disabled":
            self.wandb = _start_wandb(cfg, run, group=group, job_type=job_type)

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if self.wandb is not None and rank_zero_only.rank == 0:
            wandb.finish(exit_code=0 if kind is None else 1, quiet=True)

    @property
    def loggers(self) -> list[Logger]:
        return [self.curve] + ([self.wandb] if self.wandb is not None else [])

    def log(self, metrics: dict[str, float], step: int, *, curve: bool = True) -> None:
        """The same figures to every logger; ``curve=False`` leaves metrics.csv out."""
        for logger in self.loggers:
            if curve or logger is not self.curve:
                logger.log_metrics(metrics, step)

    @rank_zero_only
    def summarise(self, metrics: dict[str, float], packs: list[Path]) -> None:
        """Final figures and language packs to W&B."""
        if self.wandb is None:
            return
        self.wandb.experiment.summary.update(metrics)
        for folder in packs:
            artifact = wandb.Artifact(f"pack-{folder.name}", type="language-pack")
            artifact.add_dir(str(folder))
            self.wandb.experiment.log_artifact(artifact)


def _start_wandb(cfg: PretrainConfig, run: RunDir, *, group: str | None, job_type: str) -> WandbLogger | None:
    """Start, or continue, this run's W&B run. Its id is on disk before it starts, so that a resumed run finds it."""
    key = os.environ.get("WANDB_API_KEY") or wandb.api.api_key
    mode = os.environ.get("WANDB_MODE") or cfg.logger.wandb
    if mode == "auto":
        mode = "online" if key else "offline"
    run_id = run.remember_once("wandb_id", wandb.util.generate_id)
    for attempt in dict.fromkeys([mode, "offline"]):
        try:
            logger = WandbLogger(
                project=cfg.logger.project,
                entity=None,
                name=run.path.name,
                id=run_id,
                group=cfg.logger.group or group,
                tags=list(cfg.logger.tags),
                job_type=job_type,
                save_dir=str(run.path),
                config=asdict(cfg),
                mode=attempt,
                resume="allow" if attempt == "online" else None,
                settings=wandb.Settings(console="off", silent=True, init_timeout=30),
            )
            _ = logger.experiment  # starts it
            return logger
        except Exception as error:  # whatever W&B raises, training matters more
            log.warning("W&B (%s) did not start: %s", attempt, str(error).splitlines()[0])
    log.warning("going on without W&B; metrics.csv has every figure")
    return None
