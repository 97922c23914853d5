"""Fine-tune the shared layers on a labelled task in one language, and test in all others by swapping slot and vocabulary.

python -m xmod_lab.finetune [task=intents] [base=RUN] [KEY=VALUE ...]
python -m xmod_lab.finetune task=classification task.data.path='my/@language.@split.jsonl' task.source=en
python -m xmod_lab.finetune -m task.recipe.peak_lr=1e-4,3e-4,5e-4
"""

import logging
from pathlib import Path

from xmod_lab.command import run_command
from xmod_lab.finetune_config import FinetuneConfig, validate_finetune
from xmod_lab.reports.figures import interval_bars
from xmod_lab.training.finetuning import finetune
from xmod_lab.training.rundir import RunDir
from xmod_lab.training.transfer_table import Transfer

log = logging.getLogger(__name__)
_DRAWN = ("target", "source", "none", "wrong", "upper")


def main() -> None:
    """Entry point of the command."""
    run_command("finetune", _start, schema=FinetuneConfig, check=validate_finetune)


def _start(cfg: FinetuneConfig, folder: Path, asked: list[str], sweep: str | None) -> None:
    run = RunDir(folder)
    finetune(cfg, run, group=sweep, draw=lambda transfer: _draw(transfer, run / "transfer.png"))


def _draw(transfer: Transfer, path: Path) -> None:
    found = {language.code: language.arms[transfer.metric] for language in transfer.languages}
    bars = {
        arm: {code: (arms[arm].mean, arms[arm].low, arms[arm].high) for code, arms in found.items() if arm in arms}
        for arm in _DRAWN
    }
    interval_bars(
        {arm: values for arm, values in bars.items() if values},
        path,
        levels={language.code: language.chance(transfer.metric) for language in transfer.languages},
        level="one answer to all (chance)",
        title=f"{transfer.task}, fine-tuned on {transfer.source} alone",
        y=transfer.metric,
    )
    log.info("plot in %s", path)


if __name__ == "__main__":
    main()
