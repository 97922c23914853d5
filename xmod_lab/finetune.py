"""Fine-tune the shared layers on a task, mostly in one language, and test in all languages.

For each test language, its own slot and vocabulary replace those of the training language.
task=sentences learns sentence vectors from pairs of texts, and tests them by retrieval.

python -m xmod_lab.finetune [task=intents] [base=RUN] [KEY=VALUE ...]
python -m xmod_lab.finetune task=classification task.source=en
    task.data.path='my/@language.@split.jsonl'
python -m xmod_lab.finetune task=sentences [task.sentences.pooling=mean|cls|max|last]
python -m xmod_lab.finetune -m task.recipe.peak_lr=1e-4,3e-4,5e-4
"""

from xmod_lab.stops import quiet_when_interrupted

if __name__ == "__main__":
    quiet_when_interrupted()

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from xmod_lab.cli import run_command
from xmod_lab.config.finetuning import FinetuneConfig, validate_finetune

if TYPE_CHECKING:
    from xmod_lab.scoring.transfer_table import Transfer

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point of the command."""
    run_command("finetune", _start, schema=FinetuneConfig, check=validate_finetune)


def _start(cfg: FinetuneConfig, folder: Path) -> None:
    from xmod_lab.runs.folder import RunDir
    from xmod_lab.stages.finetuning import (
        finetune,
    )  # imported here: refusals must not wait for torch

    run = RunDir(folder)
    finetune(cfg, run, draw=lambda transfer: _draw(transfer, run / "transfer.png"))


def _draw(transfer: "Transfer", path: Path) -> None:
    from xmod_lab.reports.plots import png
    from xmod_lab.reports.transfer import transfer_bars
    from xmod_lab.tasks.statistics import trained_on

    title = f"{transfer.task}, fine-tuned on {trained_on(transfer.source)}"
    codes = [language.code for language in transfer.languages]
    png(transfer_bars(transfer.metrics(), transfer.metric, title, codes), path)
    log.info("plot in %s", path)


if __name__ == "__main__":
    main()
