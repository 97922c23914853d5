"""Swahili while it is learnt: slots with tokens of their own beside full fine-tuning.

    python curves.py [runs]

Reads the runs of README.md and the models that they kept on the way, and writes curves.png, and
curves.csv, which has the numbers. Bits per byte are those of the runs, on the same passages.
Translations are those of vectors.py, from English and back, through the own slot, and for full
fine-tuning through none. Rows that are in curves.csv already are not computed again.
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm
from vectors import Encoder, retrieval

from xmod_lab.cli import run_function
from xmod_lab.metrics import read_metrics
from xmod_lab.model import load_language_model
from xmod_lab.runs.bases import load_config
from xmod_lab.runs.folder import RunDir
from xmod_lab.scoring.held_out import Scorer
from xmod_lab.stages.opening import open_model
from xmod_lab.tables import csv_text

CODE, FILE = "sw_KE", "embedded:udhr"
WAYS = {  # run -> name, arm of the vectors, colour
    "sw_focus": ("a slot, own tokens (focus)", "target", "#0072b2"),
    "sw_omp": ("a slot, own tokens (omp)", "target", "#56b4e9"),
    "sw_random": ("a slot, own tokens (random)", "target", "#cc79a7"),
    "ft_sw": ("full fine-tuning, E5's tokens", "none", "#d55e00"),
}
TITLES = {
    "bits": "Bits per byte of held-out Swahili\n(fewer is better)",
    "udhr": "Swahili paragraphs: translations found\n(top-1)",
}
Record = dict[str, str | float]


def models_of(run: Path) -> dict[int, Path]:
    """Step -> model folder: those that were kept, and the last."""
    last = load_config(RunDir(run)).trainer.max_steps
    kept = {
        int(folder.name.removeprefix("step-")): folder for folder in run.glob("models/**/step-*")
    }
    return dict(sorted(kept.items())) | {last: run / "model"}


def scorer_of(run: Path) -> Scorer:
    """The held-out passages of the language, as the run scores them."""
    cfg = replace(load_config(RunDir(run)), base=str(run), lang={})
    return next(each.scorer for each in open_model(cfg, RunDir(run)).languages if each.code == CODE)


def scored(runs: Path, file: Path) -> list[Record]:
    """The numbers: run, panel, tokens read, value. Those that ``file`` lacks are added to it."""
    found: list[Record] = list(csv.DictReader(file.open())) if file.exists() else []
    done = {(row["run"], float(row["tokens"])) for row in found}
    for run in WAYS:
        if not (runs / run / "metrics.json").exists():
            continue
        figures, models = read_metrics(runs / run / "metrics.json"), models_of(runs / run)
        a_step = figures[f"train/tokens/{CODE}"] / max(models)
        left = {step: model for step, model in models.items() if (run, step * a_step) not in done}
        scorer = scorer_of(runs / run) if left else None
        for step, folder in tqdm(left.items(), run, disable=None):
            model = load_language_model(str(folder), str(folder))
            values = {"bits": scorer.score(model)[1]}
            del model
            arms = {row["arm"]: row for row in retrieval(Encoder(str(folder)), FILE, ["en", "sw"])}
            values["udhr"] = arms[WAYS[run][1]]["score"]
            found += [
                {"run": run, "panel": panel, "tokens": step * a_step, "value": value}
                for panel, value in values.items()
            ]
            file.write_text(csv_text(found), encoding="utf-8")
    return found


def draw(found: list[Record], start: dict[str, float]) -> Figure:
    """A panel for each question, a line for each run; ``start``: what E5 has, by panel."""
    figure = Figure((9, 3.8), layout="constrained")
    for axes, (panel, title) in zip(figure.subplots(1, 2), TITLES.items(), strict=True):
        axes.axhline(
            start[panel], color="#555555", linestyle="--", linewidth=1, label="E5, before training"
        )
        for run, (name, _, colour) in WAYS.items():
            points = sorted(
                (float(row["tokens"]) / 1e3, float(row["value"]))
                for row in found
                if (row["run"], row["panel"]) == (run, panel)
            )
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, label=name)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("thousand tokens read", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def curves(runs: Path) -> None:
    """Score what is not in the file yet, and draw."""
    found = scored(runs, Path("curves.csv"))
    with Path("vectors.csv").open(newline="") as stream:
        before = {
            row["task"]: float(row["score"])
            for row in csv.DictReader(stream)
            if (row["model"], row["arm"], row["language"]) == ("dense", "target", CODE)
        }
    before["bits"] = read_metrics(runs / "dense" / "metrics.json")[f"val/bpb/{CODE}"]
    draw(found, before).savefig("curves.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="?", type=Path, default=Path("runs"))
    args = parser.parse_args()
    run_function(lambda: curves(args.runs))


if __name__ == "__main__":
    main()
