"""The table of a sweep over embedding initialisers: losses before and after the same budget, over seeds.

    python scripts/compare_initialisers.py RUNS [--out experiments/initialisers]

Reads every finished run under RUNS, of the same settings the newest (``python -m xmod_lab.pretrain +experiment=initialisers``
makes runs/initialisers), prints the table, and writes results.csv, comparison.png and the part of README.md between its marks into
the folder of --out.
"""

import argparse
import csv
import re
import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from xmod_lab.errors import UserError
from xmod_lab.reports.results import read_run
from xmod_lab.runs.jobs import current_runs
from xmod_lab.text.likelihoods import in_a_word

FIGURES = {
    "unigram": "unigram/loss",
    "before": "before/val/loss",
    "after": "val/loss",
    "bpb": "val/bpb",
}
COLUMNS = (
    "code",
    "embedding_init",
    "seed",
    "steps",
    *FIGURES,
    "copied",
    "derived",
    "coverage",
    "likelihood",
)
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)

Record = dict[str, str | int | float]


def collect(folder: Path) -> tuple[list[Record], int]:
    """One record for each finished run and language, sorted, and how many runs are not finished."""
    records, unfinished = [], 0
    for place in current_runs(folder):
        run = read_run(place)
        unfinished += not run.metrics
        for lang in run.config["lang"].values() if run.metrics else ():
            code, vocabulary = lang["code"], run.packs[lang["code"]]["vocabulary"]
            figures = {name: run.metrics[f"{key}/{code}"] for name, key in FIGURES.items()}
            records.append(
                {
                    "code": code,
                    "embedding_init": lang["embedding_init"],
                    "seed": run.config["seed"],
                    "steps": run.packs[code]["training"]["steps"],
                    **figures,
                    **{name: vocabulary[name] for name in ("copied", "derived", "coverage")},
                    "likelihood": in_a_word(run.exact),
                }
            )
    if not records:
        raise UserError(
            f"{folder} has no finished run; make some: python -m xmod_lab.pretrain +experiment=initialisers"
        )
    steps = sorted({r["steps"] for r in records})
    if len(steps) > 1:
        raise UserError(
            f"{folder} has runs of {steps} steps; what is compared must have the same budget: move the others"
        )
    return sorted(records, key=lambda r: (r["code"], r["embedding_init"], r["seed"])), unfinished


def groups(records: list[Record], code: str) -> dict[str, list[Record]]:
    """Records of one language by method, the lowest mean loss after training first."""
    by_method: dict[str, list[Record]] = {}
    for record in records:
        if record["code"] == code:
            by_method.setdefault(record["embedding_init"], []).append(record)
    return dict(sorted(by_method.items(), key=lambda item: _values(item[1], "after").mean()))


def table(records: list[Record]) -> str:
    """Markdown, a part for each language."""
    parts = []
    for code in sorted({r["code"] for r in records}):
        by_method = groups(records, code)
        first = next(iter(by_method.values()))[0]
        parts.append(
            f"{code}, {first['steps']} steps; unigram entropy {first['unigram']:.3f} nats/piece:\n"
        )
        parts.append(
            "| embedding_init | seeds | rows copied, derived | text covered | before | after | "
            f"bits/byte ({first['likelihood']}) after |"
        )
        parts.append("|---|---:|---:|---:|---:|---:|---:|")
        for method, rs in by_method.items():
            spread = {name: _spread(_values(rs, name)) for name in ("before", "after", "bpb")}
            parts.append(
                f"| {method} | {len(rs)} | {rs[0]['copied']:,}, {rs[0]['derived']:,} | {100 * rs[0]['coverage']:.1f} % | "
                f"{spread['before']} | {spread['after']} | {spread['bpb']} |"
            )
        before, after = (
            np.array([_values(rs, n).mean() for rs in by_method.values()])
            for n in ("before", "after")
        )
        if len(by_method) > 2:
            parts.append(
                f"\nRank correlation of before and after over the methods: {_rank_correlation(before, after):.2f}."
            )
        parts.append("")
    return "\n".join(parts)


def _values(records: list[Record], name: str) -> np.ndarray:
    return np.array([r[name] for r in records], dtype=float)


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f}" + (
        f" ({values.min():.3f} – {values.max():.3f})" if len(values) > 1 else ""
    )


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; equal values do not occur here."""
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def plot(records: list[Record], path: Path) -> None:
    """A panel for each language: every seed's loss after training, by method."""
    codes = sorted({r["code"] for r in records})
    figure = Figure(figsize=(4.4 * len(codes), 3.2), layout="constrained")
    for code, axes in zip(codes, np.atleast_1d(figure.subplots(1, len(codes))), strict=True):
        by_method = groups(records, code)
        for i, rs in enumerate(by_method.values()):
            axes.plot(
                _values(rs, "after"), [i] * len(rs), "o", color="#1b6ca8", markersize=5, alpha=0.7
            )
        axes.set_yticks(range(len(by_method)), list(by_method))
        axes.invert_yaxis()
        axes.set_title(f"{code}: each seed after {rs[0]['steps']} steps", fontsize=9)
        axes.set_xlabel("held-out loss, nats per predicted piece", fontsize=8)
        axes.grid(True, color="#e6e6e6", linewidth=0.7)
        axes.set_axisbelow(True)
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, help="the folder of the sweep, e.g. runs/initialisers")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("experiments/initialisers"),
        help="the folder to write into",
    )
    args = parser.parse_args(arguments)
    try:
        records, unfinished = collect(args.runs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = table(records) + (f"\n{unfinished} runs are not finished.\n" if unfinished else "")
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "results.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    plot(records, args.out / "comparison.png")
    readme = args.out / "README.md"
    if readme.is_file():
        shown = f"{text}\n![Loss after training](comparison.png)\n"
        readme.write_text(MARKS.sub(lambda m: m.group(1) + shown + m.group(2), readme.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
