"""Swahili and Greek while they are learnt: slots with tokens of their own, full fine-tuning.

    python curves.py [runs]

Reads the runs of README.md and the models that they kept on the way, and writes curves.png, and
curves.csv, which has the numbers. Bits per byte are those of the runs, on the same passages.
Translations are those of vectors.py, from English and back, by the arm that WAYS names. Rows that
are in curves.csv already are not computed again. Runs whose models were not kept on the way have
their end in greek.csv, of figure.py, and are points.
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

FILE = "embedded:udhr"
NAMES = {"sw_KE": "Swahili", "el_GR": "Greek"}
WAYS = {  # run -> language, name, arm of the vectors, colour
    "sw_focus": ("sw_KE", "a slot, own tokens (focus)", "target", "#0072b2"),
    "sw_omp": ("sw_KE", "a slot, own tokens (omp)", "target", "#56b4e9"),
    "sw_random": ("sw_KE", "a slot, own tokens (random)", "target", "#cc79a7"),
    "ft_sw": ("sw_KE", "full fine-tuning, E5's tokens", "none", "#d55e00"),
    "el_kept": ("el_GR", "a slot, own tokens (focus), vectors kept", "added", "#aa4499"),
}
ENDS = {  # way in greek.csv -> name above, colour
    "a slot, own tokens": (WAYS["sw_focus"][1], "#0072b2"),
    "full fine-tuning": (WAYS["ft_sw"][1], "#d55e00"),
}
TITLES = {
    "bits": "Bits per byte of held-out {}\n(fewer is better)",
    "udhr": "{} paragraphs: translations found\n(top-1)",
}
Record = dict[str, str | float]


def models_of(run: Path) -> dict[int, Path]:
    """Step -> model folder: those that were kept, and the last."""
    last = load_config(RunDir(run)).trainer.max_steps
    kept = {
        int(folder.name.removeprefix("step-")): folder for folder in run.glob("models/**/step-*")
    }
    return dict(sorted(kept.items())) | {last: run / "model"}


def scorer_of(run: Path, code: str) -> Scorer:
    """The held-out passages of a language, as the run scores them."""
    cfg = replace(load_config(RunDir(run)), base=str(run), lang={})
    return next(each.scorer for each in open_model(cfg, RunDir(run)).languages if each.code == code)


def scored(runs: Path, file: Path) -> list[Record]:
    """The numbers: run, panel, tokens read, value. Those that ``file`` lacks are added to it."""
    found: list[Record] = list(csv.DictReader(file.open())) if file.exists() else []
    done = {(row["run"], float(row["tokens"])) for row in found}
    if (runs / "dense" / "metrics.json").exists():
        figures = read_metrics(runs / "dense" / "metrics.json")
        found += [
            {"run": f"dense {code}", "panel": "bits", "tokens": 0, "value": figures[name]}
            for code in NAMES
            if (f"dense {code}", 0) not in done and (name := f"val/bpb/{code}") in figures
        ]
    for run, (code, _, arm, _) in WAYS.items():
        if not (runs / run / "metrics.json").exists():
            continue
        figures, models = read_metrics(runs / run / "metrics.json"), models_of(runs / run)
        a_step = figures[f"train/tokens/{code}"] / max(models)
        left = {step: model for step, model in models.items() if (run, step * a_step) not in done}
        scorer = scorer_of(runs / run, code) if left else None
        for step, folder in tqdm(left.items(), run, disable=None):
            model = load_language_model(str(folder), str(folder))
            values = {"bits": scorer.score(model)[1]}
            del model
            found_in = retrieval(Encoder(str(folder)), FILE, ["en", code[:2]])
            values["udhr"] = next(row["score"] for row in found_in if row["arm"] == arm)
            found += [
                {"run": run, "panel": panel, "tokens": step * a_step, "value": value}
                for panel, value in values.items()
            ]
            file.write_text(csv_text(found), encoding="utf-8")
    return found


def draw(found: list[Record], ends: list[Record], start: dict[tuple[str, str], float]) -> Figure:
    """A row for each language, a panel for each question, a line for each run.

    Args:
        ends: rows of greek.csv.
        start: what E5 has, by language and panel.
    """
    figure = Figure((9, 7), layout="constrained")
    for code, row in zip(NAMES, figure.subplots(2, 2), strict=True):
        for axes, (panel, title) in zip(row, TITLES.items(), strict=True):
            level = {"color": "#555555", "linestyle": "--", "linewidth": 1}
            axes.axhline(start[code, panel], label="E5, before training", **level)
            last = 0.0
            for run, (of, name, _, colour) in WAYS.items():
                points = sorted(
                    (float(each["tokens"]) / 1e3, float(each["value"]))
                    for each in found
                    if of == code and (each["run"], each["panel"]) == (run, panel)
                )
                if points:
                    axes.plot(*zip(*points, strict=True), "o-", color=colour, ms=4, label=name)
                    last = max(last, points[-1][0])
            for each in ends:
                if (each["language"], each["panel"]) == (code, panel) and each["way"] in ENDS:
                    name, colour = ENDS[each["way"]]
                    axes.plot(last, float(each["value"]), "D", color=colour, ms=5, label=name)
            axes.set_title(title.format(NAMES[code]), fontsize=9, loc="left")
            axes.set_xlabel("thousand tokens read", fontsize=8)
            axes.tick_params(labelsize=8)
            axes.grid(axis="y", color="#dddddd", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_ylim(bottom=0)
    named: dict[str, object] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    place = {"loc": "outside lower center", "ncols": 3, "fontsize": 8, "frameon": False}
    figure.legend(named.values(), named.keys(), **place)
    return figure


def curves(runs: Path) -> None:
    """Score what is not in the file yet, and draw."""
    found = scored(runs, Path("curves.csv"))
    start, ends = {}, list(csv.DictReader(Path("greek.csv").open(newline="")))
    for code in NAMES:
        for row in csv.DictReader(Path("vectors.csv").open(newline="")):
            if (row["model"], row["arm"], row["language"]) == ("dense", "target", code):
                start[code, row["task"]] = float(row["score"])
        for row in found:
            if (row["run"], row["panel"]) == (f"dense {code}", "bits"):
                start[code, "bits"] = float(row["value"])
    draw(found, ends, start).savefig("curves.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="?", type=Path, default=Path("runs"))
    args = parser.parse_args()
    run_function(lambda: curves(args.runs))


if __name__ == "__main__":
    main()
