"""Greek in E5: what a slot gains in Greek and costs the others, beside full fine-tuning.

    python figure.py [runs]

Reads vectors.csv and the runs of README.md, and writes greek.png, and greek.csv, which has the
numbers. Of a run that is not there, the numbers in greek.csv stay.
"""

import argparse
import csv
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xmod_lab.metrics import codes_of, read_metrics
from xmod_lab.tables import csv_text

NEW, LEFT_OUT = "el_GR", ("sw_KE", "gn_PY")  # added later, or in some models only
E5, FULL, KEEP, OWN = "E5", "full fine-tuning", "a slot, E5's tokens", "a slot, own tokens"
KEPT = "a slot, own tokens,\nvectors kept"
SLOTS, NONE, SPELT = "grown E5,\nits slots", "grown E5,\nno slot", "character n-grams"
KEPT_SLOTS = "grown E5, its slots,\nvectors kept"
WAYS = {  # name -> the run, the model and the arm in vectors.csv, colour
    E5: ("dense", "dense", "target", "#555555"),
    FULL: ("ft_el", "ft_el", "none", "#d55e00"),
    KEEP: ("el_keep", "el_keep", "target", "#117733"),
    OWN: ("el_focus", "grown", "target", "#0072b2"),
    KEPT: ("el_kept", "el_kept", "added", "#aa4499"),
    SLOTS: ("", "grown", "target", "#0072b2"),
    KEPT_SLOTS: ("", "base_kept", "target", "#aa4499"),
    NONE: ("", "grown", "none", "#56b4e9"),
    SPELT: ("", "ngrams", "ngrams", "#999999"),
}
TITLES = {
    "bits": "Greek: bits per byte of held-out text\n(fewer is better)",
    "intents": "Greek intents, learnt in English\n(accuracy)",
    "udhr": "Greek paragraphs: translations found\n(top-1)",
    "bits of others": "Other languages: bits per byte\nmore than before",
    "intents of others": "Other languages: intents,\nminus those of E5",
    "udhr of others": "Other languages: translations found,\nminus those of E5",
}
_NUMBERS = ("value", "low", "high")
CLOSE = 0.03  # points without names, if all are so near to 0
Record = dict[str, str | float | None]


def records(runs: Path, file: Path) -> list[Record]:
    """The numbers: panel, way, language, value, low, high. ``file``: those that are known."""
    there = {way for way, (run, *_) in WAYS.items() if (runs / run / "metrics.json").is_file()}
    found: list[Record] = []
    for row in csv.DictReader(file.open(newline="")) if file.exists() else ():
        if row["panel"].startswith("bits") and row["way"] not in there:
            numbers = {key: float(row[key]) if row[key] else None for key in _NUMBERS}
            found.append({**row, **numbers})

    def add(panel: str, way: str, code: str, value: float, low: object, high: object) -> None:
        ends = {
            name: None if end in (None, "") else float(end)
            for name, end in (("low", low), ("high", high))
        }
        found.append({"panel": panel, "way": way, "language": code, "value": value, **ends})

    for way, (run, *_) in WAYS.items():
        figures = read_metrics(runs / run / "metrics.json") if way in there and run else {}
        if (name := f"val/bpb/{NEW}") in figures:
            add("bits", way, NEW, figures[name], *map(figures.get, (f"{name}/low", f"{name}/high")))
        # a continued run has the difference; a run that adds a language has both values
        more = {
            code: figures[f"forgetting/bpb/{code}"] for code in codes_of(figures, "forgetting/bpb/")
        } or {
            code: figures[f"val/bpb/{code}"] - figures[f"before/val/bpb/{code}"]
            for code in codes_of(figures, "before/val/bpb/")
        }
        for code, value in more.items():
            if way in (FULL, OWN, KEPT) and code not in (NEW, *LEFT_OUT):
                add("bits of others", way, code, value, None, None)
    with Path("vectors.csv").open(newline="") as stream:
        scores = {
            (row["model"], row["arm"], row["task"], row["language"]): row
            for row in csv.DictReader(stream)
        }
    for way, (_, model, arm, _) in WAYS.items():
        for (one, through, task, code), row in scores.items():
            if (one, through) != (model, arm) or task not in TITLES:
                continue
            value = float(row["score"])
            if code == NEW and way not in (SLOTS, KEPT_SLOTS, NONE):
                add(task, way, code, value, row["low"], row["high"])
            elif code not in (NEW, "en_XX", *LEFT_OUT) and way not in (E5, OWN, KEPT, SPELT):
                before = float(scores["dense", "target", task, code]["score"])
                add(f"{task} of others", way, code, value - before, None, None)
    return found


def draw(found: list[Record]) -> Figure:
    """A panel for each question: the new language above, the other languages below."""
    figure = Figure((11, 6.8), layout="constrained")
    for axes, (panel, title) in zip(figure.subplots(2, 3).flat, TITLES.items(), strict=True):
        rows = sorted(
            (row for row in found if row["panel"] == panel), key=lambda row: row["language"]
        )
        _points(axes, rows)
        axes.set_title(title, fontsize=9, loc="left")
        axes.tick_params(axis="x", labelsize=7)
        axes.tick_params(axis="y", labelsize=8)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if panel.endswith("others"):
            axes.axhline(0, color="#555555", linewidth=0.8)
        else:
            axes.set_ylim(bottom=0)
    return figure


def _points(axes: Axes, rows: list[Record]) -> None:
    """A column for each way, with a point for each language."""
    ways = [way for way in WAYS if way in {row["way"] for row in rows}]
    for place, way in enumerate(ways):
        of_way, colour = [row for row in rows if row["way"] == way], WAYS[way][-1]
        for i, row in enumerate(of_way):
            x = place + (0 if len(of_way) == 1 else 0.6 * (i / (len(of_way) - 1) - 0.5))
            if row["low"] is not None:
                axes.plot([x, x], [row["low"], row["high"]], color=colour, linewidth=1.4)
            axes.plot(x, row["value"], "o", color=colour, markersize=5)
            if max(abs(row["value"]) for row in of_way) > CLOSE and len(of_way) > 1:
                axes.annotate(
                    row["language"][:2],
                    (x, row["value"]),
                    (0, 4),
                    textcoords="offset points",
                    ha="center",
                    fontsize=6,
                    color=colour,
                )
    axes.set_xticks(range(len(ways)), ways, rotation=28, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, max(len(ways), 2) - 0.4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="?", type=Path, default=Path("runs"))
    file = Path("greek.csv")
    found = records(parser.parse_args().runs, file)
    file.write_text(csv_text(found), encoding="utf-8")
    draw(found).savefig("greek.png", dpi=150)


if __name__ == "__main__":
    main()
