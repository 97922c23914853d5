"""Score a model without training: likelihoods, all slots, translation retrieval, recognition.

    python -m xmod_lab.evaluate [base=RUN|MODEL_FOLDER|HUB_ID] [evaluate.pll=true]
        [evaluate.parallel=[my.tsv]] [KEY=VALUE ...]

A run is scored on its own held-out text. Other models are scored on that of the language set. A
sentence encoder has no likelihoods: only its retrieval is scored.
Writes metrics.json, CSV files and plots into the run dir.
"""

from xmod_lab.stops import quiet_when_interrupted

if __name__ == "__main__":
    quiet_when_interrupted()

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xmod_lab.cli import run_command
from xmod_lab.config.schema import EvaluateConfig

if TYPE_CHECKING:
    from xmod_lab.runs.folder import RunDir
    from xmod_lab.stages.evaluating import Evaluation

log = logging.getLogger(__name__)
_OUTPUTS = ("slots.csv", "slots.png") + tuple(
    f"{table}*.{suffix}" for table in ("recognition", "retrieval") for suffix in ("csv", "png")
)


def main() -> None:
    """Entry point of the command."""
    run_command("evaluate", _evaluate, schema=EvaluateConfig)


def _evaluate(cfg: EvaluateConfig, folder: Path) -> None:
    from xmod_lab.languages.sentence_encoding import is_encoder
    from xmod_lab.runs.folder import RunDir
    from xmod_lab.runs.lifecycle import open_run
    from xmod_lab.scoring.held_out import on_device
    from xmod_lab.scoring.samples import SAMPLES, filled

    # imported here: refusals must not wait for torch
    from xmod_lab.stages.evaluating import evaluate, evaluate_encoder, open_encoders, slot_choice
    from xmod_lab.stages.opening import open_model, open_scored
    from xmod_lab.text.parallel import read_parallel

    parallels = [read_parallel(source) for source in cfg.evaluate.parallel]
    run = RunDir(folder)
    cfg = run.fit_to_machine(cfg, trains=False)
    if is_encoder(cfg.base):
        model, control = open_encoders(cfg)
        with open_run(cfg, run, outputs=_OUTPUTS, facts={}) as result:
            if result is not None:
                found = evaluate_encoder(cfg, model, parallels, control)
                _write(run, found)
                result.finish(found.figures)
        return
    opened = open_scored(cfg, run)
    control = None
    if cfg.evaluate.control is not None and parallels:
        control = open_model(replace(cfg, base=cfg.evaluate.control, given=()), run)
    own, device = cfg.evaluate, cfg.trainer.accelerator
    choice = slot_choice(opened, own)
    cfg = replace(cfg, base=opened.name)
    facts = {
        f"tokenizer/{one.code}": one.scorer.corpus.manifest["settings"]["tokenizer"]
        for one in opened.languages
    }
    with open_run(cfg, run, outputs=_OUTPUTS, facts=facts) as result:
        if result is None:
            return
        with on_device(opened.model, device):
            found = evaluate(
                opened, parallels, pll=own.pll, layer=own.layer, control=control, choice=choice
            )
            samples = {}
            for one in opened.languages:
                scorers = {one.code: one.scorer}
                samples |= filled(opened.model, scorers, one.tokenizer, accelerator=device)
        _write(run, found)
        run.write_json(SAMPLES, samples)
        run.write_passages(found.passages)
        result.finish(found.figures)
    log.info("metrics, tables and plots in %s", run.path)


def _write(run: "RunDir", found: "Evaluation") -> None:
    """Write the CSV files, and slots.png, recognition_<of>.png, retrieval_<set>.png and
    retrieval_<set>_layers.png."""
    from xmod_lab.reports.evaluation import (
        RECOGNISED,
        recognition_map,
        retrieval_curves,
        retrieval_map,
        retrieval_sets,
        slot_map,
    )
    from xmod_lab.reports.plots import png

    for name, text in found.csv_files().items():
        run.write_text(name, text)
    metrics = found.figures
    drawn = {f"recognition_{what}": recognition_map(metrics, what) for what in RECOGNISED}
    drawn["slots"] = slot_map(metrics)
    for name in retrieval_sets(metrics):
        drawn[f"retrieval_{name}"] = retrieval_map(metrics, name)
        drawn[f"retrieval_{name}_layers"] = retrieval_curves(metrics, name)
    for name, figure in drawn.items():
        if figure is not None:
            png(figure, run / f"{name}.png")


if __name__ == "__main__":
    main()
