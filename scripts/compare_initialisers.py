"""Embedding initialisers of a sweep: bits per byte after the same budget, paired against one.

    python scripts/compare_initialisers.py RUNS [RUNS ...]
        [--against overlap] [--out experiments/initialisers]

Reads every finished run in the folders RUNS; of runs with the same settings, the newest. ``python
-m xmod_lab.pretrain +experiment=initialisers`` makes runs/initialisers; sweeps on several bases may
lie in folders in it. Prints the tables, and writes results.csv, differences.csv, comparison.png and
the part of README.md between its marks into the folder of --out.

Methods are compared by bits per byte on the same held-out passages, and on the same seeds of the
same bases (:mod:`xmod_lab.reports.pairs`); p-values are corrected for the number of all comparisons
(Holm). The loss before and after is the training curve.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from xmod_lab.errors import UserError
from xmod_lab.metrics import LEVEL, digits_of, half_width, interval_text, number, with_error
from xmod_lab.reports.groups import Group
from xmod_lab.reports.pairs import Compared, compare
from xmod_lab.reports.results import Run, read_run
from xmod_lab.runs.jobs import current_runs
from xmod_lab.tables import Table, csv_text
from xmod_lab.tasks.statistics import holm, p_text
from xmod_lab.text.objectives import likelihood_word

FIGURES = {
    "unigram": "unigram/loss",
    "before": "before/val/loss",
    "after": "val/loss",
    "bpb": "val/bpb",
}
COUNTS = ("copied", "derived", "coverage")  # of the rows of the new table
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)

Methods = dict[str, Group]  # name -> its runs


def collect(folders: Sequence[Path]) -> tuple[dict[str, Methods], int]:
    """By language the finished runs of each method, and how many runs are not finished.

    The method with the fewest bits per byte stands first.

    Raises:
        UserError: there is no finished run, runs have other budgets, or one repeats another.
    """
    found: dict[str, dict[str, list[Run]]] = {}
    unfinished, steps = 0, set()
    for place in [run for folder in folders for run in _runs_in(folder)]:
        run = read_run(place)
        unfinished += not run.finished
        for lang in run.config["lang"].values() if run.finished else ():
            runs = found.setdefault(lang["code"], {}).setdefault(lang["embedding_init"], [])
            if twin := next((other for other in runs if other.seeds == run.seeds), None):
                raise UserError(
                    f"leave one out: {place} repeats {twin.path} "
                    f"({lang['embedding_init']}, the same seed and base)"
                )
            runs.append(run)
            steps.add(run.packs[lang["code"]]["training"]["steps"])
    if not found:
        raise UserError(
            "make runs: python -m xmod_lab.pretrain +experiment=initialisers; no finished run in "
            f"{', '.join(map(str, folders))}"
        )
    if len(steps) > 1:
        raise UserError(
            f"move some runs away: they have {sorted(steps)} steps, and what is compared must have "
            "the same budget"
        )
    languages = {}
    for code, methods in sorted(found.items()):
        groups = [Group(name, runs, {}) for name, runs in methods.items()]
        groups.sort(key=lambda group: group.mean(f"val/bpb/{code}"))
        languages[code] = {group.name: group for group in groups}
    return languages, unfinished


def _runs_in(folder: Path) -> list[Path]:
    """The runs of a sweep; of a folder of sweeps, those of each."""
    runs = current_runs(folder)
    below = sorted(part for part in folder.iterdir() if part.is_dir()) if not runs else []
    return runs + [run for part in below for run in current_runs(part)]


def compared(languages: dict[str, Methods], against: str) -> dict[tuple[str, str], Compared | str]:
    """Language and method -> bits per byte less those of ``against``, or why that is unknown."""
    return {
        (code, name): compare(group, methods[against], code)
        if against in methods
        else f"no finished run has {against}"
        for code, methods in languages.items()
        for name, group in methods.items()
        if name != against
    }


def table(code: str, methods: Methods, gaps: dict[str, Compared | str], against: str, p) -> str:
    """Markdown of one language. ``gaps``, ``p``: by method, difference and corrected p-value."""
    first = next(iter(methods.values())).finished[0]
    rows = []
    for name, group in methods.items():
        vocabulary = group.finished[0].packs[code]["vocabulary"]
        gap = gaps.get(name)
        found = gap.found if isinstance(gap, Compared) else None
        rows.append(
            [
                name,
                str(len(group.finished)),
                str(group.bases),
                f"{vocabulary['copied']:,}, {vocabulary['derived']:,}",
                f"{100 * vocabulary['coverage']:.1f} %",
                _mean(group, f"val/bpb/{code}", error=True),
                "–"
                if found is None
                else number(found.mean, digits_of((found.high - found.low) / 2), sign="+"),
                "–" if found is None else interval_text(found.low, found.high, sign="+"),
                p_text(p.get(name)),
                _mean(group, f"before/val/loss/{code}"),
                _mean(group, f"val/loss/{code}"),
            ]
        )
    header = [
        "embedding_init",
        "runs",
        "bases",
        "rows copied, derived",
        "text covered",
        f"bits/byte ({likelihood_word(first.likelihood)})",
        f"less {against}",
        f"{LEVEL:.0%} interval",
        "p, Holm",
        "loss before",
        "loss after",
    ]
    steps = first.packs[code]["training"]["steps"]
    entropy = _mean(next(iter(methods.values())), f"unigram/loss/{code}")
    lines = [
        f"{code}, {steps} steps; unigram entropy {entropy} nats/token:",
        "",
        Table("", header, rows).markdown(),
    ]
    means = [
        np.array([group.mean(f"{prefix}/{code}") for group in methods.values()])
        for prefix in ("before/val/loss", "val/loss")
    ]
    if len(methods) > 2:
        lines.append(
            "Rank correlation of the loss before and after over the methods: "
            f"{_rank_correlation(*means):.2f}.\n"
        )
    reasons: dict[str, list[str]] = {}
    for name, gap in gaps.items():
        if isinstance(gap, str):
            reasons.setdefault(gap, []).append(name)
    lines += [f"Not compared: {', '.join(names)}: {why}.\n" for why, names in reasons.items()]
    return "\n".join(lines)


def _mean(group: Group, figure: str, *, error: bool = False) -> str:
    """Over runs, by base first, with the digits that the sample of held-out text allows."""
    halves = [half for run in group.finished if (half := half_width(run.metrics, figure))]
    half = float(np.mean(halves)) if halves else None
    mean = group.mean(figure)
    return with_error(mean, half) if error else number(mean, digits_of(half))


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; equal values do not occur here."""
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def note(gaps: dict[tuple[str, str], Compared | str]) -> str:
    """What the tables compare by."""
    done = [gap for gap in gaps.values() if isinstance(gap, Compared)]
    said = (
        f"± is half of the {LEVEL:.0%} interval that the sample of held-out passages gives bits "
        "per byte. Differences are paired, by passage and by seed and base; "
    )
    if done:
        bases = min(gap.bases for gap in done)
        said += (
            "their intervals count passages and "
            f"{'bases' if bases > 1 else 'seeds (given this base)'} as drawn, "
            f"p is corrected for {len(done)} comparisons (Holm). "
        )
    return said + (
        "The loss, nats/token, is the training curve: it hides tokens, before the first step and "
        "after the last."
    )


def plot(languages: dict[str, Methods], path: Path) -> None:
    """A panel for each language: bits per byte of every run, by method."""
    figure = Figure(figsize=(4.4 * len(languages), 3.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(languages)))
    for (code, methods), axes in zip(languages.items(), panels, strict=True):
        for i, group in enumerate(methods.values()):
            values = group.sample(f"val/bpb/{code}").values
            axes.plot(values, [i] * len(values), "o", color="#1b6ca8", markersize=5, alpha=0.7)
        axes.set_yticks(range(len(methods)), list(methods))
        axes.invert_yaxis()
        axes.set_title(f"{code}: each run, after training", fontsize=9)
        axes.set_xlabel("bits per byte of held-out text", fontsize=8)
        axes.grid(True, color="#e6e6e6", linewidth=0.7)
        axes.set_axisbelow(True)
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def records(languages: dict[str, Methods]) -> list[dict]:
    """Of every run and language, for results.csv."""
    found = []
    for code, methods in languages.items():
        for name, group in sorted(methods.items()):
            for run in sorted(group.finished, key=lambda run: run.seeds):
                pack = run.packs[code]
                found.append(
                    {
                        "code": code,
                        "embedding_init": name,
                        "seed": run.seeds[0],
                        "base_seed": run.seeds[1] if len(run.seeds) > 1 else None,
                        "steps": pack["training"]["steps"],
                        **{key: run.metrics[f"{prefix}/{code}"] for key, prefix in FIGURES.items()},
                        **{key: pack["vocabulary"][key] for key in COUNTS},
                        "likelihood": likelihood_word(run.likelihood),
                    }
                )
    return found


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "runs", type=Path, nargs="+", help="folders of the sweep, e.g. runs/initialisers"
    )
    parser.add_argument(
        "--against", default="overlap", help="the method that the others are compared with"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("experiments/initialisers"),
        help="the folder to write into",
    )
    args = parser.parse_args(arguments)
    try:
        for folder in args.runs:
            if not folder.is_dir():
                raise UserError(f"{folder} is no folder; give the folder of a sweep")
        languages, unfinished = collect(args.runs)
        gaps = compared(languages, args.against)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    corrected = holm([g.found.p if isinstance(g, Compared) else None for g in gaps.values()])
    p = dict(zip(gaps, corrected, strict=True))
    parts = []
    for code, methods in languages.items():
        own = {name: gaps[code, name] for name in methods if name != args.against}
        parts.append(table(code, methods, own, args.against, {name: p[code, name] for name in own}))
    parts.append(note(gaps) + "\n")
    if unfinished:
        parts.append(f"{unfinished} runs are not finished.\n")
    text = "\n".join(parts)
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.csv").write_text(csv_text(records(languages)))
    differences = [
        {
            "code": code,
            "embedding_init": name,
            "against": args.against,
            **gap.record(),
            "p_holm": p[code, name],
        }
        for (code, name), gap in gaps.items()
        if isinstance(gap, Compared)
    ]
    (args.out / "differences.csv").write_text(csv_text(differences))
    plot(languages, args.out / "comparison.png")
    readme = args.out / "README.md"
    if readme.is_file():
        shown = f"{text}\n![Bits per byte after training](comparison.png)\n"
        readme.write_text(MARKS.sub(lambda m: m.group(1) + shown + m.group(2), readme.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
