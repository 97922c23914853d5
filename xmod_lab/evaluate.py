"""Score a model without training it: likelihoods, slots against one another, translation retrieval, recognition.

    python -m xmod_lab.evaluate [base=RUN|MODEL_FOLDER|HUB_ID] [evaluate.pll=true] [evaluate.parallel=[my.tsv]]

A run is scored on its own held-out text, any other model on that of the language set. Writes metrics.json, CSV files and
plots into the run dir.
"""

import csv
import io
import logging
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from xmod_lab.command import run_command
from xmod_lab.config import EvaluateConfig
from xmod_lab.evaluation.evaluation import Evaluation, evaluate
from xmod_lab.evaluation.opening import open_model, settle_model
from xmod_lab.evaluation.tables import best_state
from xmod_lab.reports.figures import curves_png, heat_map
from xmod_lab.text.parallel import read_parallel
from xmod_lab.training.rundir import RunDir
from xmod_lab.training.scoring import on_device

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point of the command."""
    run_command("evaluate", _evaluate, schema=EvaluateConfig)


def _evaluate(cfg: EvaluateConfig, folder: Path, asked: list[str], sweep: str | None) -> None:
    parallels = [read_parallel(source) for source in cfg.evaluate.parallel]
    base = settle_model(cfg, asked)
    opened = open_model(base, cfg, asked)
    run = RunDir(folder)
    if not run.begin(replace(cfg, base=base.name)):  # writes; so all that can be refused was refused before
        return
    with on_device(opened.model, cfg.trainer.accelerator):
        found = evaluate(opened, parallels, pll=cfg.evaluate.pll)
    _tables(run, found)
    _plots(run, found)
    run.write_json("metrics.json", found.figures)
    log.info("figures, tables and plots in %s", run.path)


def _tables(run: RunDir, found: Evaluation) -> None:
    """slots.csv, recognition.csv and retrieval.csv: what metrics.json has, a figure a row."""
    figures = found.figures
    rows = [
        (t, s, loss, figures.get(f"slots/bpb/{t}/{s}")) for t, row in found.matrix.items() for s, loss in row.items()
    ]
    _write_csv(run, "slots.csv", ("text", "slot", "loss", "bpb"), rows)
    counts = [(w, t, s, n) for w, c in found.recognised.items() for t, row in c.items() for s, n in row.items()]
    _write_csv(run, "recognition.csv", ("of", "text", "slot", "count"), counts)
    pairs = [{"set": name, **asdict(result)} for name, results in found.retrieved.items() for result in results]
    if pairs:
        _write_csv(run, "retrieval.csv", tuple(pairs[0]), (pair.values() for pair in pairs))


def _write_csv(run: RunDir, name: str, header: tuple[str, ...], rows: Iterable[Iterable]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    run.write_text(name, table.getvalue())


def _plots(run: RunDir, found: Evaluation) -> None:
    """slots.png, recognition_<of>.png, retrieval_<set>.png and retrieval_<set>_layers.png."""
    figures = found.figures
    above = {t: {s: loss - figures[f"val/loss/{t}"] for s, loss in row.items()} for t, row in found.matrix.items()}
    heat_map(above, run / "slots.png", title="nats/piece above the loss through the own slot", x="slot", y="text of")
    for what, counts in found.recognised.items():
        shares = {t: {s: n / sum(row.values()) for s, n in row.items()} for t, row in counts.items()}
        title = f"{what}: share whose lowest loss is through the slot"
        heat_map(shares, run / f"recognition_{what}.png", title=title, x="slot", y="text of", best=max)
    for name, results in found.retrieved.items():
        where, state = f"retrieval/{name}", best_state(name, figures, found.states)
        cells: dict[str, dict[str, float]] = {}
        for result in results:
            if (result.state, result.arm) == (state, "target"):
                cells.setdefault(result.query, {})[result.candidates] = result.top1
        guess = figures[f"{where}/chance/top1"]
        title = f"{name}: top-1 of translation retrieval, {state}, each through its own slot; chance {guess:.3f}"
        heat_map(cells, run / f"retrieval_{name}.png", title=title, x="candidates", y="queries", best=max)
        ends = {"target slot": "", "source slot": "/source"}
        places = {s: float(s.removesuffix("_before")[5:]) - 0.5 * s.endswith("_before") for s in found.states}
        lines = {
            f"{metric}, {arm}": [
                (x, figures[key]) for s, x in places.items() if (key := f"{where}/{m}/{s}{end}") in figures
            ]
            for arm, end in ends.items()
            for m, metric in (("top1", "top-1"), ("mrr", "MRR"))
        }
        lines = {name: points for name, points in lines.items() if points}
        curves_png(lines, run / f"retrieval_{name}_layers.png", x="layer (half: what its slot reads)", y="mean of all pairs",
                   levels={"chance, top-1": guess})  # fmt: skip


if __name__ == "__main__":
    main()
